"""What status, rows and metrics say of a database goes by time: newer evidence wins, and what stands still shows."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.server]

# The fixtures of the other files; test folders are no packages.
_PAGE = runpy.run_path(str(Path(__file__).with_name("test_page.py")))
client, shop, add_dags = (_PAGE[name] for name in ("client", "shop", "add_dags"))
page, token, back_up = (_PAGE[name] for name in ("page", "token", "back_up"))
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
