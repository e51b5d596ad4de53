from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from duckling_provider.dags.ids import WATCH_DAG

pytestmark = pytest.mark.airflow

DAGS = Path(__file__).parents[2] / "dags"
ENCRYPTION_KEY = "c0ffee" * 10 + "abcd"
S3 = {
    "enabled": True,
    "bucket": "backups",
    "region": "eu-west-1",
    "accessKeyId": "AKIAEXAMPLE",
    "secretAccessKey": "very-secret-access-key",
    "encryption": "client-aes256",
    "encryptionKey": ENCRYPTION_KEY,
}


def good_dags(parse_dags):
    bag = parse_dags()
    assert bag.import_errors == {}
    return {name: dag for name, dag in bag.dags.items() if name != WATCH_DAG}


def edges(dag):
    return {(task.task_id, down) for task in dag.tasks for down in task.downstream_task_ids}


def test_every_entry_gets_a_backup_a_restore_and_a_sync_dag(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3), installation.entry("b-2.x"))
    assert set(good_dags(parse_dags)) == {
        "duckling_backup__a",
        "duckling_restore__a",
        "duckling_verify__a",
        "duckling_drill__a",
        "duckling_sync__a",
        "duckling_backup__b-2.x",
        "duckling_restore__b-2.x",
        "duckling_sync__b-2.x",
    }


def test_a_backup_with_s3_is_uploaded_and_verified_before_anything_is_deleted(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3))
    dag = good_dags(parse_dags)["duckling_backup__a"]
    assert edges(dag) == {("snapshot", "upload"), ("upload", "verify"), ("verify", "cleanup")}


def test_a_backup_without_s3_is_a_snapshot_and_a_cleanup(installation, parse_dags):
    installation.write(installation.entry("a"), installation.entry("b", s3={"enabled": False}))
    dags = good_dags(parse_dags)
    assert edges(dags["duckling_backup__a"]) == edges(dags["duckling_backup__b"]) == {("snapshot", "cleanup")}


def test_the_page_knows_the_tasks_of_each_dag_in_their_order(installation, parse_dags):
    from duckling_provider.dags.ids import TASKS, parse_dag_id

    installation.write(installation.entry("a", s3=S3))
    found = {}
    for dag_id, dag in good_dags(parse_dags).items():
        kind, _ = parse_dag_id(dag_id)
        found[kind] = tuple(task.task_id for task in dag.topological_sort())
    assert found == TASKS


def test_backups_start_unpaused_without_catchup_one_at_a_time(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3))
    dag = good_dags(parse_dags)["duckling_backup__a"]
    assert dag.schedule.interval == timedelta(hours=24)
    assert dag.is_paused_upon_creation is False
    assert dag.catchup is False
    assert dag.max_active_runs == 1


def test_the_schedule_follows_the_entry_before_the_environment(installation, parse_dags, monkeypatch):
    monkeypatch.setenv("BACKUP_INTERVAL_HOURS", "6")
    installation.write(
        installation.entry("a", s3=S3 | {"s3BackupIntervalHours": 0.5}),
        installation.entry("b", s3=S3 | {"s3BackupIntervalHours": 0}),
        installation.entry("c"),
    )
    dags = good_dags(parse_dags)
    schedules = {name: dags[f"duckling_backup__{name}"].schedule.interval for name in "abc"}
    assert schedules == {"a": timedelta(minutes=30), "b": timedelta(hours=6), "c": timedelta(hours=6)}


def test_an_edited_interval_takes_effect_at_the_next_parse(installation, parse_dags):
    for hours in (3, 5):
        installation.write(installation.entry("a", s3=S3 | {"s3BackupIntervalHours": hours}))
        assert good_dags(parse_dags)["duckling_backup__a"].schedule.interval == timedelta(hours=hours)


def test_without_automatic_backups_the_dag_is_there_for_triggering(installation, parse_dags, monkeypatch):
    monkeypatch.setenv("AUTO_BACKUP", "false")
    installation.write(installation.entry("a", s3=S3))
    assert good_dags(parse_dags)["duckling_backup__a"].schedule is None


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_queue_of_an_entry_goes_to_every_task_of_that_entry_only(installation, parse_dags, deferrable, monkeypatch):
    """Sensors that wait in the triggerer come back by the same queue; a teardown runs where its setup ran."""
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", str(deferrable))
    installation.write(installation.entry("a", s3=S3, queue="host-7"), installation.entry("b", s3=S3 | {"bucket": "b"}))
    dags = good_dags(parse_dags)
    tasks = {name: [task for dag_id, dag in dags.items() if dag_id.endswith(f"__{name}") for task in dag.tasks]
             for name in "ab"}  # fmt: skip
    assert {task.task_id for task in tasks["a"]} == {
        "snapshot", "upload", "verify", "cleanup", "pause", "restore", "resume", "drill", "sync",
    }  # fmt: skip
    assert {task.queue for task in tasks["a"]} == {"host-7"}
    assert "host-7" not in {task.queue for task in tasks["b"]}
    assert {task.deferrable for task in tasks["a"] if task.task_id == "verify"} == {deferrable}
    assert {task.queue for task in tasks["a"] if task.is_teardown} == {"host-7"}


def test_a_run_with_an_old_logical_date_has_its_tasks(installation, parse_dags):
    """Before a DAG's start, Airflow starts no task, and calls the run a success."""
    installation.write(installation.entry("a", s3=S3))
    long_ago = datetime(1999, 12, 31, tzinfo=timezone.utc)
    assert {
        task.task_id for dag in good_dags(parse_dags).values() for task in dag.tasks if task.start_date > long_ago
    } == set()


def test_no_task_names_a_queue_of_its_own(installation, parse_dags):
    """Only so does an entry without a queue run on Airflow's default, whatever that is called."""
    from airflow.sdk.bases.operator import DEFAULT_QUEUE

    installation.write(installation.entry("a", s3=S3))
    assert {task.queue for dag in good_dags(parse_dags).values() for task in dag.tasks} == {DEFAULT_QUEUE}


def test_transfers_share_a_pool_and_what_only_waits_or_copies_does_not(installation, parse_dags, monkeypatch):
    installation.write(installation.entry("a", s3=S3))
    for value, expected in ((None, "duckling_transfers"), ("mine", "mine"), ("", "default_pool")):
        if value is not None:
            monkeypatch.setenv("DUCKLING_POOL", value)
        dags = good_dags(parse_dags)
        pools = {(dag_id, task.task_id): task.pool for dag_id, dag in dags.items() for task in dag.tasks}
        transfers = {
            ("duckling_backup__a", "upload"),
            ("duckling_backup__a", "verify"),
            # Before the replica is held: without the pool, `restore` would never start, and it would stay held.
            ("duckling_restore__a", "pause"),
            ("duckling_restore__a", "restore"),
            ("duckling_verify__a", "verify"),
            ("duckling_drill__a", "drill"),
        }
        assert {task for task, pool in pools.items() if pool == expected} >= transfers
        if expected != "default_pool":
            assert {task for task, pool in pools.items() if pool == expected} == transfers


def test_a_restore_goes_before_the_transfers_of_backups(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3))
    dags = good_dags(parse_dags)
    backups = [task.priority_weight for task in dags["duckling_backup__a"].tasks]
    assert dags["duckling_restore__a"].get_task("restore").priority_weight > sum(backups)
    assert dags["duckling_drill__a"].get_task("drill").priority_weight < min(backups)


def test_a_drill_runs_every_few_days_at_another_time_than_the_backup_or_by_hand_only(installation, parse_dags):
    installation.write(
        installation.entry("a", s3=S3), installation.entry("b", s3=S3 | {"bucket": "c"}, drillIntervalDays=0)
    )
    dags = good_dags(parse_dags)
    drill, backup = dags["duckling_drill__a"].schedule, dags["duckling_backup__a"].schedule
    assert drill.interval == timedelta(days=7)
    assert drill.share != backup.share
    assert dags["duckling_drill__b"].schedule is None


def test_the_params_are_the_dags_alone(installation, parse_dags):
    """Each task's copy would be checked against its schema when the DAG is serialized: half of all the time."""
    installation.write(installation.entry("a", s3=S3))
    dags = good_dags(parse_dags)
    assert set(dags["duckling_restore__a"].params) == {
        "key",
        "before",
        "until",
        "until_position",
        "target_path",
        "keep_old",
        "encryption",
        "fallback",
        "no_delta",
        "local",
        "any_origin",
    }
    assert set(dags["duckling_verify__a"].params) == {"key"}
    assert [task.task_id for dag in dags.values() for task in dag.tasks if task.params] == []


@pytest.mark.parametrize(
    "running, expected",
    [
        ("duckling_backup__a", "a"),
        ("duckling_verify__a", "a"),
        ("duckling_sync__b", "b"),
        ("my_own", "ab"),
        ("duckling_report__a", "ab"),
    ],
)
def test_a_process_that_runs_a_task_makes_the_dags_of_its_entry_only(
    installation, parse_dags, monkeypatch, running, expected
):
    installation.write(installation.entry("a", s3=S3), installation.entry("b"))
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", running)
    assert {dag_id.partition("__")[2] for dag_id in good_dags(parse_dags)} == set(expected)


def test_a_restore_is_manual_never_paused_and_resumes_as_teardown(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3))
    dag = good_dags(parse_dags)["duckling_restore__a"]
    assert dag.schedule is None
    assert dag.is_paused_upon_creation is False
    assert edges(dag) == {("pause", "restore"), ("restore", "resume"), ("pause", "resume")}
    assert dag.get_task("pause").is_setup
    assert dag.get_task("resume").is_teardown


def test_the_params_of_a_restore_have_defaults_that_mean_the_newest_backup(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3))
    params = good_dags(parse_dags)["duckling_restore__a"].params
    assert params.validate() == {
        "key": "latest",
        "before": None,
        "until": None,
        "until_position": None,
        "target_path": None,
        "keep_old": False,
        "any_origin": False,
        "encryption": None,
        "fallback": False,
        "no_delta": False,
        "local": False,
    }


@pytest.mark.parametrize(
    "conf",
    [
        {"key": ""},
        {"key": None},
        {"target_path": 7},
        {"keep_old": "perhaps"},
        {"encryption": "rot13"},
        {"fallback": 1},
        {"no_delta": "yes"},
    ],
)
def test_a_wrong_param_is_refused_when_the_run_is_triggered(installation, parse_dags, conf):
    try:
        from airflow.sdk.exceptions import ParamValidationError
    except ImportError:  # Airflow 3.1
        from airflow.exceptions import ParamValidationError

    installation.write(installation.entry("a", s3=S3))
    params = good_dags(parse_dags)["duckling_restore__a"].params
    with pytest.raises(ParamValidationError):
        params.update(conf)


@pytest.mark.parametrize("before", ["2025-03-01T14:32:11Z", "2025-03-01", "2025-03-01T14-32-11-482Z"])
def test_a_run_takes_every_time_that_the_command_line_takes(installation, parse_dags, before):
    """What is none, `pause` refuses: see test_tasks.py."""
    installation.write(installation.entry("a", s3=S3))
    dag = good_dags(parse_dags)["duckling_restore__a"]
    dag.params.update({"before": before})
    assert dag.params.validate()["before"] == before
    assert {dag.get_task(task).before for task in ("pause", "restore")} == {"{{ params.before or '' }}"}


def test_each_dag_has_its_own_asset(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3), installation.entry("b"))
    dags = good_dags(parse_dags)
    outlets = {
        (dag_id, task.task_id): [(asset.name, asset.uri) for asset in task.outlets]
        for dag_id, dag in dags.items()
        for task in dag.tasks
        if task.outlets
    }
    assert outlets == {
        ("duckling_backup__a", "upload"): [("duckling_backup__a", "x-duckling://backup/a")],
        ("duckling_restore__a", "restore"): [("duckling_restore__a", "x-duckling://restore/a")],
        ("duckling_backup__b", "snapshot"): [("duckling_backup__b", "x-duckling://backup/b")],
        ("duckling_restore__b", "restore"): [("duckling_restore__b", "x-duckling://restore/b")],
    }


def test_no_secret_is_in_a_serialized_dag(installation, parse_dags):
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

    url = "mysql://user:p%40ss-word@db.internal/shop?password=query-secret"
    key_file = installation.data_path / "key"
    key_file.write_text("e7" * 32)
    key_file.chmod(0o600)
    s3 = S3 | {"previousEncryptionKeys": ["d6" * 32, {"file": str(key_file)}]}
    installation.write(installation.entry("a", s3=s3, mysqlConnectionString=url))
    dags = good_dags(parse_dags)
    text = json.dumps([DagSerialization.to_dict(dag) for dag in dags.values()]).lower()
    assert "duckling_restore__a" in text
    keys = (S3["secretAccessKey"], ENCRYPTION_KEY, "d6" * 32, "e7" * 32)
    assert [s for s in (*keys, "p%40ss", "p@ss", "query-secret", str(key_file)) if s.lower() in text] == []
    assert S3["accessKeyId"].lower() not in text


def test_the_docs_say_where_backups_go_and_how_they_come_back(installation, parse_dags):
    installation.write(installation.entry("a", s3=S3 | {"s3BackupRetentionDays": 30}, name="The | shop\n# <b>"))
    dags = good_dags(parse_dags)
    backup, restore = dags["duckling_backup__a"].doc_md, dags["duckling_restore__a"].doc_md
    for expected in ("s3://backups/a/", "eu-west-1", "client-aes256", "every 24 hours", "kept 7 days", "kept 30 days"):
        assert expected in backup
    assert "duckling_restore__a" in backup
    assert "s3://backups/a/" in restore
    assert backup.splitlines()[0] == "## Backups of The \\| shop # &lt;b>"


def test_an_unknown_field_is_pointed_out_in_the_docs_of_its_own_dag(installation, parse_dags):
    installation.write(
        installation.entry("a", s3=S3 | {"encrpytion": "none"}), installation.entry("b", s3=S3 | {"pathPrefix": "b/"})
    )
    dags = good_dags(parse_dags)
    assert "encrpytion" in dags["duckling_backup__a"].doc_md
    assert "encrpytion" not in dags["duckling_backup__b"].doc_md


def test_bad_entries_show_among_the_import_errors_while_the_good_ones_go_on(installation, parse_dags):
    installation.write(
        installation.entry("good"),
        installation.entry("production", s3=S3 | {"encryptionKey": ENCRYPTION_KEY[:-1]}),
        installation.entry("other", s3={"enabled": True}),
    )
    bag = parse_dags()
    assert set(bag.dags) == {"duckling_backup__good", "duckling_restore__good", "duckling_sync__good", WATCH_DAG}
    ((file, error),) = bag.import_errors.items()
    assert Path(file).name == "duckling_bad_entries.py"
    assert "production: s3.encryptionKey: expected 64 hex characters, got 63" in error
    assert "other: s3.bucket: required" in error
    assert ENCRYPTION_KEY[:-1] not in error


def test_a_broken_file_is_an_import_error_of_both_files(installation, parse_dags):
    installation.write_text("[{]")
    bag = parse_dags()
    assert set(bag.dags) == {WATCH_DAG}
    assert {Path(file).name for file in bag.import_errors} == {"duckling.py", "duckling_bad_entries.py"}
    assert all("databases.json: not JSON: line 1, column 3" in error for error in bag.import_errors.values())


def test_dags_of_a_file_that_breaks_come_back_when_it_is_corrected(installation, save_dags, parse_dags):
    from airflow.models.dag import DagModel

    def known():
        save_dags(parse_dags())
        row = DagModel.get_dagmodel("duckling_backup__breaks")
        return row.is_stale, row.has_import_errors

    installation.write(installation.entry("breaks"))
    states = [known()]
    installation.write_text("[{]")
    states.append(known())
    installation.write(installation.entry("breaks"))
    states.append(known())
    assert states == [(False, False), (True, True), (False, False)]


PARSE = """
import json, sys
from airflow.sdk import DAG

baseline = set(sys.modules)
sys.path.insert(0, {folder!r})
import duckling

assert "duckling_backup__a" in vars(duckling), "the entry has no DAG"
print(json.dumps(sorted(set(sys.modules) - baseline)))
"""


def test_parsing_imports_nothing_heavy(installation):
    installation.write(installation.entry("a", s3=S3), installation.entry("b"))
    command = [sys.executable, "-c", PARSE.format(folder=str(DAGS))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    added = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "duckling_provider" in added
    heavy = {"boto3", "botocore", "duckdb", "numpy", "pandas", "pyarrow", "cryptography", "pymysql", "sqlalchemy"}
    assert added & heavy == set()
