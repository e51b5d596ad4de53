"""The MySQL server: connections, preflight, schema, consistent snapshots."""
