"""Has the world changed: since when, in what, and what is to be done about it."""
