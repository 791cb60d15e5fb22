"""What is measured, each a process of its own: scripts, and what they share."""
