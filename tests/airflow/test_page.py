"""The page in Airflow's real application, with real rows in the metadata database; tests/page has the browser."""

from __future__ import annotations

import re
import runpy
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.page import multiply
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.stores.s3 import open_store

pytestmark = [pytest.mark.airflow, pytest.mark.server]

# The fixtures of the other file; test folders are no packages.
_API = runpy.run_path(str(Path(__file__).with_name("test_api.py")))
api_client, shop, add_dags = (_API[name] for name in ("client", "shop", "add_dags"))
token, back_up, NOW = _API["token"], _API["back_up"], _API["NOW"]
client = api_client
S3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}


@pytest.fixture
def page(client):
    """``page(path, role="ADMIN")``: what a browser with that user's cookie gets; ``page.post(path, **form)``."""
    del client.headers["Authorization"]

    def get(path="", role="ADMIN", **options):
        client.cookies.set("_token", token(role))
        return client.get(f"/duckling/{path}", headers={"Accept": "text/html", **options}, follow_redirects=False)

    def post(path, role="ADMIN", site="same-origin", **form):
        client.cookies.set("_token", token(role))
        headers = {"Accept": "text/html", "Sec-Fetch-Site": site}
        return client.post(f"/duckling/{path}", data=form, headers=headers, follow_redirects=False)

    get.post = post
    return get


@pytest.fixture
def no_store(monkeypatch):
    """Any connection that is not the metadata database's is a failure; SQLite makes none."""

    def refuse(_socket, address):
        pytest.fail(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # Where the application has it from: loaded for the first time under a patch of the original, it would keep that.
    for place in ("duckling_provider.web.services.dependencies", "duckling_provider.stores.s3"):
        monkeypatch.setattr(f"{place}.open_store", lambda *_, **__: pytest.fail("a store was opened"))


# ---- the overview ----------------------------------------------------------------------------------------------


def test_the_overview_shows_every_state_with_trouble_first(page, installation, add_dags, no_store):
    ids = ("fine", "late", "bare", "shaky")
    entries = [installation.entry(name, s3={**S3, "pathPrefix": f"{name}/"}) for name in ids]
    installation.write(*entries, {"id": "bad", "name": "Bad"})
    fine, late, _, shaky = add_dags(*ids)
    fine.backed_up(hours_ago=2)
    late.backed_up(hours_ago=100)
    shaky.backed_up(hours_ago=2)
    shaky.add("backup", "failed", error={"kind": "StoreError", "what": "s3://b: <it> is down", "hint": "Wait."})
    fine.add("restore", "running")
    text = page().text
    assert "3 of 5 databases have no sufficiently recent" in text
    badges = re.findall(r'class="badge ([a-z-]+)"', text)
    assert badges == ["misconfigured", "no-backup", "overdue", "failing", "protected", "running"]
    assert "s3://b: &lt;it&gt; is down. Wait." in text
    assert "bad: duckdbPath" in text
    assert re.search(r'href="/duckling/runs/duckling_restore__fine/made__restore__\d+"', text)
    only = page("?state=overdue").text
    assert re.findall(r'class="badge ([a-z-]+)"', only) == ["overdue"]
    assert re.findall(r'class="badge ([a-z-]+)"', page("?q=LATE").text) == ["overdue"]
    assert "No database matches" in page("?q=nothing").text


def test_500_databases_are_shown_in_pages_and_without_a_request_to_any_store(page, installation, add_dags, no_store):
    _fill(installation, add_dags, 500)
    first = page()
    assert first.status_code == 200
    assert "All 500 databases have a sufficiently recent verified backup" in first.text
    assert first.text.count('role="rowheader"') == 50
    assert "1 to 50 of 500" in first.text
    assert "451 to 500 of 500" in page("?page=10").text
    assert "451 to 500 of 500" in page("?page=999").text


def _fill(installation, add_dags, count):
    """`count` databases with three verified backups each; rows are copied from those of the first, which is quick."""
    ids = [f"db-{number:03}" for number in range(count)]
    installation.write(installation.entry(ids[0], s3=S3))
    (first,) = add_dags(ids[0])
    for hours in (20, 10, 1):
        first.backed_up(hours_ago=hours)
    installation.write(*(installation.entry(name, s3=S3) for name in ids))
    multiply(ids[0], ids[1:])


@pytest.fixture(autouse=True)
def _clean_up(request):
    yield
    if "500" not in request.node.name:
        return
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        for model in (XComModel, TaskInstance, DagRun, DagModel):
            session.execute(delete(model.__table__).where(model.__table__.c.dag_id.like("%db-%")))


def test_a_backup_is_pinned_and_its_state_shown_by_the_page(page, shop, installation):
    database = installation.database("shop")
    key, store = back_up(database), open_store(database)
    record_state(database, store, store.head(key), "tested", means="drill")

    def shown():
        text = page("databases/shop?store=1").text
        return (
            'title="a drill restored it"' in text,
            'title="pinned: it stays' in text,
            text.count(">Pin<"),
            text.count(">Unpin<"),
        )

    assert shown() == (True, False, 1, 0)
    answer = page.post("databases/shop/pin", key=key, pinned="true")
    assert (answer.status_code, answer.headers["location"]) == (303, "/duckling/databases/shop?store=1")
    assert shown() == (True, True, 0, 1)
    assert ">Unpin<" not in page("databases/shop?store=1", role="VIEWER").text
    page.post("databases/shop/pin", key=key, pinned="false")
    assert shown() == (True, False, 1, 0)


# ---- who may ---------------------------------------------------------------------------------------------------


def test_every_form_is_refused_to_viewers_to_other_sites_and_without_a_login(page, client, shop, installation):
    key = back_up(installation.database("shop"))
    for action in ("backup", "verify", "test", "restore", "delete", "pin"):
        path, form = f"databases/shop/{action}", {"key": key, "typed": "shop", "pinned": "true"}
        assert page.post(path, role="VIEWER", **form).status_code == 403, action
        assert page.post(path, site="cross-site", **form).status_code == 403, action
        client.cookies.clear()
        answer = client.post(f"/duckling/{path}", data=form, headers={"Accept": "text/html"})
        assert (answer.status_code, "Log in" in answer.text) == (401, True), action
    assert page("databases/shop/restore", role="VIEWER").status_code == 403
    assert page("databases/shop/delete?key=" + key, role="VIEWER").status_code == 403
    assert [b["key"] for b in client.get("/api/backups?db=shop").json()["s3"]] == [key]


def test_only_buttons_that_the_user_may_press_are_there(page, shop):
    shop.backed_up()
    admin, viewer = page("databases/shop").text, page("databases/shop", role="VIEWER").text
    for action in ("backup", "test", "verify", "restore", "delete"):
        assert f"/databases/shop/{action}" in admin
        assert f"/databases/shop/{action}" not in viewer


# ---- what it shows and does ------------------------------------------------------------------------------------


def test_where_backups_lie_is_shown_to_those_who_may_edit_connections(page, shop, installation):
    bucket = installation.database("shop").s3.bucket
    for path in ("", "databases/shop"):
        assert bucket in page(path).text
        assert bucket not in page(path, role="VIEWER").text


def test_a_restore_wants_the_name_and_then_leads_to_its_run(page, shop, installation):
    key = back_up(installation.database("shop"))
    asked = page("databases/shop/restore").text
    assert key in asked
    assert str(installation.replica("shop")) in asked
    wrong = page.post("databases/shop/restore", key=key, typed="<shop>")
    assert wrong.status_code == 422
    assert 'value="&lt;shop&gt;"' in wrong.text
    assert "Nothing was done" in wrong.text
    assert "Airflow has run none of its DAGs yet" in page("databases/shop").text
    right = page.post("databases/shop/restore", key=key, typed=" shop ")
    assert right.status_code == 303
    assert right.headers["location"].startswith("/duckling/runs/duckling_restore__shop/manual__")
    run = page(right.headers["location"].removeprefix("/duckling/"))
    assert "waits for Airflow to start it" in run.text
    assert 'http-equiv="refresh"' in run.text
    # The second one, and a backup meanwhile, are told on the database's own page.
    for path in ("restore", "backup"):
        again = page.post(f"databases/shop/{path}", key=key, typed="shop")
        assert (again.status_code, "is under way" in again.text) == (409, True)


def test_a_backup_of_another_replica_is_restored_by_the_page_only_when_that_is_ticked(page, shop, installation):
    key = back_up(installation.database("shop"))
    assert "Made on" in page("databases/shop/restore").text
    Path(f"{installation.replica('shop')}.duckling-origin").unlink()  # another machine's replica now
    asked = page("databases/shop/restore").text
    assert all(part in asked for part in ("another replica", "any_origin", key))
    form = {"key": key, "typed": "shop", "newest": "true"}
    refused = page.post("databases/shop/restore", **form)
    assert (refused.status_code, "not ticked" in refused.text) == (422, True)
    assert page.post("databases/shop/restore", **form, any_origin="true").status_code == 303


def test_a_list_marks_the_backups_of_another_replica_and_those_that_are_cut_short(page, shop, installation, s3_server):
    database = installation.database("shop")
    key = back_up(database)
    assert "another replica" not in page("databases/shop?store=1").text
    Path(f"{installation.replica('shop')}.duckling-origin").unlink()
    back_up(database)
    assert page("databases/shop?store=1").text.count(", another replica<") == 1
    client = s3_server.client()
    stored = client.get_object(Bucket=database.s3.bucket, Key=key)
    client.put_object(Bucket=database.s3.bucket, Key=key, Body=stored["Body"].read()[:-1], Metadata=stored["Metadata"])
    assert page("databases/shop?store=1").text.count("incomplete: another size") == 1


@pytest.mark.parametrize(
    "key", ["../crm/backup-2025-03-01T14-32-11-482Z.db", "shop/backup-2025-03-01T14-32-11-482Z.db"]
)
@pytest.mark.parametrize("action", ["restore", "delete"])
def test_a_key_outside_or_unknown_is_an_error_page(page, shop, action, key):
    for answer in (
        page(f"databases/shop/{action}?key={key}"),
        page.post(f"databases/shop/{action}", key=key, typed="shop"),
    ):
        assert answer.status_code in (400, 404)
        assert "<h1>" in answer.text


def test_a_failed_run_says_why(page, shop):
    shop.backed_up()
    run_id = shop.add("backup", "failed", error={"kind": "StoreError", "what": "it <broke>", "hint": "Mend it."})
    text = page(f"runs/duckling_backup__shop/{run_id}").text
    assert "it &lt;broke&gt;. Mend it." in text
    assert "Backup failed." in text
    assert 'http-equiv="refresh"' not in text
    assert page(f"runs/duckling_backup__shop/{run_id}?part=1").text.lstrip().startswith('<div id="now"')
    assert "it &lt;broke&gt;" in page("databases/shop").text


def test_backups_that_a_clean_up_deleted_are_not_listed(page, shop):
    gone, kept = shop.backed_up(hours_ago=30), shop.backed_up(hours_ago=2)
    shop.add("backup", results={"cleanup": {"local": [], "s3": [gone]}})
    text = page("databases/shop").text
    assert kept in text
    assert gone not in text


def test_a_store_that_is_down_leaves_what_runs_recorded(page, shop, installation):
    key = shop.backed_up()
    entry = installation.entry("shop", s3={**S3, "secretAccessKey": "s3cret-of-shop", "endpoint": "http://127.0.0.1:9"})
    installation.write(entry)
    text = page("databases/shop?store=1").text
    assert "list could not be read" in text
    assert text.count("What runs recorded") == 1
    assert key in text
    answer = page.post("databases/shop/test")
    assert (answer.status_code, "A step failed" in answer.text) == (200, True)
    assert "s3cret-of-shop" not in text + answer.text


def test_a_database_with_local_backups_only_is_backed_up_and_restored(page, installation, make_replica, add_dags):
    installation.write(installation.entry("shop"))
    make_replica(installation.replica("shop"), rows=50)
    (runs,) = add_dags("shop")
    from duckling_provider.backup.flow import back_up as make

    name = make(installation.database("shop"), None).snapshot.path.name
    runs.add("backup", results={"snapshot": {"key": name, "size": 10, "duration": 3}})
    text = page("databases/shop").text
    assert "/databases/shop/delete" not in text
    assert "/databases/shop/test" not in text
    assert "this host" in page("databases/shop?store=1").text
    asked = page("databases/shop/restore")
    assert (asked.status_code, name in asked.text) == (200, True)
    assert page.post("databases/shop/restore", key=name, typed="shop").status_code == 303


# ---- how it is sent --------------------------------------------------------------------------------------------


def test_nothing_inline_and_nothing_from_elsewhere(page, shop):
    shop.backed_up()
    shop.backed_up(hours_ago=3)
    for path in ("", "databases/shop", "databases/nope"):
        answer = page(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "same-origin"
        assert not re.search(r"<script(?! src=)|<style| style=| on[a-z]+=|https?://", answer.text), path
        for found in re.findall(r'(?:src|href)="(/duckling/static/[^"]+)"', answer.text):
            assert page(found.removeprefix("/duckling/")).status_code == 200


def test_errors_are_pages_for_browsers_and_json_for_programs(page, client, shop):
    for path in ("nothing", "databases/nope", "runs/other_dag/x", "runs/duckling_backup__shop/none", "?page=x"):
        answer = page(path)
        assert answer.status_code in (400, 404), path
        assert "<h1>" in answer.text
        assert client.get(f"/duckling/{path}", headers={"Accept": "application/json"}).json()["success"] is False
    assert page("api/backups?db=nope").json()["success"] is False


def test_everything_stays_under_airflows_base_path(shop, client):
    from starlette.testclient import TestClient

    from duckling_provider.web.app import create_app

    shop.backed_up()
    inside = TestClient(create_app(), root_path="/airflow/duckling")
    inside.cookies.set("_token", token("ADMIN"))
    for path in ("/", "/databases/shop", "/nothing"):
        text = inside.get(f"/airflow/duckling{path}", headers={"Accept": "text/html"}).text
        links = re.findall(r'(?:src|href|action)="([^"#]+)"', text)
        assert links
        assert [link for link in links if not link.startswith("/airflow/duckling/")] == [], path


def test_the_bare_prefix_leads_to_the_page(client):
    answer = client.get("/duckling", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/duckling/")


def test_the_page_is_not_in_the_apis_document(client):
    assert not [path for path in client.get("/duckling/openapi.json").json()["paths"] if "runs" in path or path == "/"]


def test_times_are_those_of_the_rows(page, shop):
    key = shop.backed_up(hours_ago=5)
    created = (NOW - timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = page("databases/shop").text
    assert key in text
    assert f'datetime="{created}"' in text


def test_a_link_can_not_put_words_of_its_own_into_the_message_of_a_deletion(page, shop):
    name = "backup-2025-03-01T14-32-11-482Z.db"
    assert f"shop/{name}" in page(f"databases/shop?deleted=shop/{name}").text
    assert "Call us" not in page(f"databases/shop?deleted=Call us/{name}").text
    assert "Call us" not in page(f"databases/shop?deleted=shop/Call us/{name}").text
