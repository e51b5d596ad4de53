"""DDL of MySQL: what a statement of the binlog means, and how the replica follows it."""
