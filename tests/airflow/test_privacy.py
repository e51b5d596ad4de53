"""Where data lies, in S3 and in MySQL, is read by those who may edit Airflow's connections, and by no other caller."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.server]

# The fixtures of the other files; test folders are no packages.
_PAGE = runpy.run_path(str(Path(__file__).with_name("test_page.py")))
client, add_dags, page = (_PAGE[name] for name in ("client", "add_dags", "page"))
token, back_up = _PAGE["token"], _PAGE["back_up"]
KEY = "0123456789abcdef" * 4
MYSQL = "mysql://replicator:s3cr3t@orders-db.corp.example:3307/orders_live"
#: Names of where the data lies, and of who opens it; 127.0.0.1 is the store's address.
PLACES = (
    "127.0.0.1",
    "123456789012",
    "AKIAEXAMPLEEXAMPLE",
    "replicator",
    "orders-db",
    "3307",
    "orders_live",
    "10.20.30.40",
    "eu-north-1",
)
#: The file name of a backup stands in every listing.
NAME = "backup-2025-03-01T14-32-11-482Z.db"


@pytest.fixture
def shop(installation, s3_server, make_replica, add_dags):
    """A database with names that are found again, and an entry with a mistake beside it."""
    s3 = s3_server.s3(s3_server.new_bucket(), encryption="client-aes256", encryptionKey=KEY)
    entry = installation.entry("shop", s3=s3, mysqlConnectionString=MYSQL)
    mistaken = installation.entry("crm", s3=s3 | {"endpoint": "htp://orders-db.corp.example", "bucket": "crm-backups"})
    installation.write(entry, mistaken)
    make_replica(installation.replica("shop"), rows=5)
    (runs,) = add_dags("shop")
    return runs


@pytest.fixture
def places(installation):
    s3 = installation.database("shop").s3
    return (*PLACES, s3.bucket, s3.access_key_id, "crm-backups")


def telling(installation, kind="StoreError"):
    """An error as tasks record it, with a name of everything."""
    s3 = installation.database("shop").s3
    what = (
        f"s3://{s3.bucket}/shop/{NAME}: upload: {s3.endpoint} in eu-north-1 (10.20.30.40:9000) "
        f"refused {s3.access_key_id} and AKIAEXAMPLEEXAMPLE (arn:aws:iam::123456789012:user/backup), and "
        f"orders-db.corp.example:3307 said: Access denied for user 'replicator'@'10.20.30.40' to orders_live"
    )
    return {"kind": kind, "what": what, "hint": f"Look at {s3.endpoint}/{s3.bucket}.", "retryable": False}


def paths(run_ids):
    return [
        "/api/databases",
        "/api/backups?db=shop",
        "/api/automation/status?db=shop",
        "/health",
        "/health?db=shop",
        "/health?db=crm",
        "/metrics",
        "/duckling/",
        "/duckling/databases/shop",
        "/duckling/databases/shop?store=1",
        "/duckling/databases/crm",
        *(f"/duckling/runs/duckling_{kind}__shop/{run_id}" for kind, run_id in run_ids.items()),
    ]


def told(text, places):
    return {place for place in places if place in text}


def test_no_answer_and_no_page_tells_a_viewer_where_data_lies(client, shop, installation, places):
    error = telling(installation)
    done = {"key": f"shop/{NAME}", "size": 7, "duration": 9, "mode": "client-aes256"}
    notes = [f"s3://{installation.database('shop').s3.bucket}/shop/{NAME}: its date can't be true"]
    upload = done | {"bytes_sent": 7, "bytes_copied": 0, "full_because": f"it could not be looked at: {error['what']}"}
    good = shop.add("backup", results={"upload": upload, "verify": done, "cleanup": {"local": [], "notes": notes}})
    conf = {"key": done["key"]}
    run_ids = {kind: shop.add(kind, "failed", error=error, conf=conf) for kind in ("backup", "verify", "restore")}
    run_ids["sync"] = shop.add("sync", "failed", error=telling(installation, "ReplicationError"))
    everything = ""
    for path in (*paths(run_ids), f"/duckling/runs/duckling_backup__shop/{good}"):
        everything += client.get(path, headers={"Accept": "text/html"}).text
        for role in ("VIEWER", "USER"):
            headers = {"Authorization": f"Bearer {token(role)}", "Accept": "text/html"}
            text = client.get(path, headers=headers).text
            assert told(text, places) == set(), (path, role)
            assert "refused" in text or "/runs/" not in path, path  # the rest of a reason stays
    assert told(everything, places) == set(places) - {"crm-backups"}  # the texts do hold them


def test_no_error_of_a_store_tells_it_either(client, shop, installation, places):
    as_user = {"Authorization": f"Bearer {token('USER')}"}
    s3 = installation.database("shop").entry["s3"]
    for change in ({"bucket": "there-is-no-such-bucket"}, {"endpoint": "http://127.0.0.1:9"}):
        installation.write(dict(installation.database("shop").entry) | {"s3": s3 | change})
        asked = [
            client.get("/api/backups?db=shop", headers=as_user),
            client.post("/api/databases/shop/s3/test", headers=as_user),
            client.post("/api/databases/shop/s3/test?steps=true", headers=as_user),
            client.post("/api/backups/s3/verify?db=shop", json={"key": "latest"}, headers=as_user),
            client.post("/duckling/databases/shop/test", headers=as_user | {"Accept": "text/html"}),
            client.get("/duckling/databases/shop/restore", headers=as_user | {"Accept": "text/html"}),
        ]
        for answer in asked:
            assert told(answer.text, (*places, "there-is-no-such-bucket")) == set(), answer.request.url
    assert "127.0.0.1" in client.get("/api/backups?db=shop").json()["error"]


def test_a_run_that_fails_while_its_caller_waits_does_not_tell_it(client, shop, installation, places, monkeypatch):
    from duckling_provider.web.services import runs

    monkeypatch.setattr(runs, "begin", lambda kind, *_, **__: failed(kind))

    def failed(kind):
        return runs.Begun(f"duckling_{kind}__shop", shop.add(kind, "failed", error=telling(installation)))

    for headers, telltale in (
        ({}, set(places) - {"crm-backups"}),
        ({"Authorization": f"Bearer {token('USER')}"}, set()),
    ):
        answer = client.post("/api/backups/s3?db=shop", headers=headers)
        assert (answer.status_code, told(answer.text, places)) == (502, telltale)
        assert NAME in answer.json()["error"]


def test_the_forms_of_a_user_name_no_bucket_and_his_run_has_no_log(page, shop, installation, places):
    key = back_up(installation.database("shop"))
    run_id = shop.add("backup", "running")
    assert "data-logs" in page(f"runs/duckling_backup__shop/{run_id}").text
    assert "data-logs" not in page(f"runs/duckling_backup__shop/{run_id}", role="VIEWER").text
    for role, shown in (("ADMIN", True), ("OP", True), ("USER", False)):
        asked = page(f"databases/shop/delete?key={key}", role=role)
        if asked.status_code == 200:
            assert bool(told(asked.text, places)) is shown, role
        tested = page.post("databases/shop/test", role=role).text
        assert bool(told(tested, places)) is shown, role


def test_a_database_may_be_called_like_its_bucket(shop, installation):
    from duckling_provider.web.services.privacy import hiding

    entry = dict(installation.database("shop").entry)
    installation.write(entry | {"name": "Shop", "s3": entry["s3"] | {"bucket": "shop", "region": "auto"}})
    hide = hiding(None, [installation.database("shop")])
    text = 'a backup of "shop" is under way; automatic retries go on, in 1.5 s, for shop/' + NAME
    assert hide(text) == text
    assert hide("127.0.0.1:9000, [fe80::1]:9000 and https://x.example/y.") == "…, … and …."
