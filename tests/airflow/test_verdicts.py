"""What status, rows and metrics say of a database goes by time: newer evidence wins, and what stands still shows."""

from __future__ import annotations

import runpy
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.moments import stamp_of

pytestmark = [pytest.mark.airflow, pytest.mark.server]

# The fixtures of the other files; test folders are no packages.
_PAGE = runpy.run_path(str(Path(__file__).with_name("test_page.py")))
client, shop, add_dags = (_PAGE[name] for name in ("client", "shop", "add_dags"))
page, token, back_up = (_PAGE[name] for name in ("page", "token", "back_up"))
NOW = _PAGE["NOW"]
WRONG_KEY = {"kind": "WrongKeyError", "what": "the key is another one", "hint": None, "retryable": False}
DOWN = {"kind": "StoreError", "what": "it did not answer", "hint": None, "retryable": True}


@pytest.fixture
def standing(client):
    """``standing() -> (state, reason, last verified key, metric backup_failing)``."""

    def ask():
        (found,) = client.get("/health").json()["details"]
        metrics = client.get("/metrics").text.splitlines()
        failing = next(line for line in metrics if line.startswith('duckling_backup_failing{database="shop"}'))
        return found["state"], found["reason"], found["lastVerifiedKey"], float(failing.rpartition(" ")[2])

    return ask


def verified(key):
    return {"verify": {"key": key, "size": 7, "duration": 9, "mode": "client-aes256"}}


def test_a_failed_verification_of_an_old_backup_is_outranked_by_a_newer_good_backup(shop, standing):
    old = shop.backed_up(hours_ago=3)
    shop.add("verify", "failed", error=WRONG_KEY, conf={"key": old})
    assert standing() == ("no backup", "the key is another one.", None, 1)
    new = shop.backed_up(hours_ago=1)
    assert standing() == ("protected", "", new, 0)


def test_a_backup_that_failed_and_was_then_proven_is_good_again(shop, standing):
    key = shop.backed_up()
    shop.add("verify", "failed", error=WRONG_KEY, conf={"key": key})
    assert standing()[0] == "no backup"
    shop.add("verify", results=verified(key))
    assert standing() == ("protected", "", key, 0)


def test_a_disproved_backup_stays_so_when_another_verification_fails_for_want_of_a_store(shop, standing):
    key, older = shop.backed_up(hours_ago=1), f"shop/{'backup-2025-03-01T14-32-11-482Z.db'}"
    shop.add("verify", "failed", error=WRONG_KEY, conf={"key": key})
    shop.add("verify", "failed", error=DOWN, conf={"key": older})
    assert standing()[0] == "no backup"


def test_a_verification_of_latest_speaks_of_the_backup_that_its_error_names(shop, standing):
    key = shop.backed_up()
    shop.add("verify", "failed", error=WRONG_KEY | {"what": f"s3://b/{key}: wrong key"}, conf={})
    assert standing()[0] == "no backup"


def test_an_older_backup_counts_beside_a_disproved_newer_one_once_it_is_proven_after_it(shop, standing):
    older, newer = shop.backed_up(hours_ago=2), shop.backed_up(hours_ago=1)
    shop.add("verify", "failed", error=WRONG_KEY, conf={"key": newer})
    assert standing()[0] == "no backup"
    shop.add("verify", results=verified(older))
    state, _, key, _ = standing()
    assert (state, key) == ("protected", older)


def test_a_backup_of_the_future_counts_for_nothing_and_hides_no_other(shop, standing):
    future = "shop/backup-2099-01-01T00-00-00-000Z.db"
    shop.add("backup", results={"upload": verified(future)["verify"], **verified(future)})
    state, reason, key, _ = standing()
    assert (state, key, future in reason) == ("no backup", None, True)
    good = shop.backed_up(hours_ago=1)
    shop.add("verify", results=verified(future))
    assert standing() == ("protected", "", good, 0)


def test_a_failed_backup_is_not_outranked_by_a_look_at_an_old_one(shop, standing):
    old = shop.backed_up(hours_ago=2)
    shop.add("backup", "failed", error=DOWN)
    shop.add("verify", results=verified(old))
    assert standing()[0] == "failing"


def test_a_backup_whose_newest_verification_failed_is_green_nowhere(page, shop, installation):
    key = back_up(installation.database("shop"))
    done = {"key": key, "size": 7, "duration": 9, "mode": "client-aes256"}
    shop.add("backup", results={"snapshot": done, "upload": done, "verify": done})
    assert 'class="good"' in page("databases/shop").text
    for error in (WRONG_KEY, DOWN):
        shop.add("verify", "failed", error=error, conf={"key": key})
        for path in ("databases/shop", "databases/shop?store=1", f"databases/shop/restore?key={key}"):
            text = page(path).text
            assert error["what"] in text, path
            assert 'class="good"' not in text, path
        assert "The newest verification of this backup failed" in page(f"databases/shop/restore?key={key}").text


def test_a_database_without_a_backup_that_counts_shows_no_age_beside_it(page, shop):
    key = shop.backed_up()
    shop.add("verify", "failed", error=WRONG_KEY, conf={"key": key})
    row = page("").text.partition('data-label="Last verified backup">')[2].partition("</td>")[0]
    assert row == '<span class="none">none</span>'


def test_the_restore_form_offers_the_backups_there_are(page, shop, installation):
    key = back_up(installation.database("shop"))
    other = shop.backed_up(hours_ago=2)
    text = page("databases/shop/restore").text
    assert f'<option value="{key}" selected>' in text
    assert f'<option value="{other}">' in text


# ---- what stands still -------------------------------------------------------------------------------------------


def set_task(run_id, task, state, *, kind="restore"):
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        rows = session.query(TaskInstance).filter_by(dag_id=f"duckling_{kind}__shop", run_id=run_id)
        for row in rows:
            row.state = state if row.task_id == task else "success"


@pytest.fixture
def no_pool(shop):
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(Pool).filter_by(pool="duckling_transfers").delete()


def test_a_wait_for_a_retry_shows_on_every_page(page, shop):
    run_id = shop.add("backup", "running", error=DOWN)
    set_task(run_id, "upload", "up_for_retry", kind="backup")
    for path in ("", "databases/shop", f"runs/duckling_backup__shop/{run_id}"):
        text = page(path).text
        assert "waits for a retry" in text, path
        assert "it did not answer" in text, path
    assert "backup running" not in page("").text


def test_a_wait_for_a_missing_pool_shows_on_every_page(page, no_pool, shop):
    run_id = shop.add("restore", "running")
    set_task(run_id, "restore", "scheduled")
    for path in ("", "databases/shop", f"runs/duckling_restore__shop/{run_id}"):
        text = page(path).text
        assert "waits for a pool" in text, path
        assert "duckling_transfers" in text, path


@pytest.mark.parametrize("kind", ["restore", "verify"])
def test_without_its_pool_nothing_is_begun_by_the_api(client, shop, installation, no_pool, kind):
    key = back_up(installation.database("shop"))
    answer = client.post(f"/api/backups/s3/{kind}?db=shop&wait=false", json={"key": key})
    assert answer.status_code == 409
    assert 'Airflow has no pool "duckling_transfers"' in answer.json()["error"]
    assert "nothing was begun" in answer.json()["error"]


def test_a_pool_without_slots_is_as_good_as_none(client, shop):
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(Pool).filter_by(pool="duckling_transfers").one().slots = 0
    answer = client.post("/api/backups/s3?db=shop&wait=false")
    with create_session() as session:
        session.query(Pool).filter_by(pool="duckling_transfers").one().slots = 16
    assert (answer.status_code, "has no slots" in answer.json()["error"]) == (409, True)


def test_without_its_pool_the_page_begins_no_restore(page, shop, installation, no_pool):
    key = back_up(installation.database("shop"))
    text = page.post("databases/shop/restore", key=key, typed="shop").text
    assert "Airflow has no pool" in text
    assert "restore queued" not in text


# ---- runs that were cleared, clocks that tie, runs that no one begins --------------------------------------------


def run_row(run_id, kind, **fields):
    """Set columns of a run, as Airflow does when it is cleared, runs again, or waits."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        row = session.query(DagRun).filter_by(dag_id=f"duckling_{kind}__shop", run_id=run_id).one()
        for name, value in fields.items():
            setattr(row, name, value)


def xcoms_at(moment, run_id):
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        for row in session.query(XComModel).filter_by(run_id=run_id):
            row.timestamp = moment


def test_a_look_at_an_old_backup_hides_no_newer_proof(shop, standing):
    old, new = shop.backed_up(hours_ago=30), f"shop/{backup_name(stamp_of(NOW - timedelta(hours=1)))}"
    done = {"key": new, "size": 7, "duration": 9, "mode": "client-aes256"}
    unread = {"snapshot": done, "upload": done}
    shop.add("backup", "failed", results=unread, error=DOWN, seconds=2 * 3600)  # its verification did not get through
    shop.add("verify", results=verified(new))
    for _ in range(3):
        shop.add("verify", results=verified(old))
    state, _, key, _ = standing()
    assert (state, key) == ("protected", new)


def test_a_cleared_verification_that_fails_now_counts_as_the_newest(shop, standing):
    key = shop.backed_up(hours_ago=3)
    early = shop.add("verify", "failed", error=WRONG_KEY, conf={"key": key})
    shop.add("verify", results=verified(key))
    newer = shop.backed_up(hours_ago=1)
    assert standing()[::2] == ("protected", newer)
    later = datetime.now(timezone.utc) + timedelta(seconds=1)
    run_row(early, "verify", conf={"key": newer}, end_date=later)
    xcoms_at(later, early)
    assert standing()[0] == "no backup"


def test_a_cleared_backup_that_fails_now_shows_although_later_runs_went_well(shop, standing):
    run_ids = [shop.add("backup", "success"), shop.add("backup", "failed", error=DOWN)]
    key = shop.backed_up(hours_ago=1)
    assert standing() == ("protected", "", key, 0)
    run_row(run_ids[0], "backup", state="failed")
    later = datetime.now(timezone.utc) + timedelta(seconds=5)
    run_row(run_ids[0], "backup", start_date=later, end_date=later)
    assert (standing()[0], standing()[3]) == ("failing", 1)


def test_at_the_same_moment_a_failure_outranks_a_proof(shop, standing):
    key = shop.backed_up()
    run_ids = [
        shop.add("verify", results=verified(key)),
        shop.add("verify", "failed", error=WRONG_KEY, conf={"key": key}),
    ]
    moment = datetime.now(timezone.utc)
    for run_id in run_ids:
        run_row(run_id, "verify", end_date=moment)
        xcoms_at(moment, run_id)
    assert standing()[0] == "no backup"


def test_a_run_of_a_paused_dag_says_that_it_stands_still(page, shop):
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    run_id = shop.add("restore", "queued")
    with create_session() as session:
        session.get(DagModel, "duckling_restore__shop").is_paused = True
    try:
        for path in ("", "databases/shop", f"runs/duckling_restore__shop/{run_id}"):
            assert "is paused in Airflow, so the run does not go on" in page(path).text, path
    finally:
        with create_session() as session:
            session.get(DagModel, "duckling_restore__shop").is_paused = False


def test_a_run_that_airflow_does_not_begin_says_so(page, client, shop):
    run_id = shop.add("backup", "queued")
    assert "has not begun it" not in page("").text
    run_row(run_id, "backup", queued_at=datetime.now(timezone.utc) - timedelta(minutes=20))
    for path in ("", "databases/shop", f"runs/duckling_backup__shop/{run_id}"):
        assert "is its scheduler running" in page(path).text, path


def test_a_task_that_no_worker_takes_names_its_queue(page, shop):
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    run_id = shop.add("backup", "running")
    set_task(run_id, "upload", "queued", kind="backup")
    with create_session() as session:
        row = session.query(TaskInstance).filter_by(run_id=run_id, task_id="upload").one()
        row.queued_dttm = datetime.now(timezone.utc) - timedelta(minutes=20)
    for path in ("", "databases/shop", f"runs/duckling_backup__shop/{run_id}"):
        assert "no worker has taken upload" in page(path).text, path


# ---- drills -------------------------------------------------------------------------------------------------------

NO_ROOM = {"kind": "NoSpaceError", "what": "no space left for a drill", "hint": "Make room.", "retryable": False}
DAMAGED = {"kind": "IntegrityError", "what": "HMAC verification failed", "hint": None, "retryable": False}


def drilled(key, **more):
    report = {"restore_duration": 2100, "read_duration": 400, "tables": 14, "rows": 2104883, "rows_compared": True}
    report |= {"queries": 2, "catch_up": "yes", "catch_up_note": "", "tested": "2026-11-26T00:00:00.000Z", "notes": []}
    return {"drill": verified(key)["verify"] | report | more}


def test_a_drill_proves_the_backup_and_says_when_and_how_long(shop, standing, client):
    key = f"shop/{backup_name(stamp_of(NOW - timedelta(hours=1)))}"
    shop.add("drill", results=drilled(key))
    assert standing() == ("protected", "", key, 0)
    (status,) = [row["status"] for row in client.get("/api/databases").json()["databases"]]
    assert (status["testedKey"], status["testDuration"], status["testError"]) == (key, 2100, None)


def test_the_page_says_when_it_was_tested_and_opens_the_report(shop, page):
    run = shop.add("drill", results=drilled(shop.backed_up()))
    shown = page("databases/shop").text
    assert "restored in 2.1 s" in shown
    assert shown.count(f"/runs/duckling_drill__shop/{run}") == 3  # the fact, the row, the last runs
    assert "Test now" in shown
    report = page(f"runs/duckling_drill__shop/{run}").text
    assert "14 tables, 2,104,883 rows in 0.4 s" in report
    assert "was restored on trial and read whole" in report


def test_a_drill_that_disproves_the_backup_outranks_its_verification(shop, standing):
    key = shop.backed_up()
    shop.add("drill", "failed", error=DAMAGED, conf={"key": key})
    assert standing()[:2] == ("no backup", "HMAC verification failed.")
    shop.add("drill", results=drilled(key))
    assert standing() == ("protected", "", key, 0)


def test_a_backup_too_large_for_a_drill_is_told_as_never_tested_and_stays_verified(shop, standing, client):
    key = shop.backed_up()
    shop.add("drill", "failed", error=NO_ROOM, conf={"key": key})
    assert standing()[:3] == ("failing", "no space left for a drill. Make room.", key)
    (status,) = [row["status"] for row in client.get("/api/databases").json()["databases"]]
    assert (status["testedAt"], status["testError"]) == (None, "no space left for a drill. Make room.")
    # A newer backup changes nothing about that.
    new = shop.backed_up(hours_ago=0.5)
    assert standing()[:3] == ("failing", "no space left for a drill. Make room.", new)
    shop.add("drill", results=drilled(new))
    assert standing() == ("protected", "", new, 0)


def test_the_page_says_that_a_database_was_never_tested(shop, page):
    shop.add("drill", "failed", error=NO_ROOM, conf={"key": shop.backed_up()})
    shown = page("databases/shop").text
    assert "never tested" in shown
    assert "the newest failed" in shown


def test_a_restore_to_a_moment_is_begun_by_the_page_into_a_file_of_its_own(shop, page, installation):
    back_up(installation.database("shop"))
    assert "Restore to this moment" in page("databases/shop/restore").text
    begun = page.post("databases/shop/moment", until="2026-01-01T12:00:00Z", name="before.db")
    assert begun.status_code == 303
    assert "/runs/duckling_restore__shop/" in begun.headers["location"]
    for fields in (
        {"until": "", "name": "x.db"},
        {"until": "2026-01-01", "name": ""},
        {"until": "2026-01-01", "name": "/etc/x.db"},
    ):
        refused = page.post("databases/shop/moment", **fields)
        assert (refused.status_code, "Nothing was done." in refused.text) == (422, True), fields
        # What was typed need not be typed again.
        assert f'name="name" value="{fields["name"]}"' in refused.text


def test_a_run_that_restored_to_a_moment_says_so_and_which_tables_stayed_behind(shop, page):
    key = shop.backed_up()
    left = {"name": "notes", "reason": "it would need a new copy", "asOf": "2026-01-01T11:58:00.000Z"}
    done = {"key": key, "size": 7, "duration": 9, "path": "/r/before.db", "kept": None}
    done |= {"position": "binlog.000012:4711", "changes": 48211, "left": [left]}
    run = shop.add("restore", results={"restore": done}, conf={"until": "2026-01-01T12:00:00Z", "target_path": "/r/x"})
    shown = page(f"runs/duckling_restore__shop/{run}").text
    assert (
        f"/r/before.db is as MySQL had it at 2026-01-01T12:00:00Z, from {key} and the binlog after it; 1 table" in shown
    )
    for text in ("48,211", "binlog.000012:4711", "Not followed: notes", "as it was at 2026-01-01T11:58:00.000Z"):
        assert text in shown


def test_the_page_of_a_run_tells_what_crossed_the_network_apart_from_what_was_there_and_why_it_was_all(shop, page):
    key = shop.backed_up()
    done = {"key": key, "size": 9 << 20, "duration": 9, "mode": "none"}
    part = done | {"bytes_sent": 1 << 20, "bytes_copied": 8 << 20}
    whole = done | {"bytes_sent": 9 << 20, "bytes_copied": 0, "full_because": "one of 10 is sent in full"}
    restored = {"key": key, "size": 9 << 20, "duration": 9, "path": "/r/shop.db", "kept": None}
    lent = restored | {"bytes_received": 2 << 20, "bytes_lent": 7 << 20}
    fetched = restored | {"bytes_received": 9 << 20, "full_because": "it was asked for"}
    for kind, task, result, told in (
        ("backup", "upload", part, ("1.0 MiB sent, 8.0 MiB copied by the store",)),
        ("backup", "upload", whole, ("9.0 MiB sent", "all of it: one of 10 is sent in full")),
        ("restore", "restore", lent, ("2.0 MiB fetched, 7.0 MiB on the machine already",)),
        ("restore", "restore", fetched, ("9.0 MiB fetched", "all of it: it was asked for")),
    ):
        run = shop.add(kind, results={task: result})
        shown = page(f"runs/duckling_{kind}__shop/{run}").text
        assert [text for text in told if text not in shown] == []


def test_the_api_takes_a_moment_only_with_a_file_of_its_own(shop, client, installation):
    path = str(installation.data_path / "restored" / "before.db")
    ask = {"url": "/api/backups/s3/restore", "params": {"db": "shop", "wait": "false"}}
    refused = client.post(**ask, json={"key": "latest", "until": "2026-01-01"})
    assert refused.json()["error"].startswith("2026-01-01T00:00:00.000Z: until needs target_path. Over the replica")
    for body in ({"until": "2026-01-01"}, {"target_path": path}, {"until": "soon", "target_path": path}):
        assert client.post(**ask, json={"key": "latest", **body}).status_code == 400, body
    begun = client.post(**ask, json={"key": "latest", "until": "2026-01-01T12:00:00Z", "target_path": path})
    assert begun.status_code == 202
