"""Proof that replica and server are equal."""
