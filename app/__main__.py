"""``python -m app`` is ``weir``."""

from app.cli import main

main()
