"""Public import path of the DAG factory; the code is in `duckling_provider.dags.factory`."""

from duckling_provider.dags.factory import (
    backup_dag,
    bad_entries,
    build_dags,
    restore_dag,
    sync_dag,
    verify_dag,
    watch_dag,
)

__all__ = ["backup_dag", "bad_entries", "build_dags", "restore_dag", "sync_dag", "verify_dag", "watch_dag"]
