"""Every generated DAG, run by Airflow against a real S3 server."""

from __future__ import annotations

import hashlib
import itertools
import os
import sqlite3
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from fixtures.secret_search import leaks

from duckling_provider.backup.flow import back_up
from duckling_provider.stores.s3 import open_store

pytestmark = [pytest.mark.airflow, pytest.mark.server]

KEY = "0123456789abcdef" * 4
OTHER_KEY = "fedcba9876543210" * 4
DONE = {"snapshot": "success", "upload": "success", "verify": "success", "cleanup": "success"}
RESTORED = {"pause": "success", "restore": "success", "resume": "success"}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_files(installation):
    """What restores and holds may leave beside the replicas; lock files and identities stay."""
    lasting = ("-lock", "-origin")
    return sorted(p.name for p in installation.data_path.glob("*.duckling-*") if not p.name.endswith(lasting))


@pytest.fixture
def shop(request, installation, s3_server, make_replica):
    """A database of its own per test, with a replica and a client-aes256 bucket."""

    class Shop:
        id = hashlib.sha1(request.node.name.encode(), usedforsecurity=False).hexdigest()[:12]
        bucket = s3_server.new_bucket()
        replica = installation.replica(id)
        backup, restore = f"duckling_backup__{id}", f"duckling_restore__{id}"

        def configure(self, **fields):
            fields = {"encryption": "client-aes256", "encryptionKey": KEY, **fields}
            installation.write(installation.entry(self.id, s3=s3_server.s3(self.bucket, **fields)))

        def change(self, seed):
            self.replica.unlink()
            make_replica(self.replica, seed=seed)

        def back_up(self):
            """A verified backup, without Airflow; its key."""
            database = installation.database(self.id)
            return back_up(database, open_store(database)).upload.key

        def objects(self):
            listing = s3_server.client().list_objects_v2(Bucket=self.bucket)
            return sorted(item["Key"] for item in listing.get("Contents", []))

    shop = Shop()
    shop.configure()
    make_replica(shop.replica)
    return shop


@pytest.mark.parametrize("mode,overhead", [("client-aes256", 16), ("none", 0)])
def test_a_backup_ends_in_s3_verified_announces_itself_and_links_to_the_object(
    shop, run_dag, s3_server, mode, overhead
):
    shop.configure(encryption=mode)
    run = run_dag(shop.backup)
    assert (run.state, run.tasks) == ("success", DONE)
    upload = run.xcom("upload")
    key = upload["key"]
    assert key == f"{shop.id}/{run.xcom('snapshot')['key']}"
    assert shop.objects() == [key, *([key + ".mac"] if overhead else []), key + ".state"]
    size = shop.replica.stat().st_size
    stored = s3_server.client().head_object(Bucket=shop.bucket, Key=key)["ContentLength"]
    assert stored == size + overhead
    assert [run.xcom(task)["size"] for task in ("snapshot", "upload", "verify")] == [size] * 3
    assert all(isinstance(run.xcom(task)["duration"], int) for task in ("snapshot", "upload", "verify"))
    assert upload["mode"] == run.xcom("verify")["mode"] == mode
    extra = run.asset_extras()[shop.backup]
    assert {name: extra[name] for name in ("key", "size", "duration")} == {
        name: upload[name] for name in ("key", "size", "duration")
    }
    url = f"{s3_server.endpoint}/{shop.bucket}/{key}"
    assert [run.xcom(task, "_link_S3ObjectLink") for task in ("upload", "verify")] == [url] * 2


@pytest.mark.parametrize("kind", ["backup", "restore"])
def test_a_manual_run_with_a_logical_date_long_ago_does_its_work(shop, run_dag, make_replica, kind):
    """Airflow calls a run that is earlier than its DAG's start a success, without a task."""
    if kind == "restore":
        shop.back_up()
        before = digest(shop.replica)
        shop.change(seed=2)
    run = run_dag(getattr(shop, kind), logical_date=datetime(2019, 5, 1, tzinfo=timezone.utc))
    assert run.row.logical_date.year == 2019
    assert (run.state, run.tasks) == ("success", DONE if kind == "backup" else RESTORED)
    if kind == "backup":
        assert f"backup-{datetime.now(timezone.utc):%Y-%m-%d}" in shop.objects()[0]  # of now, not of 2019
    else:
        assert digest(shop.replica) == before


def test_a_scheduled_run_and_a_backfill_of_dates_long_ago_have_their_tasks(shop, parse_dags, save_dags):
    from airflow.models.backfill import ReprocessBehavior, _create_backfill
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    save_dags(parse_dags())
    start, stop = datetime(2019, 5, 1, tzinfo=timezone.utc), datetime(2019, 5, 4, tzinfo=timezone.utc)
    with create_session() as session:
        SerializedDagModel.get_dag(shop.backup, session=session).create_dagrun(
            run_id="scheduled__long_ago",
            logical_date=datetime(1999, 12, 31, tzinfo=timezone.utc),
            data_interval=None,
            run_after=datetime(1999, 12, 31, tzinfo=timezone.utc),
            run_type=DagRunType.SCHEDULED,
            triggered_by=DagRunTriggeredByType.TIMETABLE,
            state=DagRunState.RUNNING,
            session=session,
        )
    _create_backfill(
        dag_id=shop.backup,
        from_date=start,
        to_date=stop,
        max_active_runs=1,
        reverse=False,
        dag_run_conf={},
        triggering_user_name="tests",
        reprocess_behavior=ReprocessBehavior.NONE,
    )
    with create_session() as session:
        runs = session.query(DagRun).filter_by(dag_id=shop.backup).all()
        states = {
            run.run_id: {(ti.task_id, ti.state) for ti in run.get_task_instances(session=session)} for run in runs
        }
        dates = sorted(run.logical_date for run in runs)[1:]
    assert all(tasks == {(task, None) for task in DONE} for tasks in states.values()), states
    assert [(later - earlier).days for earlier, later in itertools.pairwise(dates)] == [1, 1]
    assert start <= dates[0] <= dates[-1] <= stop


@pytest.mark.parametrize("stand", ["in the entry", "elsewhere"])
def test_no_secret_is_in_any_log_or_row_of_airflow(shop, run_dag, s3_server, monkeypatch, tmp_path, capfd, stand):
    """Not in XComs, rendered fields and serialized DAGs, wherever the secrets stand, and not when a task fails."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    fields = {"encryptionKey": KEY, "previousEncryptionKeys": [OTHER_KEY]}
    if stand == "elsewhere":
        for name, text in (("key", KEY), ("older", OTHER_KEY)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o600)
        monkeypatch.setenv("S3_SECRET_0815", s3_server.secret_access_key)
        fields = {
            "encryptionKey": {"file": str(tmp_path / "key")},
            "previousEncryptionKeys": [{"file": str(tmp_path / "older")}],
            "secretAccessKey": {"env": "S3_SECRET_0815"},
        }
    shop.configure(**fields)
    assert run_dag(shop.backup).state == "success"
    wrong = "0815" * 16
    if stand == "elsewhere":
        (tmp_path / "key").write_text(wrong)
    else:
        shop.configure(**fields | {"encryptionKey": wrong})
    assert run_dag(shop.restore).tasks["restore"] == "failed"
    with create_session() as session:
        stored = [str(row.value) for row in session.scalars(select(XComModel))]
        stored += [str(row.rendered_fields) for row in session.scalars(select(RenderedTaskInstanceFields))]
        stored += [str(row.data) for row in session.scalars(select(SerializedDagModel))]
    home = Path(os.environ["AIRFLOW_HOME"])
    with sqlite3.connect(f"file:{home / 'airflow.db'}?mode=ro", uri=True) as database:
        stored += database.iterdump()
    assert sum(shop.id in text for text in stored) > 10
    said = "".join(capfd.readouterr())
    assert "wrong key" in said
    secrets = [s3_server.secret_access_key, KEY, OTHER_KEY, wrong, f"mysql-password-{shop.id}"]
    assert [secret[:4] for secret in secrets if any(secret in text for text in (said, *stored))] == []
    assert leaks(home, secrets, ()) == []


def test_a_database_without_s3_is_backed_up_and_restored_locally(installation, make_replica, run_dag):
    installation.write(installation.entry("local-only"))
    replica = make_replica(installation.replica("local-only"))
    before = digest(replica)
    run = run_dag("duckling_backup__local-only")
    assert (run.state, run.tasks) == ("success", {"snapshot": "success", "cleanup": "success"})
    name = run.xcom("snapshot")["key"]
    assert digest(installation.backup_path / "local-only" / name) == before
    assert run.asset_extras()["duckling_backup__local-only"]["key"] == name
    replica.unlink()
    run = run_dag("duckling_restore__local-only")
    assert (run.state, run.tasks) == ("success", RESTORED)
    assert digest(replica) == before


def test_a_restore_by_key_brings_back_that_backup(shop, run_dag, installation):
    first, key = digest(shop.replica), shop.back_up()
    shop.change(seed=1)
    shop.back_up()
    shop.change(seed=2)
    run = run_dag(shop.restore, {"key": key})
    assert (run.state, run.tasks) == ("success", RESTORED)
    assert digest(shop.replica) == first
    result = run.xcom("restore")
    assert (result["key"], result["size"], result["kept"]) == (key, shop.replica.stat().st_size, None)
    assert run.asset_extras()[shop.restore]["key"] == key
    assert state_files(installation) == []


def test_a_restore_without_conf_brings_back_the_newest_backup(shop, run_dag):
    shop.back_up()
    shop.change(seed=1)
    newest = digest(shop.replica)
    shop.back_up()
    shop.change(seed=2)
    assert run_dag(shop.restore).state == "success"
    assert digest(shop.replica) == newest


def test_a_restore_to_a_time_takes_the_newest_backup_before_it(shop, run_dag):
    first, name = digest(shop.replica), Path(shop.back_up()).name
    day, _, clock = name.removeprefix("backup-").removesuffix("Z.db").partition("T")
    hour, minute, second, millis = clock.split("-")
    moment = f"{day}T{hour}:{minute}:{second}.{int(millis):03d}999+00:00"
    shop.change(seed=1)
    shop.back_up()
    assert run_dag(shop.restore, {"before": moment}).state == "success"
    assert digest(shop.replica) == first


def test_a_restore_elsewhere_leaves_the_replica_and_its_writers_alone(shop, run_dag, installation):
    backed_up = digest(shop.replica)
    shop.back_up()
    shop.change(seed=1)
    live = digest(shop.replica)
    target = installation.data_path / "restored" / "elsewhere.db"
    run = run_dag(shop.restore, {"target_path": str(target)})
    assert (run.state, run.tasks) == ("success", RESTORED)
    assert (digest(target), digest(shop.replica)) == (backed_up, live)
    assert run.xcom("restore")["path"] == str(target)
    assert state_files(installation) == []
    # It is the plain text of the database.
    assert (stat.S_IMODE(target.parent.stat().st_mode), stat.S_IMODE(target.stat().st_mode)) == (0o700, 0o600)


@pytest.mark.parametrize(
    "target",
    # What else is none: tests/config/test_targets.py.
    [
        "{tmp}/dags/x.db",
        "{data}/restored/../crm.db",
        *(pytest.param(target, marks=pytest.mark.full) for target in ("x.db", "{data}/restored/x.zip")),
    ],
)
def test_a_run_writes_nowhere_but_below_the_folder_for_restores(shop, run_dag, installation, tmp_path, target):
    shop.back_up()
    path = target.format(tmp=tmp_path, data=installation.data_path)
    before = {found for found in tmp_path.rglob("*") if ".duckling-lock" not in found.name}
    run = run_dag(shop.restore, {"target_path": path})
    assert run.state == "failed"
    assert (run.tasks["pause"], run.tries["pause"]) == ("failed", 1)
    assert {found for found in tmp_path.rglob("*") if ".duckling-lock" not in found.name} == before


def test_the_old_file_is_kept_when_asked_for(shop, run_dag):
    shop.back_up()
    shop.change(seed=1)
    replaced = digest(shop.replica)
    run = run_dag(shop.restore, {"keep_old": True})
    assert run.state == "success"
    kept = run.xcom("restore")["kept"]
    with open(kept, "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == replaced


def test_a_restore_works_on_a_machine_that_lost_everything(shop, run_dag, installation, tmp_path):
    backed_up = digest(shop.replica)
    elsewhere = tmp_path / "new-disk" / "replicas" / "shop.db"
    shop.back_up()
    entry = installation.entry(shop.id, s3=installation.database(shop.id).entry["s3"], duckdbPath=str(elsewhere))
    installation.write(entry)
    run = run_dag(shop.restore)
    assert (run.state, run.tasks) == ("success", RESTORED)
    assert digest(elsewhere) == backed_up


@pytest.mark.parametrize(
    "conf",
    [
        {"key": "somebody-else/backup-2025-03-01T14-32-11-482Z.db"},
        {"key": "backup-2001-01-01T00-00-00-000Z.db"},
    ],
    ids=["outside the prefix", "missing"],
)
def test_a_restore_that_asks_for_the_impossible_fails_without_retries_and_changes_nothing(shop, run_dag, conf):
    shop.back_up()
    before, names = digest(shop.replica), os.listdir(shop.replica.parent)
    run = run_dag(shop.restore, conf)
    assert (run.state, run.tasks) == ("failed", RESTORED | {"restore": "failed"})
    assert digest(shop.replica) == before
    assert set(os.listdir(shop.replica.parent)) <= {*names, f"{shop.replica.name}.duckling-lock"}


def test_after_a_restore_with_the_wrong_key_the_writers_go_on_with_the_replica_as_it_was(shop, run_dag, installation):
    shop.back_up()
    shop.change(seed=1)
    before = digest(shop.replica)
    shop.configure(encryptionKey=OTHER_KEY)
    run = run_dag(shop.restore)
    assert (run.state, run.tasks) == ("failed", RESTORED | {"restore": "failed"})
    assert digest(shop.replica) == before
    assert state_files(installation) == []


def test_credentials_come_from_an_airflow_connection(shop, run_dag, installation, s3_server, monkeypatch):
    s3 = s3_server.s3(shop.bucket, awsConnId="backup_store")
    del s3["accessKeyId"], s3["secretAccessKey"]
    installation.write(installation.entry(shop.id, s3=s3))
    login, password = s3_server.access_key_id, s3_server.secret_access_key
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_STORE", f"aws://{login}:{password}@")
    run = run_dag(shop.backup)
    assert (run.state, run.tasks) == ("success", DONE)
    assert run.xcom("upload")["key"] in shop.objects()


def test_every_backup_run_makes_one_more_backup(shop, run_dag):
    keys = [shop.back_up(), run_dag(shop.backup).xcom("upload")["key"]]
    assert shop.objects() == sorted(key + suffix for key in keys for suffix in ("", ".mac", ".state"))


@pytest.mark.parametrize("typo", ["target", *(pytest.param(name, marks=pytest.mark.full) for name in ("befor", "ky"))])
def test_a_mistyped_conf_field_is_refused_before_anything_happens(shop, run_dag, installation, typo):
    shop.back_up()
    shop.change(seed=1)
    was = digest(shop.replica)
    run = run_dag(shop.restore, {typo: "latest"})
    assert (run.state, run.tasks["pause"], run.tasks["restore"]) == ("failed", "failed", "upstream_failed")
    assert digest(shop.replica) == was
    assert state_files(installation) == []
