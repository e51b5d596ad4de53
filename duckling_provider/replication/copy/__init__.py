"""Full copies of tables."""
