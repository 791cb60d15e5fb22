"""Bytes that nobody would write on purpose, for everything that reads bytes."""
