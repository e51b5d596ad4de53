"""Triggers, which run in the triggerer: one that verifies while no worker waits."""
