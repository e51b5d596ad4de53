"""Full copies of tables: cut into ranges, read in one snapshot of MySQL, written to the replica."""
