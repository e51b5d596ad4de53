"""The Airflow plugin; its parts are registered here, and nowhere else."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from duckling_provider.plugins import pool_listener as pool
from duckling_provider.timetable import StaggeredTimetable
from duckling_provider.web.mount import PREFIX, RootPaths, app


class DucklingPlugin(AirflowPlugin):
    """Found by the entry point ``airflow.plugins``, and loaded by every Airflow process: nothing heavy here."""

    name = "duckling"
    fastapi_apps = [{"app": app, "url_prefix": PREFIX, "name": "Duckling"}]  # noqa: RUF012 - Airflow's interface
    fastapi_root_middlewares = [{"middleware": RootPaths, "args": [], "kwargs": {}, "name": "Duckling"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Duckling",
            # Relative to the <base> of Airflow's pages, which is its base path.
            "href": f"{PREFIX.removeprefix('/')}/",
            "destination": "nav",
            "url_route": "duckling",
            "category": "browse",
        }
    ]
    timetables = [StaggeredTimetable]  # noqa: RUF012 - Airflow's own way to declare them
    listeners = [pool]  # noqa: RUF012
