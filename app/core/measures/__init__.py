"""Parts of the evaluation: each counts one thing, in bounded memory, and gives its figures.

What only adds up (``counts``) is kept by day until the day is mature, then for good. What needs
an order is kept apart: the best of a day (``top``), and what is known of a card (``cards``).
"""
