"""Duckling: DuckDB replicas go to S3 and come back, run by Airflow.

The folders from `base` to `node_server` do the work and run without Airflow; the others adapt them to Airflow, to its
API server and to the command line. docs/internals/architecture.md has the order. This file is the one place of the
version and imports nothing, so that reading it is always cheap.
"""

__version__ = "0.1.0"
