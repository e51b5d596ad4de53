"""Duckling: DuckDB replicas go to S3 and come back, run by Airflow.

`duckling_provider.core` does the work and runs without Airflow; everything beside it adapts the core to Airflow or to
the command line. This file is the one place of the version and imports nothing, so that reading it is always cheap.
"""

__version__ = "0.1.0"
