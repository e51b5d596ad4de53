"""The watch in Airflow, a real mail server, a real receiver of webhooks and of heartbeats."""

from __future__ import annotations

import email
import email.policy
import html
import http.server
import io
import json
import logging
import shutil
import socket
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.errors import StoreError
from duckling_provider.base.moments import stamp_of
from duckling_provider.oversight.record import note

pytestmark = [pytest.mark.airflow, pytest.mark.server]

NOW = datetime.now(timezone.utc)
S3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}
SECRET = "/ping/8c1f-secret-of-the-monitor"


@pytest.fixture
def mail(monkeypatch):
    """The messages that a real SMTP server got, through the connection ``mail``."""
    got = []

    class Handler:
        async def handle_DATA(self, server, session, envelope):  # noqa: N802 - the name is the interface's
            message = email.message_from_bytes(envelope.content, policy=email.policy.default)
            body = next(part for part in message.walk() if part.get_content_maintype() == "text")
            got.append((envelope.rcpt_tos, message["Subject"], html.unescape(body.get_content())))
            return "250 OK"

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(Handler(), hostname="127.0.0.1", port=port)
    controller.start()
    extra = {"from_email": "duckling@example.com", "to": "ops@example.com", "disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MAIL", json.dumps(connection))
    yield got
    controller.stop()


class Got(list):
    """What a receiver on `port` got, (path, body); it answers with `status`."""

    status = 200
    port = 0


@pytest.fixture
def receiver(monkeypatch):
    """What a real HTTP server got, through the connection ``hook`` and as heartbeats."""
    got = Got()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            got.append((self.path, json.loads(body) if body else None))
            self.send_response(got.status)
            self.end_headers()
            self.wfile.write(b'{"ok": true}')  # which Slack's library wants

        do_GET = do_POST  # noqa: N815 - the name is the interface's

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    got.port = server.server_port
    url = f"http://127.0.0.1:{server.server_port}"
    connection = {"conn_type": "http", "host": "127.0.0.1", "port": server.server_port, "schema": "http"}
    monkeypatch.setenv("AIRFLOW_CONN_HOOK", json.dumps(connection))
    monkeypatch.setenv("DUCKLING_HEARTBEAT_URL", url + SECRET)
    yield got
    server.shutdown()
    server.server_close()


def good(record):
    record = record.verified(f"shop/{backup_name(stamp_of(NOW - timedelta(hours=1)))}", 7, seconds=1.0, at=NOW)
    return record.__class__(**{**record.__dict__, "asked": NOW})


def test_the_watch_fails_while_something_is_wrong_tells_it_once_and_the_monitor_when_all_is_well(
    installation, run_dag, mail, receiver, monkeypatch
):
    monkeypatch.setenv("DUCKLING_NOTIFY_CONN_IDS", "mail, hook")
    installation.write(installation.entry("shop", s3=S3))
    database = installation.database("shop")
    note(database, good)
    run = run_dag("duckling_watch")
    assert (run.state, run.tasks) == ("success", {"watch": "success"})
    assert run.xcom("watch") == {"databases": 1, "troubles": []}
    assert (mail, receiver) == ([], [(SECRET, None)])

    down = StoreError("the bucket is down", hint="Wait.").as_record()
    note(database, lambda record: record.failed("backup", down, at=NOW))
    for _ in range(2):
        assert run_dag("duckling_watch").state == "failed"
    ((to, subject, text),) = mail
    assert to == ["ops@example.com"]
    assert (subject.startswith("Duckling on "), subject.endswith("1 new trouble")) == (True, True)
    assert "NEW   shop: a backup failed: the bucket is down. Wait." in text
    (beat, (path, body)) = receiver
    assert (beat[0], path) == (SECRET, "/")
    assert body["new"] == ["shop: a backup failed: the bucket is down. Wait."]
    assert body["text"].startswith("Duckling on ")


def test_the_watch_tells_that_no_entry_can_be_read(installation, run_dag, mail, receiver, monkeypatch):
    monkeypatch.setenv("DUCKLING_NOTIFY_CONN_IDS", "mail")
    installation.write_text("[")
    # The other files of the folder can't be imported now.
    folder = installation.data_path / "dags"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "dags" / "duckling_watch.py", folder)
    assert run_dag("duckling_watch", folder=folder).state == "failed"
    assert "databases.json" in mail[0][2]


def test_each_queue_has_a_watch_of_its_own(installation, parse_dags):
    entries = [installation.entry(name, queue=queue) for name, queue in (("a", "host-a"), ("b", "host-b"), ("c", None))]
    installation.write(*entries)
    dag = parse_dags().dags["duckling_watch"]
    assert {task.task_id: task.queue for task in dag.tasks} == {
        "watch_none": "default", "watch_host-a": "host-a", "watch_host-b": "host-b"
    }  # fmt: skip
    installation.write(*entries[:1])
    assert [task.queue for task in parse_dags().dags["duckling_watch"].tasks] == ["host-a"]


def test_messages_that_can_t_be_delivered_say_why_and_no_secret(installation, mail, receiver, monkeypatch):
    from fixtures.command_line import run_here

    monkeypatch.setenv("AIRFLOW_CONN_ODD", json.dumps({"conn_type": "ssh", "host": "h"}))
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps({"conn_type": "slackwebhook", "password": "T0/B0/secret"}))
    monkeypatch.setitem(sys.modules, "airflow.providers.slack.hooks.slack_webhook", None)  # as where it is missing
    monkeypatch.setenv("AIRFLOW_CONN_DOWN", json.dumps({"conn_type": "http", "host": "127.0.0.1", "port": 9}))
    monkeypatch.setenv("DUCKLING_NOTIFY_CONN_IDS", "mail,hook,odd,chat,down,none")
    installation.write(installation.entry("shop", s3=S3))
    note(installation.database("shop"), good)
    shown = run_here("notify", "shop", "--json")
    found = {one["connection"]: one["error"] for one in shown.json["connections"]}
    assert (shown.code, found["mail"], found["hook"]) == (1, None, None)
    assert "is of the type 'ssh'" in found["odd"]
    assert "whose provider is not installed" in found["chat"]
    assert "the message was not delivered" in found["down"]
    assert "does not exist" in found["none"]
    assert "secret" not in shown.out
    assert "this is a test; shop is protected" in receiver[0][1]["text"]
    assert "this is a test; shop is protected" in mail[0][2]


OTHERS = {
    "slackwebhook": {"host": "http://127.0.0.1:PORT/services", "password": "T0/B0/secret"},
    "slack": {"password": "xoxb-secret", "extra": {"channel": "#ops", "base_url": "http://127.0.0.1:PORT/api/"}},
    "apprise": {"extra": {"config": {"path": "json://user:secret@127.0.0.1:PORT/apprise", "tag": "ops"}}},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_slack_and_apprise_get_the_message_through_their_own_providers_and_a_refusal_is_told(
    installation, receiver, monkeypatch, kind
):
    from fixtures.command_line import run_here

    provider = kind.removesuffix("webhook")
    pytest.importorskip(
        f"airflow.providers.{provider}.hooks.{provider}",
        reason=f"notifications by {kind} are NOT TESTED: pip install apache-airflow-providers-{provider}",
    )
    connection = json.dumps({"conn_type": kind, **OTHERS[kind]}).replace("PORT", str(receiver.port))
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", connection)
    monkeypatch.setenv("DUCKLING_NOTIFY_CONN_IDS", "chat")
    installation.write(installation.entry("shop", s3=S3))
    shown = run_here("notify", "--json")
    assert shown.code == 0, shown
    ((path, body),) = receiver
    assert path.startswith({"slackwebhook": "/services/", "slack": "/api/chat.postMessage"}.get(kind, "/apprise"))
    assert "this is a test; nothing is wrong" in body.get("text", body.get("message"))
    receiver.status = 500
    shown = run_here("notify", "--json")
    assert (shown.code, shown.json["success"]) == (1, False)
    assert "secret" not in shown.out + shown.err


def test_the_path_of_the_heartbeat_is_in_no_log_when_it_fails(installation, run_dag, monkeypatch, caplog, capfd):
    monkeypatch.setenv("DUCKLING_HEARTBEAT_URL", f"http://127.0.0.1:9{SECRET}")
    installation.write(installation.entry("shop", s3=S3))
    note(installation.database("shop"), good)
    with caplog.at_level(logging.DEBUG):
        assert run_dag("duckling_watch").state == "success"
    told = caplog.text + "".join(capfd.readouterr())
    assert "was called in vain" in told
    assert SECRET not in told


def test_paused_and_missing_dags_are_asked_of_airflow_s_api_server(
    installation, airflow_app, save_dags, parse_dags, monkeypatch
):
    from starlette.testclient import TestClient

    from duckling_provider.tasks import dag_facts as module

    monkeypatch.setenv("DUCKLING_API_KEY", "an-api-key-of-the-tests")
    installation.write(*(installation.entry(name) for name in ("on", "off")))
    save_dags(parse_dags())
    installation.write(*(installation.entry(name) for name in ("on", "off", "new")))
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.get(DagModel, "duckling_backup__off").is_paused = True
    client = TestClient(airflow_app)

    class Opener:
        """`urllib` with the application in place of a socket."""

        def __init__(self, *_):
            pass

        def open(self, request, timeout):
            path = request.full_url.partition("://")[2].partition("/")[2]
            answer = client.get(f"/{path}", headers=dict(request.header_items()))
            return io.BytesIO(answer.content)

    monkeypatch.setattr(module.urllib.request, "build_opener", Opener)
    facts = module.dag_facts("an-api-key-of-the-tests")
    assert {name: (one.known, one.paused) for name, one in facts.items()} == {
        "on": (True, False), "off": (True, True), "new": (False, False)
    }  # fmt: skip
