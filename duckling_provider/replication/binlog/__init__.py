"""Reading the binlog: from bytes to row changes."""
