"""Backups: their names, encryption, making, listing, verifying, restoring and clean-up."""
