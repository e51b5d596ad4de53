"""Links on task instances."""
