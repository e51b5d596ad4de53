"""The DAGs made from databases.json: their tasks, names and documentation, and what a run may be told."""
