"""The REST API in Airflow's real application, with a real store and real rows in the metadata database.

No scheduler runs here: what a run leaves behind is written by `Runs`, as tasks would. tests/live has the whole way.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.base.moments import stamp_of
from duckling_provider.oversight.audit import read_audit
from duckling_provider.replica.origin import plain_host
from duckling_provider.stores.s3 import open_store

pytestmark = [pytest.mark.airflow, pytest.mark.server]

KEY = "0123456789abcdef" * 4
API_KEY = "an-api-key-of-the-tests"
NOW = datetime.now(timezone.utc)


@pytest.fixture
def client(airflow_app, installation, monkeypatch):
    """`client(method, path, …)` with the API key; the API's limits are as good as off."""
    from starlette.testclient import TestClient

    from duckling_provider.web.services import limits

    limits._limiter.storage.reset()  # what earlier tests guessed
    monkeypatch.setenv("DUCKLING_API_KEY", API_KEY)
    monkeypatch.setenv("DUCKLING_API_RATE", "100000/second")
    test_client = TestClient(airflow_app, raise_server_exceptions=False)
    test_client.headers["Authorization"] = f"Bearer {API_KEY}"
    return test_client


def token(role: str) -> str:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=role.lower(), role=role))


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


class Runs:
    """Writes what runs leave in the metadata database."""

    def __init__(self, database_id: str) -> None:
        self.database_id = database_id

    def add(
        self,
        kind: str,
        state: str = "success",
        *,
        results: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        seconds: float = 12.5,
        run_id: str | None = None,
        conf: dict[str, Any] | None = None,
    ) -> str:
        from airflow.api.common.trigger_dag import trigger_dag
        from airflow.utils.session import create_session
        from airflow.utils.types import DagRunTriggeredByType

        run_id = run_id or f"made__{kind}__{time.monotonic_ns()}"
        with create_session() as session:
            now = datetime.now(timezone.utc)
            end = now if state in ("success", "failed") else None
            dag_id = f"duckling_{kind}__{self.database_id}"
            by = DagRunTriggeredByType.TEST
            row = trigger_dag(dag_id=dag_id, run_id=run_id, triggered_by=by, conf=conf, session=session)
            row.state = state  # sets the dates as well
            row.start_date, row.end_date = now - timedelta(seconds=seconds), end
            session.flush()
            self._leave(session, row, results or {}, error)
        return run_id

    def end(self, kind: str, run_id: str, state: str, *, results: Any = None, error: Any = None) -> None:
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session

        with create_session() as session:
            row = session.query(DagRun).filter_by(dag_id=f"duckling_{kind}__{self.database_id}", run_id=run_id).one()
            self._leave(session, row, results or {}, error)
            row.state = state  # sets the dates as well
            row.start_date, row.end_date = NOW - timedelta(seconds=7), NOW

    def _leave(self, session: Any, row: Any, results: dict[str, Any], error: dict[str, Any] | None) -> None:
        from airflow.models.xcom import XComModel

        found = [(task, "return_value", value) for task, value in results.items()]
        task = {"backup": "upload"}.get(kind := row.dag_id.split("_")[1], kind)
        found += [(task, "error", error)] if error else []
        for task, key, value in found:
            session.add(
                XComModel(dag_run_id=row.id, dag_id=row.dag_id, run_id=row.run_id, task_id=task, key=key, value=value)
            )

    def backed_up(self, *, hours_ago: float = 1.0, size: int = 1000, **more: Any) -> str:
        """A verified backup of that age; returns its key."""
        key = f"{self.database_id}/{backup_name(stamp_of(NOW - timedelta(hours=hours_ago)))}"
        done = {"key": key, "size": size, "duration": 9, "mode": "client-aes256"}
        self.add("backup", results={"snapshot": done, "upload": done, "verify": done}, **more)
        return key


@pytest.fixture
def add_dags(installation, parse_dags, save_dags, saved_dags):
    """Put the DAGs of databases.json into the metadata database, without runs."""

    def add(*database_ids: str) -> tuple[Runs, ...]:
        from airflow.models.dag import DagModel
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session

        from duckling_provider.config.environment import Settings
        from duckling_provider.tasks.transfer_pool import create_missing

        # Which DAGs an entry has goes by the fields that it has.
        entries = json.loads((installation.data_path / "databases.json").read_text())
        kind = tuple((entry["id"], *sorted(entry)) for entry in entries)
        with create_session() as session:
            there = session.query(DagModel).filter(DagModel.dag_id.in_(saved_dags.get(kind, [])), ~DagModel.is_stale)
            is_known = kind in saved_dags and there.count() == len(saved_dags[kind])
        if not is_known:
            bag = parse_dags()
            save_dags(bag)
            saved_dags.clear()  # a DAG of the same name may have been of another kind
            saved_dags[kind] = list(bag.dags)
        create_missing(Settings.from_env({}))
        with create_session() as session:
            for row in session.query(DagRun).filter(DagRun.dag_id.like(r"duckling\_%", escape="\\")):
                session.delete(row)
        return tuple(Runs(database_id) for database_id in database_ids)

    return add


@pytest.fixture
def shop(installation, s3_server, make_replica, add_dags):
    """The database `shop` with its replica, an empty bucket and its DAGs."""
    s3 = s3_server.s3(s3_server.new_bucket(), encryption="client-aes256", encryptionKey=KEY)
    installation.write(installation.entry("shop", s3=s3))
    make_replica(installation.replica("shop"), rows=50)
    (runs,) = add_dags("shop")
    return runs


def back_up(database: Any) -> str:
    from duckling_provider.backup.flow import back_up
    from duckling_provider.stores.s3 import open_store

    done = back_up(database, open_store(database))
    assert done.upload is not None
    return str(done.upload.key)


# ---- who may ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/api/backups?db=shop", "/api/databases", "/api/automation/status?db=shop", "/metrics"]
)
def test_nobody_gets_in_without_credentials_or_with_wrong_ones(client, shop, path):
    for headers in (
        {"Authorization": ""},
        bearer("wrong"),
        bearer("a.b.c"),
        {"Authorization": "Basic eDp5"},
        bearer(" "),
    ):
        answer = client.get(path, headers=headers)
        assert (answer.status_code, answer.json()["success"]) == (401, False)


def test_without_a_configured_key_that_way_is_off(client, shop, monkeypatch):
    monkeypatch.delenv("DUCKLING_API_KEY")
    assert client.get("/api/backups?db=shop").status_code == 401
    assert client.get("/api/backups?db=shop", headers=bearer("")).status_code == 401
    assert client.get("/api/backups?db=shop", headers=bearer(token("VIEWER"))).status_code == 200


def test_a_viewer_may_look_and_change_nothing(client, shop, installation):
    as_viewer = bearer(token("VIEWER"))
    before = (installation.data_path / "databases.json").read_bytes()
    for path in (
        "/api/backups?db=shop",
        "/api/databases",
        "/api/automation/status?db=shop",
        "/metrics",
        "/health?db=shop",
    ):
        assert client.get(path, headers=as_viewer).status_code in (200, 503), path
    for method, path, body in [
        ("POST", "/api/backups/s3?db=shop", None),
        ("POST", "/api/backups/s3/restore?db=shop", {"key": "latest"}),
        ("POST", "/api/backups/s3/verify?db=shop", {"key": "latest"}),
        ("DELETE", "/api/backups/s3?db=shop&key=shop/x.db", None),
        ("POST", "/api/backups/s3/pin?db=shop", {"key": "shop/x.db"}),
        ("DELETE", "/api/backups/s3/pin?db=shop&key=shop/x.db", None),
        ("GET", "/api/databases/shop/s3", None),
        ("PUT", "/api/databases/shop/s3", {"enabled": False}),
        ("DELETE", "/api/databases/shop/s3", None),
        ("POST", "/api/databases/shop/s3/test", None),
    ]:
        answer = client.request(method, path, headers=as_viewer, json=body)
        assert (answer.status_code, answer.json()["success"]) == (403, False), (method, path)
    assert (installation.data_path / "databases.json").read_bytes() == before


def test_a_cookie_counts_for_pages_of_this_server_only(client, shop):
    del client.headers["Authorization"]
    client.cookies.set("_token", token("ADMIN"))
    test = "/api/databases/shop/s3/test"
    assert client.get("/api/backups?db=shop").status_code == 200
    assert client.post(test).status_code == 403
    assert client.post(test, headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post(test, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post(test, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert client.post(test, headers={"Origin": "http://testserver"}).status_code == 200


def test_after_too_many_wrong_tokens_the_right_one_is_told_from_none(client, shop):
    guesses = [client.get("/api/databases", headers=bearer(f"guess-{n}")).status_code for n in range(32)]
    assert guesses == [401] * 30 + [429] * 2
    right = client.get("/api/databases")
    assert (right.status_code, int(right.headers["Retry-After"]) > 0) == (429, True)
    assert client.get("/health", headers={"Authorization": ""}).status_code == 503  # who shows no token guesses none


def test_right_tokens_are_not_counted_as_guesses(client, shop):
    assert {client.get("/api/databases").status_code for _ in range(40)} == {200}
    assert {client.get("/api/databases", headers=bearer("wrong")).status_code for _ in range(30)} == {401}


def caller_at(client: Any, address: str) -> Any:
    """`client` as it looks from another address; ``ask(token)`` is the status of its answer."""
    from starlette.testclient import TestClient

    other = TestClient(client.app, client=(address, 4711), raise_server_exceptions=False)
    return lambda text, **headers: other.get("/api/databases", headers=bearer(text) | headers).status_code


@pytest.mark.parametrize(
    ("guesser", "same", "other"),
    [
        ("10.0.0.7", "::ffff:10.0.0.7", "10.0.0.8"),
        ("2001:db8:1:2::7", "2001:db8:1:2:ffff::8", "2001:db8:1:3::7"),
        ("fe80::1%eth0", "fe80::2", "::1"),
    ],
)
def test_guesses_count_by_what_one_machine_has_at_its_disposal(client, shop, guesser, same, other):
    for _ in range(15):
        assert {caller_at(client, address)("wrong") for address in (guesser, same)} == {401}
    assert {caller_at(client, address)(API_KEY) for address in (guesser, same)} == {429}
    assert caller_at(client, other)(API_KEY) == 200


def test_a_forwarded_address_neither_frees_a_guesser_nor_blocks_another(client, shop):
    ask = caller_at(client, "10.0.0.7")
    forged = [{"X-Forwarded-For": f"10.1.0.{n}", "Forwarded": f"for=10.1.0.{n}"} for n in range(31)]
    assert [ask("wrong", **headers) for headers in forged] == [401] * 30 + [429]
    assert ask(API_KEY, **{"X-Forwarded-For": "10.1.0.99"}) == 429
    assert caller_at(client, "10.1.0.1")(API_KEY) == 200


def test_of_guesses_at_the_same_time_only_thirty_are_answered(client, shop, monkeypatch):
    """All are let in before the first is judged, the right one among them."""
    from duckling_provider.web.services import dependencies

    begun = threading.Barrier(40)
    identify = dependencies.identify_caller

    async def slowly(request):
        from starlette.concurrency import run_in_threadpool

        await run_in_threadpool(begun.wait, 60)
        return await identify(request)

    monkeypatch.setattr(dependencies, "identify_caller", slowly)
    ask, answers = caller_at(client, "10.0.0.7"), []
    tokens = [f"wrong-{n}" for n in range(39)] + [API_KEY]
    threads = [threading.Thread(target=lambda text=text: answers.append(ask(text))) for text in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers.count(401) == 30
    assert answers.count(401) + answers.count(429) + answers.count(200) == 40
    assert ask(API_KEY) == 429


def test_a_guesser_is_forgotten_when_the_minute_is_over(client, shop, monkeypatch):
    from duckling_provider.web.services import limits

    ask = caller_at(client, "10.0.0.7")
    assert [ask("wrong") for _ in range(31)][-1] == 429
    later = time.time() + 61
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: later)
    assert ask(API_KEY) == 200
    for n in range(50):
        caller_at(client, f"10.2.0.{n}")("wrong")
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: later + 61)
    limits._limiter.storage._MemoryStorage__expire_events()
    assert (limits._limiter.storage.storage, limits._limiter.storage.events) == ({}, {})


def test_a_short_api_key_is_warned_of(client, shop, monkeypatch):
    from duckling_provider import config

    monkeypatch.setenv("DUCKLING_API_KEY", "short")
    (warning,) = (w for w in config.load().warnings if w.startswith("DUCKLING_API_KEY"))
    assert "5 characters" in warning
    assert "short" not in warning
    monkeypatch.setenv("DUCKLING_API_KEY", "x" * 24)
    assert not any(w.startswith("DUCKLING_API_KEY") for w in config.load().warnings)


def test_writes_are_counted(client, shop, monkeypatch):
    from duckling_provider.web.services import limits

    limits._limiter.storage.reset()
    monkeypatch.setenv("DUCKLING_API_RATE", "2/hour")
    answers = [client.post("/api/databases/shop/s3/test") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["Retry-After"]) > 0
    assert client.get("/api/backups?db=shop").status_code == 200


# ---- backups ---------------------------------------------------------------------------------------------------


def test_backups_are_listed_newest_first_without_macs(client, shop, installation):
    first, second = back_up(installation.database("shop")), back_up(installation.database("shop"))
    found = client.get("/api/backups?db=shop").json()
    assert [b["key"] for b in found["s3"]] == [second, first]
    assert [b["filename"] for b in found["local"]] == [second.removeprefix("shop/"), first.removeprefix("shop/")]
    assert set(found) == {"local", "s3"}
    assert set(found["s3"][0]) == {
        "key", "size", "lastModified", "complete", "state", "stateAt", "pinned", "keyFingerprint", "origin", "bytesSent"
    }  # fmt: skip
    assert set(found["local"][0]) == {
        "filename", "size", "createdAt", "complete", "state", "stateAt", "pinned", "origin"
    }  # fmt: skip


def test_a_listing_tells_what_is_known_of_each_backup_and_pins_it(client, shop, installation):
    database = installation.database("shop")
    good, bad = back_up(database), back_up(database)
    store = open_store(database)
    record_state(database, store, store.head(bad), "disproved", means="full", reason="cut off")

    def states():
        found = client.get("/api/backups?db=shop").json()
        assert all(datetime.fromisoformat(b["stateAt"]) for b in found["s3"])
        assert [b["state"] for b in found["local"]] == ["verified", "verified"]
        return [(b["key"], b["state"], b["pinned"]) for b in found["s3"]]

    assert states() == [(bad, "disproved", False), (good, "verified", False)]
    pinned = client.post("/api/backups/s3/pin?db=shop", json={"key": good.removeprefix("shop/")})
    assert (pinned.status_code, pinned.json()) == (200, {"success": True, "key": good, "pinned": True})
    assert states() == [(bad, "disproved", False), (good, "verified", True)]
    assert client.delete(f"/api/backups/s3/pin?db=shop&key={good}").json()["pinned"] is False
    assert states()[1] == (good, "verified", False)
    gone = client.post("/api/backups/s3/pin?db=shop", json={"key": "backup-2025-03-01T14-32-11-482Z.db"})
    assert (gone.status_code, gone.json()["success"]) == (404, False)


def test_a_listing_tells_the_key_and_the_replica_of_each_backup(client, shop, installation):
    database = installation.database("shop")
    first = back_up(database)
    Path(f"{installation.replica('shop')}.duckling-origin").unlink()  # another machine's replica from now on
    second = back_up(database)
    found = client.get("/api/backups?db=shop").json()
    stored = {b["key"]: b for b in found["s3"]}
    assert {b["keyFingerprint"] for b in stored.values()} == {database.s3.encryption_key.fingerprint}
    assert stored[first]["origin"]["replica"] != stored[second]["origin"]["replica"]
    assert {b["origin"]["host"] for b in (*stored.values(), *found["local"])} == {plain_host(database.here)}
    assert [b["origin"] for b in found["local"]] == [stored[second]["origin"], stored[first]["origin"]]


def test_a_backup_of_another_size_than_recorded_is_incomplete(client, shop, installation, s3_server):
    database = installation.database("shop")
    key = back_up(database)
    cut_short(s3_server.client(), database.s3.bucket, key)
    (database.backup_dir / key.removeprefix("shop/")).write_bytes(b"short")
    found = client.get("/api/backups?db=shop").json()
    assert [b["complete"] for b in (*found["s3"], *found["local"])] == [False, False]


def test_who_pinned_deleted_and_changed_what_stands_in_the_audit_and_in_airflow_s_log(client, shop, installation):
    from airflow.models.log import Log
    from airflow.utils.session import create_session

    database = installation.database("shop")
    key = back_up(database)
    as_admin = bearer(token("ADMIN"))
    client.post("/api/backups/s3/pin?db=shop", json={"key": key}, headers=as_admin)
    client.delete(f"/api/backups/s3?db=shop&key={key}")
    shown = client.get("/api/databases/shop/s3").json()["s3"]
    client.put("/api/databases/shop/s3", json={**shown, "s3BackupRetentionDays": 3})
    lines = [(line.what, line.by, line.key, line.detail) for line in read_audit(database.backup_path)]
    wanted = [
        ("change", "DUCKLING_API_KEY", "", "s3.s3BackupRetentionDays"),
        ("delete", "DUCKLING_API_KEY", key, ""),
        ("pin", "admin", key, ""),
    ]
    assert lines == wanted
    with create_session() as session:
        rows = session.query(Log).filter(Log.dag_id == "duckling_backup__shop", Log.event.like("duckling%"))
        told = [(row.event, row.owner) for row in rows.order_by(Log.id.desc()).limit(3)]
    assert told == [(f"duckling_{what}", by) for what, by, _, _ in wanted]


def cut_short(client: Any, bucket: str, key: str) -> None:
    """Take the end off an object; its metadata stay."""
    stored = client.get_object(Bucket=bucket, Key=key)
    client.put_object(Bucket=bucket, Key=key, Body=stored["Body"].read()[:-100], Metadata=stored["Metadata"])


def answered_when_ended(client: Any, shop: Runs, kind: str, path: str, **end: Any) -> Any:
    """The answer to a POST whose run is ended in the way that `end` says, once it is there."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    body = end.pop("body", None)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.post(path, json=body)))
    thread.start()
    deadline = time.monotonic() + 30
    while True:
        with create_session() as session:
            row = session.query(DagRun).filter_by(dag_id=f"duckling_{kind}__shop", state="queued").one_or_none()
            run_id, conf = (row.run_id, row.conf) if row else (None, None)
        if run_id:
            break
        assert thread.is_alive() or answers, "it neither answers nor waits"
        assert time.monotonic() < deadline, answers
        time.sleep(0.05)
    shop.end(kind, run_id, **end)
    thread.join(timeout=30)
    return answers[0], conf


def test_a_backup_is_answered_with_the_result_of_its_run(client, shop):
    done = {"key": "shop/backup-2025-03-01T14-32-11-482Z.db", "size": 214748364800, "duration": 5, "mode": "none"}
    answer, _ = answered_when_ended(
        client, shop, "backup", "/api/backups/s3?db=shop", state="success", results={"upload": done, "verify": done}
    )
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "key": done["key"], "size": 214748364800, "duration": 7000}


def test_a_restore_carries_the_key_and_is_answered_with_its_result(client, shop, installation):
    key = back_up(installation.database("shop"))
    done = {"key": key, "size": 10, "duration": 5, "path": "/x", "kept": None}
    answer, conf = answered_when_ended(
        client, shop, "restore", "/api/backups/s3/restore?db=shop", body={"key": key}, state="success",
        results={"restore": done},
    )  # fmt: skip
    assert conf == {"key": key}
    assert answer.json() == {"success": True, "key": key, "size": 10, "duration": 7000}  # of the run, as of a backup


def test_the_original_calls_for_local_backups_name_their_file(client, shop, installation):
    database = installation.database("shop")
    answer = client.post("/api/automation/restore?db=shop")
    assert (answer.status_code, "no local backup" in answer.json()["error"]) == (404, True)
    name = back_up(database).removeprefix("shop/")
    done = {"key": name, "size": 10, "duration": 5, "path": "/x", "kept": None}
    for kind, task, conf in (("backup", "snapshot", {}), ("restore", "restore", {"key": "latest", "local": True})):
        answer, given = answered_when_ended(
            client, shop, kind, f"/api/automation/{kind}?db=shop", state="success", results={task: done}
        )
        assert given == conf
        assert set(answer.json()) == {"success", "message", "path"}
        assert answer.json()["path"] == str(database.backup_path / name)


ODD = ["", "db=", "db=%20shop", "db=SHOP", "db=../shop", "db=shop%00", "db=shop%2F", "database=shop", "db=shop&db=shop"]
ODD += ["db=shop&db=crm", "db=" + "x" * 300, "db=%F0%9F%A6%86", "db=%F0", "db[]=shop", "db=shop&wait=maybe", "db=*"]


@pytest.mark.parametrize("call", ["backup", "restore"])
def test_an_odd_database_begins_nothing(client, shop, installation, call):
    back_up(installation.database("shop"))
    for query in ODD:
        answer = client.post(f"/api/automation/{call}?{query}")
        assert answer.status_code in (400, 404), query
        assert (answer.json()["success"], answer.json()["error"] != "") == (False, True), query
    assert client.get("/api/automation/status?db=shop&db=crm").json()["error"] == "db: given more than once"
    assert client.post(f"/api/automation/{call}?db=shop&wait=false").status_code == 202


def test_an_incomplete_backup_says_so(client, shop, installation, s3_server):
    key = back_up(installation.database("shop"))
    assert [b["complete"] for b in client.get("/api/backups?db=shop").json()["s3"]] == [True]
    s3_server.client().delete_object(Bucket=installation.database("shop").s3.bucket, Key=key + ".mac")
    assert [b["complete"] for b in client.get("/api/backups?db=shop").json()["s3"]] == [False]


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_run_that_fails_while_it_is_read_has_its_reason(client, shop, moment):
    from airflow.utils.session import create_session
    from sqlalchemy import event

    from duckling_provider.web.services.queries import read_run

    run_id, error = shop.add("backup", state="running"), {"kind": "NotFoundError", "what": "it went"}
    reader, statements = threading.get_ident(), []

    def before(connection, cursor, statement, *_):
        if threading.get_ident() == reader:
            statements.append(statement)
            if len(statements) == moment:
                ending = threading.Thread(target=shop.end, args=("backup", run_id, "failed"), kwargs={"error": error})
                ending.start()
                ending.join()

    with create_session() as session:
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", before)
        try:
            run, _, _ = read_run(session, "duckling_backup__shop", run_id)
        finally:
            event.remove(engine, "before_cursor_execute", before)
    assert len(statements) in (4, 5, 6)  # what keeps a run waiting is asked only where it is active
    assert (run.state, run.error) in [("running", error), ("running", None), ("failed", error)]


@pytest.mark.parametrize(
    "kind,status",
    [
        ("AccessDeniedError", 502),
        ("IntegrityError", 502),
        ("BusyError", 409),
        ("NotFoundError", 404),
        ("NoSpaceError", 500),
    ],
)
def test_a_failed_run_is_answered_with_its_reason(client, shop, kind, status):
    error = {"kind": kind, "what": "s3://b/k: it went wrong", "hint": "Do this.", "retryable": False}
    answer, _ = answered_when_ended(client, shop, "backup", "/api/backups/s3?db=shop", state="failed", error=error)
    assert answer.status_code == status
    assert answer.json()["error"] == "s3://b/k: it went wrong. Do this."
    assert answer.json()["success"] is False


def test_without_waiting_the_run_is_named(client, shop):
    answer = client.post("/api/backups/s3?db=shop&wait=false")
    assert answer.status_code == 202
    run_id = answer.json()["runId"]
    assert answer.json()["url"].startswith("/dags/duckling_backup__shop/runs/manual__")
    again = client.post("/api/backups/s3?db=shop&wait=false")
    assert (again.status_code, again.json()["runId"]) == (409, run_id)
    assert run_id in again.json()["error"]


def test_of_many_at_once_one_begins(client, shop):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/api/backups/s3?db=shop&wait=false").status_code))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [202, 409, 409, 409, 409, 409]


def test_a_restore_is_refused_while_a_backup_is_under_way(client, shop, installation):
    key = back_up(installation.database("shop"))
    shop.add("backup", "running")
    answer = client.post("/api/backups/s3/restore?db=shop", json={"key": key})
    assert answer.status_code == 409
    assert "a backup of" in answer.json()["error"]


def test_a_paused_dag_is_told_instead_of_waited_for(client, shop):
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.get(DagModel, "duckling_backup__shop").is_paused = True
    try:
        answer = client.post("/api/backups/s3?db=shop")
    finally:
        with create_session() as session:
            session.get(DagModel, "duckling_backup__shop").is_paused = False
    assert (answer.status_code, "paused" in answer.json()["error"]) == (409, True)


@pytest.mark.parametrize(
    "key,status",
    [
        ("other/backup-2025-03-01T14-32-11-482Z.db", 400),
        ("shop/../other/backup-2025-03-01T14-32-11-482Z.db", 400),
        ("/etc/passwd", 400),
        ("shop/inner/backup-2025-03-01T14-32-11-482Z.db", 400),
        ("shop/backup-2025-03-01T14-32-11-482Z.db.mac", 400),
        ("shop/a\u0000b", 400),
        ("", 400),
        ("k" * 5000, 400),
        ("shop/backup-2025-03-01T14-32-11-482Z.db", 404),
        ("backup-2025-03-01T14-32-11-482Z.db", 404),
    ],
)
def test_keys_that_are_none_are_refused_before_anything_begins(client, shop, key, status):
    for path in ("/api/backups/s3/restore?db=shop", "/api/backups/s3/verify?db=shop"):
        answer = client.post(path, json={"key": key})
        assert (answer.status_code, answer.json()["success"]) == (status, False)
    assert client.delete("/api/backups/s3", params={"db": "shop", "key": key}).status_code == status


def test_a_body_of_another_type_is_told_which_header_it_needs(client, shop):
    for type_, told in (("application/x-www-form-urlencoded", "x-www-form-urlencoded"), (None, "has none")):
        headers = {"Content-Type": type_} if type_ else {}
        answer = client.post("/api/backups/s3/restore?db=shop", content=b'{"key": "latest"}', headers=headers)
        assert answer.status_code == 400
        assert "Content-Type: application/json" in answer.json()["error"]
        assert told in answer.json()["error"]


@pytest.mark.parametrize(
    "content,type_",
    [
        (b"{", "application/json"),
        (b'{"key": 5}', "application/json"),
        (b'{"key": "latest", "target_path": "/x"}', "application/json"),
        (b"[]", "application/json"),
        (b"", "application/json"),
        (b"key=latest", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "application/json"),
        (b'{"key":' + b"[" * 3000, "application/json"),
    ],
)
def test_bodies_that_are_none_are_refused_in_the_contracts_shape(client, shop, content, type_):
    answer = client.post("/api/backups/s3/restore?db=shop", content=content, headers={"Content-Type": type_})
    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert isinstance(answer.json()["error"], str)


def test_latest_stays_latest_for_the_worker_to_compare_origins(client, shop, installation):
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    back_up(installation.database("shop"))
    begun = client.post("/api/backups/s3/restore?db=shop&wait=false", json={"key": "latest", "any_origin": True})
    assert begun.status_code == 202
    with create_session() as session:
        conf = session.scalar(select(DagRun.conf).where(DagRun.run_id == begun.json()["runId"]))
    assert conf == {"key": "latest", "any_origin": True}


def test_a_body_ends_somewhere(client, shop):
    answer = client.post("/api/backups/s3/restore?db=shop", content=b'{"key": "' + b"x" * 200_000 + b'"}')
    assert (answer.status_code, answer.json()["success"]) == (413, False)


def test_a_backup_is_deleted_with_its_mac(client, shop, installation, s3_server):
    database = installation.database("shop")
    key = back_up(database)
    answer = client.delete("/api/backups/s3", params={"db": "shop", "key": key})
    assert answer.status_code == 200
    listed = s3_server.client().list_objects_v2(Bucket=database.s3.bucket)
    assert listed.get("Contents", []) == []


@pytest.mark.parametrize("versioned", [False, True])
def test_a_deletion_says_what_a_bucket_with_versions_keeps(
    client, installation, moto_server, make_replica, add_dags, versioned
):
    bucket = moto_server.new_bucket()
    if versioned:
        state = {"Status": "Enabled"}
        moto_server.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration=state)
    installation.write(installation.entry("shop", s3=moto_server.s3(bucket)))
    make_replica(installation.replica("shop"), rows=5)
    add_dags("shop")
    key = back_up(installation.database("shop"))
    answer = client.delete("/api/backups/s3", params={"db": "shop", "key": key}).json()
    assert (answer["success"], answer["key"]) == (True, key)
    assert ("noncurrent version" in " ".join(answer.get("warnings", []))) is versioned
    assert set(answer) - {"warnings"} == {"success", "key", "size"}
    key = back_up(installation.database("shop"))
    client.cookies.set("_token", token("ADMIN"))
    browser = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin", "Authorization": ""}
    asked = client.get(f"/duckling/databases/shop/delete?key={key}", headers=browser).text
    assert "versioning or object lock" in asked
    done = client.post("/duckling/databases/shop/delete", data={"key": key, "typed": "shop"}, headers=browser).text
    assert ("noncurrent version" in done, "Deleted:" in done) == (versioned, True)


def test_a_deleted_backup_vouches_for_nothing_any_more(client, shop, installation):
    key = back_up(installation.database("shop"))
    older = shop.backed_up(hours_ago=2)
    done = {"key": key, "size": 7, "duration": 9, "mode": "client-aes256"}
    shop.add("backup", results={"snapshot": done, "upload": done, "verify": done})
    shop.add("verify", results={"verify": done})

    def stands() -> Any:
        return client.get("/health?db=shop").json()["details"][0]["lastVerifiedKey"]

    assert stands() == key
    assert client.delete("/api/backups/s3", params={"db": "shop", "key": key}).status_code == 200
    assert stands() == older


def test_a_backup_is_not_deleted_while_it_may_be_read(client, shop, installation):
    key = back_up(installation.database("shop"))
    shop.add("restore", "running")
    assert client.delete("/api/backups/s3", params={"db": "shop", "key": key}).status_code == 409


def silent_store(monkeypatch: Any, s3: dict[str, Any]) -> dict[str, Any]:
    """`s3` with an endpoint that takes connections and never answers; a request gives up on it after a moment."""
    import socket

    from duckling_provider.web.services import actions

    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(actions, "STORE_SECONDS", 0.2)
    monkeypatch.setattr(actions, "_silent_in_a_test", listener, raising=False)  # kept open until the test ends
    return s3 | {"endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}"}


@pytest.mark.parametrize("silent", [False, True])
def test_local_backups_are_answered_while_the_store_is_down_or_silent(
    client, shop, installation, s3_server, monkeypatch, silent
):
    name = back_up(installation.database("shop")).removeprefix("shop/")
    s3 = s3_server.s3("there-is-no-such-bucket")
    installation.write(installation.entry("shop", s3=silent_store(monkeypatch, s3) if silent else s3))
    answer = client.get("/api/backups?db=shop")
    assert (answer.status_code, answer.json()["success"]) == (502, False)
    assert ("did not answer within" if silent else "bucket") in answer.json()["error"]
    assert [b["filename"] for b in answer.json()["local"]] == [name]


def test_a_store_that_is_gone_is_a_502(client, installation, s3_server, add_dags):
    s3 = s3_server.s3("there-is-no-such-bucket")
    installation.write(installation.entry("shop", s3=s3))
    add_dags("shop")
    for method, path in [("GET", "/api/backups?db=shop"), ("POST", "/api/databases/shop/s3/test")]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert "bucket" in answer.json()["error"]


def test_a_refused_connection_test_begins_with_the_stores_words(client, installation, moto_auth_server, add_dags):
    nobody = moto_auth_server.user("s3:PutObject")
    installation.write(installation.entry("shop", s3=nobody.s3(moto_auth_server.new_bucket())))
    add_dags("shop")
    answer = client.post("/api/databases/shop/s3/test")
    assert answer.status_code == 502
    assert answer.json()["error"].startswith("AccessDenied: Access Denied")
    assert "s3:ListBucket" in answer.json()["error"]


def test_the_connection_test_speaks_the_contracts_words(client, shop):
    answer = client.post("/api/databases/shop/s3/test")
    assert answer.json() == {"success": True, "message": "S3 connection successful (HeadBucket)"}
    steps = client.post("/api/databases/shop/s3/test?steps=true").json()["steps"]
    assert [step["name"] for step in steps][:2] == ["bucket", "put, and head with encryption"]


def test_a_database_without_s3_lists_its_local_backups_and_refuses_the_rest(
    client, installation, make_replica, add_dags
):
    from duckling_provider.backup.flow import back_up

    installation.write(installation.entry("shop"))
    make_replica(installation.replica("shop"), rows=10)
    add_dags("shop")
    back_up(installation.database("shop"), None)
    found = client.get("/api/backups?db=shop").json()
    assert (len(found["local"]), found["s3"]) == (1, [])
    for path in ("/api/backups/s3?db=shop", "/api/databases/shop/s3/test"):
        assert client.post(path).status_code == 400


def test_unknown_databases_and_paths_are_404(client, shop):
    for path in ("/api/backups?db=shpo", "/api/automation/status?db=shpo", "/api/databases/shpo/s3", "/api/backups/x"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["success"]) == (404, False)
    assert client.get("/api/backups").status_code == 400


# ---- databases -------------------------------------------------------------------------------------------------


def test_no_answer_holds_a_secret(client, shop, installation, tmp_path):
    (tmp_path / "older").write_text("b7" * 32)
    (tmp_path / "older").chmod(0o600)
    entry = dict(installation.database("shop").entry)
    entry["s3"] = {**entry["s3"], "previousEncryptionKeys": ["a6" * 32, {"file": str(tmp_path / "older")}]}
    installation.write(entry)
    secrets = installation.database("shop").secrets()
    assert {"a6" * 32, "b7" * 32} <= set(secrets)
    key = back_up(installation.database("shop"))
    shop.backed_up()
    answers = [
        client.get("/api/databases"),
        client.get("/api/databases/shop/s3"),
        client.put("/api/databases/shop/s3", json=client.get("/api/databases/shop/s3").json()["s3"]),
        client.put("/api/databases/shop/s3", json={"enabled": True, "encryptionKey": secrets[0] + "x"}),
        client.put("/api/databases/shop/s3", json={"enabled": secrets[0]}),
        client.get("/api/backups?db=shop"),
        client.get("/metrics"),
        client.get("/health?db=shop"),
        client.post("/api/backups/s3/restore?db=shop", json={"key": secrets[0] + key}),
    ]
    for answer in answers:
        if answer.request.method == "POST":  # the caller's own words come back
            continue
        for secret in secrets:
            assert secret not in answer.text
    assert installation.database("shop").s3.encryption_key.hex() == KEY


def test_settings_are_read_changed_and_removed(client, shop, installation):
    s3 = client.get("/api/databases/shop/s3").json()["s3"]
    assert (s3["secretAccessKey"], s3["encryptionKey"]) == ("***", "***")
    changed = client.put("/api/databases/shop/s3", json={**s3, "s3BackupIntervalHours": 6})
    assert changed.status_code == 200
    assert installation.database("shop").interval_hours == 6
    assert installation.database("shop").s3.encryption_key.hex() == KEY
    wrong = client.put("/api/databases/shop/s3", json={**s3, "bucket": "!"})
    assert (wrong.status_code, "s3.bucket" in wrong.json()["error"]) == (400, True)
    assert client.delete("/api/databases/shop/s3").json()["s3"] is None
    assert installation.database("shop").s3 is None


def test_a_secret_that_stands_in_a_file_is_kept_by_a_change_and_never_set_by_one(client, shop, installation, tmp_path):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    entry = dict(installation.database("shop").entry)
    entry["s3"] = {**entry["s3"], "encryptionKey": {"file": str(tmp_path / "key")}}
    file = installation.write(entry)
    s3 = client.get("/api/databases/shop/s3").json()["s3"]
    assert s3["encryptionKey"] == "***"
    assert client.put("/api/databases/shop/s3", json={**s3, "s3BackupIntervalHours": 6}).status_code == 200
    assert json.loads(file.read_text())[0]["s3"]["encryptionKey"] == {"file": str(tmp_path / "key")}
    before = file.read_bytes()
    for value in ({"env": "DUCKLING_API_KEY"}, {"file": str(tmp_path / "other")}):
        refused = client.put("/api/databases/shop/s3", json={**s3, "accessKeyId": value})
        assert (refused.status_code, "not through an edit" in refused.json()["error"]) == (400, True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "https://elsewhere.example"},
        {"bucket": "another-bucket"},
        {"encryption": "none"},
        {"encryption": "sse-kms"},
        {"encryption": None},
        {"endpoint": "https://elsewhere.example", "enabled": False},
        {"endpoint": None},
        {"region": "cn-north-1"},
        {"forcePathStyle": False},
    ],
)
def test_another_place_or_weaker_encryption_needs_the_secrets_in_full(client, shop, installation, change):
    before = (installation.data_path / "databases.json").read_bytes()
    (shown,) = (entry["s3"] for entry in client.get("/api/databases").json()["databases"])
    answer = client.put("/api/databases/shop/s3", json={k: v for k, v in (shown | change).items() if v is not None})
    assert answer.status_code == 400
    assert "needs the secrets in full" in answer.json()["error"]
    assert (installation.data_path / "databases.json").read_bytes() == before
    secrets = {"secretAccessKey": "new-secret", "encryptionKey": KEY}
    full = {k: v for k, v in (shown | secrets | change).items() if v is not None}
    assert client.put("/api/databases/shop/s3", json=full).status_code == 200


@pytest.mark.parametrize("change", [{"awsConnId": "another"}, {"credentialSource": "default"}])
def test_other_credentials_need_the_key_in_full(client, shop, installation, change):
    before = (installation.data_path / "databases.json").read_bytes()
    shown = client.get("/api/databases/shop/s3").json()["s3"]
    inline = ("accessKeyId", "secretAccessKey")
    other = {name: value for name, value in shown.items() if name not in inline} | change
    answer = client.put("/api/databases/shop/s3", json=other)
    assert (answer.status_code, "needs the secrets in full" in answer.json()["error"]) == (400, True)
    assert (installation.data_path / "databases.json").read_bytes() == before
    assert client.put("/api/databases/shop/s3", json=other | {"encryptionKey": KEY}).status_code == 200


@pytest.mark.parametrize("elsewhere", [{"awsConnId": "backups"}, {"credentialSource": "default"}])
def test_credentials_that_stand_elsewhere_go_to_no_endpoint_that_an_edit_names(client, shop, installation, elsewhere):
    entry = dict(installation.database("shop").entry)
    inline = ("accessKeyId", "secretAccessKey", "encryption", "encryptionKey")
    s3 = {name: value for name, value in entry["s3"].items() if name not in inline} | elsewhere
    for there in (s3, None):
        file = installation.write(entry | {"s3": s3} if there else {k: v for k, v in entry.items() if k != "s3"})
        before = file.read_bytes()
        answer = client.put("/api/databases/shop/s3", json=s3 | {"endpoint": "https://elsewhere.example"})
        assert (answer.status_code, "not through an edit" in answer.json()["error"]) == (400, True)
        assert file.read_bytes() == before
    installation.write(entry | {"s3": s3})
    assert client.put("/api/databases/shop/s3", json=s3 | {"bucket": "another"}).status_code == 400
    assert client.put("/api/databases/shop/s3", json=s3 | {"s3BackupRetentionDays": 3}).status_code == 200


def test_other_changes_keep_the_secrets_that_are_there(client, shop, installation):
    shown = client.get("/api/databases/shop/s3").json()["s3"]
    changed = shown | {"s3BackupRetentionDays": 5, "endpoint": shown["endpoint"] + "/"}
    assert client.put("/api/databases/shop/s3", json=changed).status_code == 200
    assert installation.database("shop").s3.encryption_key.hex() == KEY


@pytest.mark.parametrize("role", ["VIEWER", "USER"])
def test_where_the_data_lies_is_for_those_who_may_edit_connections(client, shop, role):
    def entry(**options: Any) -> dict[str, Any]:
        (found,) = client.get("/api/databases", **options).json()["databases"]
        return found

    assert {"s3", "mysqlConnectionString"} <= set(entry())
    shown = entry(headers=bearer(token(role)))
    assert {"s3", "mysqlConnectionString"} & set(shown) == set()
    assert (shown["id"], shown["status"]["state"]) == ("shop", "no backup")


def test_the_list_shows_how_each_database_stands(client, shop):
    key = shop.backed_up(hours_ago=2, size=77)
    (entry,) = client.get("/api/databases").json()["databases"]
    assert entry["id"] == "shop"
    assert entry["status"]["state"] == "protected"
    assert entry["status"]["lastVerifiedKey"] == key
    assert 7200 <= entry["status"]["age"] < 10_000


def test_dates_that_cannot_be_true_are_named_everywhere(client, shop, installation, s3_server):
    done = {"key": "shop/backup-2025-03-01T14-32-11-482Z.db", "size": 7, "duration": 9, "mode": "client-aes256"}
    note = "shop/backup-2099-01-01T00-00-00-000Z.db: its name says 2099, which is in the future"
    cleaned = {"local": [], "s3": [], "notes": [note]}
    shop.add("backup", results={"snapshot": done, "upload": done, "verify": done, "cleanup": cleaned})
    assert client.get("/health?db=shop").json()["details"][0]["warnings"] == [note]
    assert client.get("/api/databases").json()["databases"][0]["status"]["warnings"] == [note]
    database = installation.database("shop")
    s3_server.client().put_object(Bucket=database.s3.bucket, Key=note.partition(":")[0], Body=b"x")
    (listed,) = client.get("/api/backups?db=shop").json()["s3"]
    assert "in the future" in listed["misdated"]


def test_automation_status_has_the_contracts_fields(client, shop):
    key = shop.backed_up(hours_ago=3)
    status = client.get("/api/automation/status?db=shop").json()
    assert set(status) == {"backup"}
    backup = status["backup"]
    assert set(backup) == {"enabled", "intervalHours", "retentionDays", "lastBackupAt", "s3Enabled", "s3LastUploadAt"}
    assert (backup["enabled"], backup["intervalHours"], backup["retentionDays"]) == (True, 24, 7)
    assert backup["lastBackupAt"].replace(":", "-").replace(".", "-") == key[len("shop/backup-") : -3]
    # The backup is of the moment in its name; the object appeared when its upload ended.
    assert NOW <= datetime.fromisoformat(backup["s3LastUploadAt"]) <= datetime.now(timezone.utc)


# ---- monitoring ------------------------------------------------------------------------------------------------


def test_health_is_503_as_soon_as_one_database_is_overdue(client, shop):
    def health(path: str = "/health") -> Any:
        answer = client.get(path)
        return answer.status_code, answer.json()["status"], answer.json()["overdue"]

    assert health() == (503, "overdue", 1)
    shop.backed_up(hours_ago=40)
    assert health() == (503, "overdue", 1)
    shop.backed_up(hours_ago=1)
    assert health() == (200, "ok", 0)
    assert client.get("/health").json()["details"][0]["state"] == "protected"


def test_health_tells_strangers_counts_only(client, shop):
    shop.backed_up()
    answer = client.get("/health", headers={"Authorization": ""})
    assert answer.json() == {"success": True, "status": "ok", "databases": 1, "overdue": 0}
    assert client.get("/health?db=shop", headers={"Authorization": ""}).status_code == 401


def test_a_failing_backup_shows_while_the_last_one_is_still_young(client, shop):
    shop.backed_up(hours_ago=1)
    error = {"kind": "StoreError", "what": "s3://b/: SlowDown", "hint": None, "retryable": True}
    shop.add("backup", "failed", error=error)
    (detail,) = client.get("/health").json()["details"]
    assert (detail["state"], detail["reason"]) == ("failing", "s3://b/: SlowDown.")
    assert client.get("/health").status_code == 200


def test_a_backup_that_was_not_verified_does_not_count(client, shop):
    done = {"key": f"shop/{backup_name(stamp_of(NOW))}", "size": 5, "duration": 9, "mode": "none"}
    shop.add("backup", "failed", results={"snapshot": done, "upload": done})
    assert client.get("/health").status_code == 503


def test_health_and_metrics_say_since_when_the_replica_is_known_to_equal_mysql(client, shop):
    shop.backed_up(hours_ago=2)
    proven = {"validated": "2026-01-02T03:04:05.000Z", "differences": 2, "differedAt": "2026-01-02T03:04:06.000Z"}
    left = {"lag": 60.0, "position": "x", "recopy": {}, "yields": 3, **proven}
    # As a run that made way leaves it: its task is skipped, and the run a success.
    shop.add("sync", results={"sync": left})
    (detail,) = client.get("/health").json()["details"]
    assert {name: detail[name] for name in proven} == proven
    assert detail["syncYields"] == 3
    assert detail["syncLag"] >= 60
    text = client.get("/metrics").text
    assert 'duckling_sync_yields{database="shop"} 3.0' in text
    assert 'duckling_replica_differences{database="shop"} 2.0' in text
    assert 'duckling_replica_validated_timestamp_seconds{database="shop"} 1.767323045e+09' in text
    page = client.get("/duckling/databases/shop").text
    assert "made way 3 times in a row" in page
    assert "2 rows of the replica were found to differ from MySQL and copied again" in page
    assert "made way 3 times<" in client.get("/duckling/").text


def test_metrics_are_what_prometheus_reads(client, shop):
    from prometheus_client.parser import text_string_to_metric_families

    shop.backed_up(hours_ago=2, size=4711)
    read_copy = "2026-11-23T04:43:53.082Z"
    shop.add("sync", results={"sync": {"lag": 3.5, "position": "x", "recopy": {}, "read_copy": read_copy}})
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    values = {name: family.samples[0].value for name, family in families.items() if family.samples}
    assert values["duckling_backup_size_bytes"] == 4711
    assert values["duckling_backup_duration_seconds"] == 12.5
    assert values["duckling_backup_recoverable"] == 1
    assert 7200 <= values["duckling_backup_age_seconds"] < 10_000
    assert values["duckling_sync_lag_seconds"] >= 3.5
    assert values["duckling_read_copy_timestamp_seconds"] == 1795409033.082
    assert client.get("/health").json()["details"][0]["readCopyAt"] == read_copy
    assert (values["duckling_sync_yields"], values["duckling_replica_differences"]) == (0, 0)
    assert "duckling_replica_validated_timestamp_seconds" not in values
    assert values["duckling_replica_held"] == 0
    assert families["duckling_backup_size_bytes"].samples[0].labels == {"database": "shop"}


# ---- Airflow beside it -----------------------------------------------------------------------------------------


def test_airflows_own_paths_stay_airflows(client):
    assert client.get("/api/v2/version").json()["version"]
    assert client.get("/api/v2/monitor/health").status_code == 200
    assert client.get("/api/backupsandmore").json() == {"error": "API route not found"}


def test_the_documentation_needs_no_other_host(client):
    page = client.get("/duckling/docs").text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com", "")
    assert client.get("/duckling/static-offline-docs/swagger-ui.css").status_code == 200
    spec = client.get("/duckling/openapi.json").json()
    assert "/api/backups/s3/restore" in spec["paths"]


def test_calls_are_logged_without_their_query(client, shop, caplog):
    caplog.set_level("INFO", logger="duckling_provider.web.services.limits")
    client.get("/api/backups", params={"db": "shop", "token": "a-secret-in-the-query"})
    lines = [record.getMessage() for record in caplog.records if record.name == "duckling_provider.web.services.limits"]
    assert any(line.startswith("GET /api/backups 200 by DUCKLING_API_KEY in") for line in lines)
    assert not any("a-secret" in line for line in lines)


def test_examples_in_the_specification_are_json(client):
    spec = client.get("/duckling/openapi.json").json()
    done = spec["components"]["schemas"]["Done"]["example"]
    assert json.loads(json.dumps(done))["duration"] == 92384


# ---- what a stranger tried -----------------------------------------------------------------------------------------


def test_an_s3_object_of_a_thousand_levels_is_refused_and_not_an_internal_error(client, shop, installation):
    before = (installation.data_path / "databases.json").read_bytes()
    body = '{"enabled": true, "x": ' + '{"a": ' * 900 + "1" + "}" * 901
    answer = client.put("/api/databases/shop/s3", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, "nested too deeply" in answer.json()["error"]) == (400, True)
    assert (installation.data_path / "databases.json").read_bytes() == before


def test_health_says_that_databases_json_is_broken_and_why_only_to_who_has_credentials(client, shop, installation):
    installation.write_text('[{"secretAccessKey": "s3cret-of-shop"')
    known = client.get("/health")
    assert (known.status_code, known.json()["status"]) == (503, "misconfigured")
    assert "not JSON: line 1" in known.json()["error"]
    assert "s3cret-of-shop" not in known.text
    del client.headers["Authorization"]
    assert set(client.get("/health").json()) == {"success", "status", "databases", "overdue"}


@pytest.mark.parametrize(("kind", "state"), [("WrongKeyError", "no backup"), ("StoreError", "failing")])
def test_a_backup_that_failed_its_verification_is_not_told_as_recoverable(client, shop, kind, state):
    key = shop.backed_up()
    error = {"kind": kind, "what": "it is not as it should be", "hint": None}
    shop.add("verify", "failed", error=error, conf={"key": key})
    (found,) = client.get("/health").json()["details"]
    assert (found["state"], found["reason"]) == (state, "it is not as it should be.")
