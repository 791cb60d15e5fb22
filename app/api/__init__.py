"""The web server: what people and services ask a worker, and what it tells them."""
