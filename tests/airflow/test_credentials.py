"""Credentials that Airflow gives are renewed while a transfer runs, as those of the machine are."""

from __future__ import annotations

import datetime as dt
import io
import json

import pytest
from fixtures.store_double import XML, Answer, error
from fixtures.stores import server_at

from duckling_provider.base.errors import StoreError
from duckling_provider.stores import s3_client

pytestmark = [pytest.mark.airflow, pytest.mark.server]

PART = 5 << 20


class Parts:
    """Three parts; `between` is called before the second one is read."""

    part_size, count, size = PART, 3, 3 * PART

    def __init__(self, between):
        self._between = between

    def open(self, index):
        if index == 1:
            self._between()
        return io.BytesIO(bytes(PART))


def role(name, seconds=300):
    """What the token service answers: the credentials of a role, for so long."""
    end = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=seconds)
    body = (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
        f"<AccessKeyId>{name}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
        f"<Expiration>{end:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
    return Answer(200, body.encode(), XML)


@pytest.fixture
def services(installation, make_double, monkeypatch):
    """``(store, token service)``: doubles that an entry with `awsConnId` and its connection lead to."""
    store, tokens = make_double(), make_double()
    store.size = Parts.size
    fields = {"accessKeyId": None, "secretAccessKey": None, "awsConnId": "backups", "maxConcurrency": 1}
    installation.write(installation.entry(s3=server_at(store.endpoint).s3("bucket", **fields)))
    extra = {
        "role_arn": "arn:aws:iam::123456789012:role/backups",
        "region_name": "us-east-1",
        "service_config": {"sts": {"endpoint_url": tokens.endpoint}},
    }
    connection = {"conn_type": "aws", "login": "id", "password": "secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_BACKUPS", json.dumps(connection))
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    return store, tokens


def test_the_role_of_a_connection_is_renewed_between_parts(services):
    store, tokens = services
    tokens.answers("*", role("first"))
    from duckling_provider.hooks.duckling import DucklingHook

    client = DucklingHook("production").store()
    client.put("x.db", Parts(lambda: tokens.answers("*", role("second", 7200))))
    assert store.signed_by == ["first"] * 2 + ["second"] * 4


def test_a_role_that_is_taken_away_meanwhile_is_no_fault_of_the_store(services):
    store, tokens = services
    tokens.answers("*", role("first"))
    from duckling_provider.hooks.duckling import DucklingHook

    client = DucklingHook("production").store()
    denied = error(403, "AccessDenied", "not authorized to perform: sts:AssumeRole")
    with pytest.raises(StoreError, match="credentials can't be renewed") as caught:
        client.put("x.db", Parts(lambda: tokens.answers("*", denied)))
    assert "awsConnId" in str(caught.value)
    assert store.seen["UploadPart"] == 1
