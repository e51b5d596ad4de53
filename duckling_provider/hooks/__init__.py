"""Airflow hooks: the stores and settings of a database, and the Node.js server."""
