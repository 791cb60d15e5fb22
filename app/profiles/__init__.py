"""Configurations that weir ships: a profile is the base that a file overrides."""
