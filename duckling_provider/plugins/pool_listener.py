"""Makes the pool of the transfers when one of Airflow's services starts; a listener, see `tasks.transfer_pool`."""

from __future__ import annotations

import logging
import os

from airflow.listeners import hookimpl

log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: object) -> None:
    """Called in every process that Airflow starts, those of tasks too, which may not use its database.

    Services (scheduler, triggerer, DAG processor) come with a `Job`, whose kind is not yet known here; which of them is
    the first does not matter.
    """
    if type(component).__name__ != "Job":
        return
    from duckling_provider.config.environment import Settings
    from duckling_provider.tasks.transfer_pool import create_missing

    try:
        create_missing(Settings.from_env(os.environ))
    except Exception as error:
        # No service may stay down for it. `duckling check` tells that it is missing.
        log.warning("the pool of Duckling's transfers could not be made: %s", error)
