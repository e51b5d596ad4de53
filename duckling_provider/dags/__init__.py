"""The DAGs made from databases.json, and their names."""
