"""The page in a real browser and the contract's calls, with a live Airflow that really backs up and restores.

One file, because processes that share the tests share no fixtures, and one such Airflow is enough.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sqlite3
import subprocess
import sys
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from fixtures.secret_search import leaks, replace_key, secrets_of
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.airflow, pytest.mark.server]

#: Milliseconds for a run on a busy machine.
RUN = 300_000
COUNT = "SELECT count(*), bit_xor(hash(name)) FROM customers"
OTHER_HOST = "airflow.test"


def framed(page):
    return page.frame_locator("iframe[title=Duckling]")


def ended(place, state="success"):
    """Wait in a run's view until it shows, without a reload, that the run has ended."""
    expect(place.locator("#now[data-active=no]")).to_be_visible(timeout=RUN)
    expect(place.locator("#now header .badge")).to_have_text(state)


def spoil(replica):
    """Delete most customers, as a colleague's mistake would."""
    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('DELETE FROM customers WHERE id > 10')"
    subprocess.run([sys.executable, "-c", program, str(replica)], check=True, timeout=60)


@pytest.fixture(scope="module")
def backed_up(live, signed_in):
    """Makes the first backup, by the page's button, and gives its name."""
    page = signed_in().new_page()
    page.goto(f"{live.url}/duckling/databases/shop")
    expect(page.get_by_role("main")).to_contain_text("Nothing could be restored: no backup has run yet.")
    page.get_by_role("button", name="Backup now").click()
    page.wait_for_url("**/duckling/runs/duckling_backup__shop/manual__*")
    ended(page)
    for task in ("snapshot", "upload", "verify", "cleanup"):
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=task, exact=True))
        expect(row.locator(".badge")).to_have_text("success")
    # What a screen reader is told, and the log by Airflow's own API.
    expect(page.get_by_role("status")).to_contain_text("Backup done: shop/backup-")
    expect(page.locator(".log pre")).to_contain_text("nothing is older than its retention")
    page.close()
    (name,) = {name for name in live.stored() if name.endswith(".db")}
    return name


def test_it_stands_in_airflows_navigation_with_trouble_first(backed_up, visit, shoot):
    page = visit("/")
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Duckling").click()
    place = framed(page)
    expect(place.get_by_role("heading", name="Duckling")).to_be_visible()
    expect(place.locator(".verdict")).to_have_text("2 of 3 databases have no sufficiently recent verified backup.")
    assert place.locator("tbody .badge").all_inner_texts() == ["misconfigured", "no backup", "protected"]
    expect(place.get_by_role("link", name="Customers <b>")).to_be_visible()
    shoot(page, "overview-light")

    place.get_by_role("searchbox").fill("SHOP")
    place.get_by_role("button", name="Search").click()
    expect(place.locator("tbody tr")).to_have_count(1)
    place.get_by_role("link", name="Shop of the tests").click()
    expect(place.get_by_role("heading", name="Backups")).to_be_visible()
    shoot(page, "database-light")

    # The frame may not navigate the page around it; the script goes by an anchor of that page.
    place.get_by_role("table", name="Last runs").get_by_role("link").first.click()
    place.get_by_role("link", name="Open in Airflow").click()
    page.wait_for_url("**/dags/duckling_backup__shop/runs/manual__*")
    expect(page.get_by_text("duckling_backup__shop").first).to_be_visible()


def test_a_restore_asks_for_the_name_and_changes_the_replica_back(backed_up, live, visit, shoot, query_replica):
    before = query_replica(live.replica(), COUNT)
    spoil(live.replica())
    assert query_replica(live.replica(), COUNT) != before

    page = visit("/plugin/duckling")
    place = framed(page)
    place.get_by_role("link", name="Shop of the tests").click()
    place.get_by_role("link", name=re.compile("^Restore the backup of")).click()
    expect(place.get_by_role("main")).to_contain_text(f"shop/{backed_up}")
    expect(place.get_by_role("main")).to_contain_text(str(live.replica()))
    place.get_by_label("To confirm").fill("shp")
    place.get_by_role("button", name="Restore this backup").click()
    expect(place.get_by_role("alert")).to_have_text("“shp” is not the name of this database. Nothing was done.")
    expect(place.get_by_label("To confirm")).to_have_value("shp")
    expect(place.get_by_label("To confirm")).to_have_attribute("aria-invalid", "true")
    shoot(page, "restore-wrong-name")
    assert query_replica(live.replica(), COUNT) != before

    place.get_by_label("To confirm").fill("shop")
    place.get_by_role("button", name="Restore this backup").click()
    expect(place.get_by_role("heading", name="Restore of shop")).to_be_visible()
    shoot(page, "restore-running")
    ended(place)
    expect(place.get_by_role("main")).to_contain_text(f"now holds shop/{backed_up}")
    shoot(page, "restore-done")
    assert query_replica(live.replica(), COUNT) == before


def test_a_backup_is_listed_from_the_store_and_verified_once_more(backed_up, live, visit, shoot):
    torn = live.bucket().put_object(Key="shop/backup-2020-01-01T00-00-00-000Z.db", Body=b"torn")
    page = visit("/duckling/databases/shop")
    assert page.locator("table[aria-labelledby=backups] tbody tr").count() == 1
    page.get_by_role("link", name="Ask the store").click()
    rows = page.locator("table[aria-labelledby=backups] tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("S3, this host")
    expect(rows.nth(1)).to_contain_text("incomplete: no .mac")
    expect(rows.nth(1).get_by_role("button", name=re.compile("Verify"))).to_have_count(0)
    shoot(page, "database-store", whole=True)
    torn.delete()
    rows.nth(0).get_by_role("button", name=re.compile("^Verify the backup of")).click()
    page.wait_for_url("**/runs/duckling_verify__shop/*")
    ended(page)
    expect(page.get_by_role("main")).to_contain_text(f"Verification done: shop/{backed_up}")
    # Reloading Airflow's window after a button leads back to the database.
    page.goto(f"{live.url}/duckling/databases/shop/verify")
    expect(page).to_have_url(f"{live.url}/duckling/databases/shop")


@pytest.mark.parametrize("host", [None, OTHER_HOST], ids=["localhost", "plain HTTP on another name"])
def test_a_connection_test_shows_each_step(live, visit, shoot, host):
    page = visit("/duckling/databases/shop", host=host)
    page.get_by_role("button", name="Test connection").click()
    expect(page.get_by_text("Everything that backups need works")).to_be_visible()
    assert set(page.locator("tbody .badge").all_inner_texts()) == {"ok"}
    if host is None:
        return
    page.goto(page.url.replace("/shop/test", "/crm"))
    page.get_by_role("button", name="Test connection").click()
    expect(page.get_by_role("alert")).to_contain_text("A step failed")
    expect(page.locator("tbody .badge")).to_have_text(["failed"])
    expect(page.locator("tbody .reason")).to_contain_text("127.0.0.1:9")
    shoot(page, "test-failed")


def test_a_viewer_sees_no_buttons_and_is_refused(backed_up, live, visit, shoot):
    page = visit("/duckling/databases/shop?store=1", user="viewer")
    expect(page.get_by_role("heading", name="Backups")).to_be_visible()
    assert page.get_by_role("main").get_by_role("button").count() == 0
    assert page.locator("form, a[href*='/restore'], a[href*='/delete']").count() == 0
    shoot(page, "database-viewer")
    for action in ("backup", "test", "verify", "restore", "delete"):
        status = page.evaluate(
            """async ([path, key]) => (await fetch(path, {method: "POST",
                body: new URLSearchParams({key, typed: "shop"})})).status""",
            [f"/duckling/databases/shop/{action}", f"shop/{backed_up}"],
        )
        assert (action, status) == (action, 403)
    assert backed_up in live.stored()
    page.goto(f"{live.url}/duckling/databases/shop/restore")
    expect(page.get_by_role("heading", name="You may not do this")).to_be_visible()


def test_another_sites_page_can_press_no_button(live, visit):
    page = visit("/duckling/databases/shop")
    form = f'<form method="post" action="{live.url}/duckling/databases/shop/test"><button>Win</button></form>'
    page.route("http://elsewhere.test/", lambda route: route.fulfill(content_type="text/html", body=form))
    page.goto("http://elsewhere.test/")
    with page.expect_response("**/duckling/databases/shop/test") as answer:
        page.get_by_role("button", name="Win").click()
    assert answer.value.status in (401, 403)


def test_it_follows_airflows_theme(backed_up, visit, shoot):
    page = visit("/plugin/duckling", theme="dark")
    place = framed(page)
    root = place.locator("html")
    expect(root).to_have_class("dark")
    shoot(page, "overview-dark")
    place.get_by_role("link", name="Shop of the tests").click()
    expect(place.get_by_role("heading", name="Backups")).to_be_visible()
    shoot(page, "database-dark")
    page.evaluate("document.documentElement.classList.replace('dark', 'light')")
    expect(root).not_to_have_class("dark")


def test_it_works_without_scripts(backed_up, live, visit):
    page = visit("/duckling/databases/shop", java_script_enabled=False)
    page.get_by_role("link", name=re.compile(r"^\d{4}-.* UTC$")).first.click()
    expect(page.locator("#now .standing")).to_contain_text("done")
    page.goto(f"{live.url}/duckling/databases/shop/restore")
    page.get_by_label("To confirm").fill("wrong")
    page.get_by_role("button", name="Restore this backup").click()
    expect(page.get_by_role("alert")).to_contain_text("is not the name")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_barrier(backed_up, live, visit, shoot, theme):
    page = visit("/duckling/", theme=theme)
    axe, found = Axe(), []
    run = page.request.get(f"{live.url}/duckling/databases/shop").text()
    run = re.search(r'href="(/duckling/runs/[^"]+)"', run)[1]
    for path in ("", "databases/shop?store=1", "databases/shop/restore", f"databases/shop/delete?key={backed_up}", run):
        page.goto(path if path.startswith("http") else live.url + (path if path[:1] == "/" else f"/duckling/{path}"))
        results = axe.run(page)
        found += [(path, v["id"], [node["html"][:120] for node in v["nodes"]]) for v in results.response["violations"]]
    assert found == []
    if theme == "light":
        page.set_viewport_size({"width": 390, "height": 800})
        for path, name in (("", "overview"), ("databases/shop", "database")):
            page.goto(f"{live.url}/duckling/{path}")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
            shoot(page, f"{name}-narrow", whole=True)


def test_the_keyboard_reaches_everything(backed_up, live, visit):
    page = visit("/duckling/databases/shop")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.ariaLabel || document.activeElement.textContent).trim()"))
    assert reached[0] == "Skip to content"
    for name in ("Backup now", "Test connection", "Restore latest…", "Ask the store"):
        assert name in reached
    assert any(name.startswith("Delete the backup of") for name in reached)


def test_deleting_the_newest_warns_asks_for_the_name_and_deletes(backed_up, live, visit, shoot):
    page = visit("/duckling/databases/shop")
    page.get_by_role("link", name=re.compile("^Delete the backup of")).click()
    expect(page.get_by_role("alert")).to_contain_text("This is the newest verified backup.")
    shoot(page, "delete")
    page.get_by_label("To confirm").fill("crm")
    page.get_by_role("button", name="Delete this backup").click()
    expect(page.get_by_text("is not the name of this database")).to_be_visible()
    assert backed_up in live.stored()
    page.get_by_label("To confirm").fill("Shop of the tests")
    page.get_by_role("button", name="Delete this backup").click()
    expect(page.get_by_role("status").first).to_contain_text(f"shop/{backed_up}")
    assert live.stored() == set()


# ---- the contract's calls ----------------------------------------------------------------------------------------


@pytest.fixture
def call(live):
    """``call(method, path, body=None, seconds=300) -> (status, answer)``; None for both when the caller gave up."""

    def call(method, path, body=None, *, seconds=300):
        connection = http.client.HTTPConnection(live.url.partition("//")[2], timeout=seconds)
        headers = {"Authorization": f"Bearer {live.api_key}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        with contextlib.closing(connection):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                return answer.status, json.load(answer)
            except TimeoutError:
                return None, None

    return call


def quiet(call, database_id="shop"):
    """Wait until no run of the database is under way."""
    deadline = time.monotonic() + 300
    while True:
        status, answer = call("POST", f"/api/backups/s3/verify?db={database_id}", {"key": "latest"})
        if status != 409:
            return status, answer
        assert time.monotonic() < deadline
        time.sleep(1)


def test_a_backup_comes_back_by_the_contracts_calls(live, call, query_replica):
    before = query_replica(live.replica(), COUNT)
    status, made = call("POST", "/api/backups/s3?db=shop")
    assert status == 200, made
    assert set(made) == {"success", "key", "size", "duration"}
    assert made["size"] == live.replica().stat().st_size
    name = made["key"].removeprefix("shop/")
    assert {name, f"{name}.mac"} <= live.stored()

    status, listed = call("GET", "/api/backups?db=shop")
    assert (listed["s3"][0]["key"], listed["local"][0]["filename"]) == (made["key"], name)
    status, found = call("GET", "/api/automation/status?db=shop")
    # The object is there later than the moment that it holds, which gives it its name.
    assert found["backup"]["s3LastUploadAt"] >= listed["local"][0]["createdAt"]
    assert call("POST", "/api/backups/s3/verify?db=shop", {"key": made["key"]})[1]["size"] == made["size"]

    spoil(live.replica())
    assert query_replica(live.replica(), COUNT) != before
    status, restored = call("POST", "/api/backups/s3/restore?db=shop", {"key": made["key"]})
    assert (status, restored["success"], restored["key"], restored["size"]) == (200, True, made["key"], made["size"])
    assert query_replica(live.replica(), COUNT) == before

    status, health = call("GET", "/health?db=shop")
    assert (status, health["details"][0]["state"]) == (200, "protected")


def test_a_caller_that_goes_away_cancels_nothing_and_the_next_one_is_told(live, call):
    before = live.stored()
    assert call("POST", "/api/backups/s3?db=shop", seconds=1.5) == (None, None)
    status, refused = call("POST", "/api/backups/s3?db=shop")
    assert status == 409
    assert refused["runId"] in refused["error"]
    deadline = time.monotonic() + 300
    while len(live.stored()) < len(before) + 2:
        assert time.monotonic() < deadline, "the run was lost with its caller"
        time.sleep(1)
    assert quiet(call)[0] == 200


def test_a_store_that_is_down_is_a_502_and_the_run_goes_on(call):
    status, answer = call("POST", "/api/backups/s3?db=crm")
    assert (status, answer["success"], answer["retrying"]) == (502, False, True)
    assert "Airflow tries upload again" in answer["error"]
    status, answer = call("POST", "/api/backups/s3/restore?db=crm", {"key": "latest"})
    assert (status, answer["success"]) == (502, False)


def test_the_scheduler_that_started_has_made_the_pool_of_the_transfers(live):
    with sqlite3.connect(f"file:{live.data.parent / 'home' / 'airflow.db'}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT slots, include_deferred FROM slot_pool WHERE pool = 'duckling_transfers'")
        assert rows.fetchall() == [(5, 1)]


# ---- secrets ---------------------------------------------------------------------------------------------------


def test_nothing_that_this_airflow_wrote_holds_a_secret(live, call):
    """Last, when there were backups, restores, retries and the page; and a restore that is refused for its key."""
    if not live.stored():  # the only test that runs
        assert call("POST", "/api/backups/s3?db=shop")[0] == 200
    databases = live.data / "databases.json"
    secrets = secrets_of(databases)
    replace_key(databases, "shop")
    status, refused = call("POST", "/api/backups/s3/restore?db=shop", {"key": "latest"})
    assert (status, refused["success"]) == (502, False)
    home = live.data.parent / "home"
    logs = [path.read_text() for path in home.rglob("*.log") if "task_id=restore" in str(path)]
    assert any("wrong key" in log and "What to do: " in log for log in logs)
    with sqlite3.connect(f"file:{home / 'airflow.db'}?mode=ro", uri=True) as connection:
        dump = "\n".join(connection.iterdump())
    assert "shop/backup-" in dump  # keys are in XCom and asset events: what was written was looked at
    secrets = sorted({*secrets, *secrets_of(databases), live.api_key})
    assert [secret[:4] for secret in secrets if secret in dump] == []
    # Where secrets belong: the configuration, and the store's own account.
    assert leaks(live.data.parent, secrets, {databases, live.data.parent / "store" / "store.json"}) == []
