"""What the binlog tells, done to the replica in batches."""
