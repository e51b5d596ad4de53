"""Operators: a few lines each over the core."""
