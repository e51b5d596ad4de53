"""Which of our DAGs are paused or missing: tasks have no access to Airflow's database, so its API server is asked."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.configuration import conf

from duckling_provider.oversight.watch import DagFacts

#: Seconds that Airflow's API server gets to answer.
_PATIENCE = 20


def dag_facts(api_key: str) -> Mapping[str, DagFacts]:
    """Which DAGs there are, and which are paused, by database, as Airflow's API server tells.

    :raises OSError, ValueError, KeyError, TypeError: it does not tell.
    """
    base = conf.get("api", "base_url", fallback="") or "http://localhost:8080"
    request = urllib.request.Request(  # noqa: S310 - the address is Airflow's own
        f"{base.rstrip('/')}/duckling/health", headers={"Authorization": f"Bearer {api_key}"}
    )
    opener = urllib.request.build_opener(_AnyStatus())
    with opener.open(request, timeout=_PATIENCE) as answer:
        details: Sequence[Mapping[str, Any]] = json.loads(answer.read())["details"]
    return {
        one["id"]: DagFacts("backup" in one["dags"], "backup" in one["paused"], "drill" in one["paused"])
        for one in details
    }


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """503 is an answer: something is overdue."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response
