"""The Airflow plugin; its parts are registered here, and nowhere else."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class DucklingPlugin(AirflowPlugin):
    """Found by the entry point ``airflow.plugins``."""

    name = "duckling"
