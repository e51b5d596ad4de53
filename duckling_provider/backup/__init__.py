"""Backups: which there are, how one is made, read back and removed; and the whole of a backup in one call."""
