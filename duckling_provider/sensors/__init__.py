"""Sensors: one that waits until a backup is verified."""
