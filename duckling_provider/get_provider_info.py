"""What Airflow's provider manager learns about this package, by the entry point ``apache_airflow_provider``.

Airflow calls it in every process that it starts, so nothing heavy may be imported here. The shape is that of Airflow's
``provider_info.schema.json``.
"""

from __future__ import annotations

from typing import Any

from duckling_provider import __version__

_INTEGRATION = "Duckling"

#: How the form of a `duckling` connection looks.
CONNECTION_FORM: dict[str, Any] = {
    "hidden-fields": ["login", "extra"],
    "relabeling": {"schema": "Schema (http or https)", "password": "API key"},
    "placeholders": {
        "host": "duckling.internal",
        "port": "3001",
        "schema": "http",
        "password": "the server's DUCKLING_API_KEY",
    },
}


def get_provider_info() -> dict[str, Any]:
    """Describe the provider.

    ``package-name`` must be the canonical name with a hyphen: an underscore crashes every `airflow` command.
    """
    return {
        "package-name": "duckling-provider",
        "name": "Duckling",
        "description": "Disaster recovery for DuckDB replicas: verified S3 backups and transactional restores.\n",
        "versions": [__version__],
        "integrations": [{"integration-name": _INTEGRATION, "tags": ["service"]}],
        "hooks": [_modules("hooks.duckling", "hooks.duckling_server")],
        "connection-types": [
            {
                "connection-type": "duckling",
                "hook-name": "Duckling server",
                "hook-class-name": "duckling_provider.hooks.duckling_server.DucklingServerHook",
                "ui-field-behaviour": CONNECTION_FORM,
            }
        ],
        "operators": [
            _modules(*(f"operators.{name}" for name in ("backup", "restore", "drill", "hold", "sync", "watch")))
        ],
        "sensors": [_modules("sensors.verify")],
        "triggers": [_modules("triggers.verify")],
        "extra-links": ["duckling_provider.links.s3.S3ObjectLink"],
    }


def _modules(*names: str) -> dict[str, Any]:
    return {"integration-name": _INTEGRATION, "python-modules": [f"duckling_provider.{name}" for name in names]}
