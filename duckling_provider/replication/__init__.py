"""MySQL to DuckDB: full copies, changes from the binlog, and proof that both sides are equal."""
