"""Applying row changes and DDL to the replica."""
