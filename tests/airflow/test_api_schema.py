"""The API keeps what its OpenAPI document promises, whatever is sent: generated requests to Airflow's application."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

pytestmark = [pytest.mark.airflow, pytest.mark.server]

# The fixtures of the other file; test folders are no packages.
_API = runpy.run_path(str(Path(__file__).with_name("test_api.py")))
client, shop, add_dags = (_API[name] for name in ("client", "shop", "add_dags"))


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_is_promised(client, airflow_app, shop, mode, monkeypatch, full):
    # It sends wrong credentials by the dozen, and takes the 503 of an overdue database for a crash.
    monkeypatch.setattr("duckling_provider.web.services.limits._GUESSES", "100000/second")
    shop.backed_up()
    document = client.get("/duckling/openapi.json").json()
    del document["servers"]  # at the contract's own paths, not under the mount
    schema = schemathesis.openapi.from_dict(document)
    schema.app = airflow_app
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:
        if mode.is_negative and not (operation.query or operation.path_parameters or operation.body):
            continue  # there is nothing that could be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=25 if full else 5,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            derandomize=True,
        )
        def keeps_its_word(case):
            _meet_what_exists(case, mode)
            case.call_and_validate(
                headers={"Authorization": f"Bearer {_API['API_KEY']}"},
                # Whether a key lies under a database's prefix, or settings fit together, is not for a schema to say.
                excluded_checks=[positive_data_acceptance],
            )

        keeps_its_word()


def _meet_what_exists(case, mode):
    """Every second valid request shall meet a database that exists; none shall wait for a run: no scheduler is here."""
    if not mode.is_negative:
        if len(case.query.get("db") or "") % 2:
            case.query["db"] = "shop"
        if len((case.path_parameters or {}).get("database_id", "")) % 2:
            case.path_parameters["database_id"] = "shop"
    if case.method == "POST" and case.operation.path.startswith("/api/backups"):
        case.query["wait"] = "false"
