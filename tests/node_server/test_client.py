"""The Node.js server as the writer: what it is asked, and what becomes of what it answers."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time

import pytest
from fixtures.node_server import NodeServer
from pydantic import SecretStr

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, CancelledError, ConfigError, DucklingError
from duckling_provider.node_server.client import (
    NOTE_SUFFIX,
    NodeServerClient,
    ServerDownError,
    ServerError,
    pause,
    read_note,
    resume,
)
from duckling_provider.replica.locks import state_path

STOPS = ["/automation/stop", "/cdc/stop"]


@pytest.fixture
def node():
    with NodeServer() as node:
        yield node


@pytest.fixture
def database(installation):
    installation.write(installation.entry("shop", writer="duckling-server"))
    return installation.database("shop")


def client(node, *, key=None, timeout=5.0):
    return NodeServerClient(host="127.0.0.1", port=node.port, api_key=SecretStr(key or node.key), timeout=timeout)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("duckling_provider.node_server.client._POLL", 0.05)


def note_file(database):
    return state_path(database.replica, NOTE_SUFFIX)


# ---- a pause and its resume


def test_a_pause_stops_sync_and_cdc_and_a_resume_starts_them_in_the_reverse_order(node, database):
    assert pause(client(node), database, owner="run 1") == ("automation", "cdc")
    assert node.posts == STOPS
    assert node.running == {"automation": False, "cdc": False}
    assert resume(client(node), database, owner="run 1") == ("cdc", "automation")
    assert node.posts[2:] == ["/cdc/start", "/automation/start"]
    assert node.running == {"automation": True, "cdc": True}
    assert not note_file(database).exists()


def test_every_request_names_the_database_and_carries_the_key_as_a_bearer_token(node, database):
    pause(client(node), database, owner="run 1")
    resume(client(node), database, owner="run 1")
    assert node.queries == {"db=shop"}
    assert node.keys == {f"Bearer {node.key}"}


@pytest.mark.parametrize("running", ["automation", "cdc", None])
def test_only_what_ran_is_started_again(node, database, running):
    node.running = {name: name == running for name in ("automation", "cdc")}
    was = dict(node.running)
    expected = (running,) if running else ()
    assert pause(client(node), database, owner="run 1") == expected
    assert node.posts == STOPS
    assert resume(client(node), database, owner="run 1") == expected
    assert node.running == was


def test_a_server_whose_cdc_was_never_started_has_none_to_stop(node, database):
    node.has_cdc, node.running["cdc"] = False, False
    assert pause(client(node), database, owner="run 1") == ("automation",)
    assert resume(client(node), database, owner="run 1") == ("automation",)
    assert node.running == {"automation": True, "cdc": False}


def test_the_pause_waits_until_cdc_has_written_what_it_had_read(node, database):
    node.busy_seconds = 0.5
    began = time.monotonic()
    pause(client(node), database, owner="run 1")
    assert time.monotonic() - began >= 0.5


def test_a_stop_that_is_answered_only_after_the_queue_is_empty_may_take_longer_than_an_answer(node, database):
    node.busy_seconds, node.drains = 1.0, True
    pause(client(node, timeout=0.3), database, owner="run 1")
    assert node.running == {"automation": False, "cdc": False}


def test_a_server_that_does_not_become_idle_is_named_after_the_wait_and_started_again(node, database):
    node.busy_seconds = 30
    with pytest.raises(BusyError) as caught:
        pause(client(node), database, owner="run 1", wait=0.3)
    assert caught.value.retryable
    assert str(caught.value).startswith(
        f"http://127.0.0.1:{node.port}: is still at work after it was told to stop: cdc (7 changes to write). "
    )
    assert node.running["automation"]
    assert not note_file(database).exists()


def test_a_cancelled_pause_leaves_the_server_running(node, database):
    node.busy_seconds = 30
    control = Control()
    threading.Timer(0.3, control.cancel).start()
    with pytest.raises(CancelledError):
        pause(client(node), database, owner="run 1", control=control)
    assert node.running["automation"]
    assert not note_file(database).exists()


def test_a_pause_that_fails_half_way_starts_again_what_it_stopped(node, database):
    node.failing["/cdc/stop"] = (400, json.dumps({"success": False, "error": "no such thing"}))
    with pytest.raises(ServerError, match="no such thing"):
        pause(client(node), database, owner="run 1")
    assert node.running == {"automation": True, "cdc": True}
    assert not note_file(database).exists()


# ---- crashes and other runs


def test_what_a_killed_run_left_stopped_is_started_by_the_next_one(node, database):
    pause(client(node), database, owner="killed run")
    assert pause(client(node), database, owner="next run") == ("automation", "cdc")
    assert resume(client(node), database, owner="killed run") == ()
    assert resume(client(node), database, owner="next run") == ("cdc", "automation")
    assert node.running == {"automation": True, "cdc": True}


def test_a_second_try_of_the_same_pause_forgets_nothing(node, database):
    for _ in range(2):
        pause(client(node), database, owner="run 1")
    assert resume(client(node), database, owner="run 1") == ("cdc", "automation")


def test_a_resume_without_a_pause_asks_for_nothing(node, database):
    assert resume(client(node), database, owner="run 1") == ()
    assert node.requests == []


def test_a_resume_that_fails_on_one_starts_the_other_and_a_second_try_the_rest(node, database):
    pause(client(node), database, owner="run 1")
    node.failing["/cdc/start"] = (500, json.dumps({"success": False, "error": "binlog is gone"}))
    with pytest.raises(ServerError, match=r"POST /cdc/start was answered with 500: binlog is gone") as caught:
        resume(client(node), database, owner="run 1")
    assert caught.value.retryable
    assert node.running == {"automation": True, "cdc": False}
    assert read_note(database.replica).services == ("cdc",)
    node.failing.clear()
    assert resume(client(node), database, owner="run 1") == ("cdc",)
    assert node.posts.count("/automation/start") == 1


def test_what_runs_already_after_a_restart_of_the_server_is_not_started_twice(node, database):
    pause(client(node), database, owner="run 1")
    node.running = {"automation": True, "cdc": False}
    assert resume(client(node), database, owner="run 1") == ("cdc",)
    assert "/automation/start" not in node.posts


def test_an_unreadable_note_is_named(node, database):
    note_file(database).write_text("{")
    with pytest.raises(DucklingError, match=r"duckling-server: the note of what was stopped can't be read"):
        resume(client(node), database, owner="run 1")


# ---- a server that is down, silent, or says no


@pytest.mark.slow
def test_a_server_that_is_down_is_idle_and_nothing_is_noted(database, caplog):
    caplog.set_level(logging.INFO)
    with NodeServer() as gone:
        pass
    assert pause(client(gone), database, owner="run 1") == ()
    assert f"http://127.0.0.1:{gone.port}: is not there: nothing listens there: nothing to stop" in caplog.text
    assert not note_file(database).exists()
    assert resume(client(gone), database, owner="run 1") == ()


@pytest.mark.slow
def test_what_was_stopped_before_the_server_was_shut_down_is_started_when_it_is_back(database):
    with NodeServer() as node:
        pause(client(node), database, owner="run 1")
    with pytest.raises(ServerDownError) as caught:
        resume(client(node), database, owner="run 1")
    assert caught.value.retryable
    with NodeServer(port=node.port, running={"automation": True, "cdc": False}) as back:
        assert resume(client(back), database, owner="run 1") == ("cdc",)
        assert back.running == {"automation": True, "cdc": True}


def test_a_name_that_is_unknown_is_a_server_that_is_down():
    server = NodeServerClient(host="nowhere.invalid", port=3001)
    with pytest.raises(ServerDownError, match="its name is unknown"):
        server.status("cdc", "shop")


def test_a_server_that_accepts_and_stays_silent_is_given_up_after_the_timeout(node, database):
    node.silent.add("/automation/status")
    with pytest.raises(ServerError, match=r"did not answer for 0\.3 s") as caught:
        pause(client(node, timeout=0.3), database, owner="run 1")
    assert caught.value.retryable
    assert node.posts == []
    assert not note_file(database).exists()


@pytest.mark.slow
def test_a_server_that_breaks_off_is_an_error_worth_a_retry():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        server = NodeServerClient(host="127.0.0.1", port=listener.getsockname()[1], timeout=5)
        with pytest.raises(ServerError, match="broke the connection off") as caught:
            server.status("cdc", "shop")
    assert caught.value.retryable


def test_a_wrong_key_is_no_matter_of_retries_and_is_not_shown(node, database, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ServerError) as caught:
        pause(client(node, key="wrong-key-0815"), database, owner="run 1")
    assert not caught.value.retryable
    assert str(caught.value) == (
        f"http://127.0.0.1:{node.port}: refuses the API key (401: Unauthorized). "
        "The connection's password must be that server's DUCKLING_API_KEY."
    )
    assert node.posts == []
    assert "wrong-key-0815" not in caplog.text + repr(caught.value) + repr(client(node, key="wrong-key-0815"))


def test_a_server_that_echoes_the_key_does_not_get_it_into_a_message(node, database):
    node.failing["/automation/status"] = (500, json.dumps({"error": f"bad token {node.key}"}))
    with pytest.raises(ServerError) as caught:
        pause(client(node), database, owner="run 1")
    assert "500: bad token ***" in str(caught.value)


def test_a_database_that_the_server_does_not_know_is_named(node, database):
    node.databases = ("other",)
    with pytest.raises(ServerError, match=r"""knows no database "shop": .*Database 'shop' not found""") as caught:
        pause(client(node), database, owner="run 1")
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "status,body,cause,retryable",
    [
        (500, '{"success": false, "error": "out of memory"}', "was answered with 500: out of memory", True),
        (500, "oops", "was answered with 500", True),
        (503, "", "was answered with 503", True),
        (429, '{"error": "Too many requests"}', "was answered with 429: Too many requests", True),
        (302, "", "was answered with 302", False),
        (400, '{"error": "no"}', "was answered with 400: no", False),
        (200, "<!DOCTYPE html>", "was not answered with JSON", False),
        (200, "[]", "was not answered with JSON", False),
        (200, '{"success": false, "error": "asleep"}', "failed: asleep", True),
        (200, '{"success": true}', "does not say whether it is running", False),
        (200, '{"status": {"isRunning": "no"}}', "does not say whether it is running", False),
    ],
)
def test_what_is_no_proper_answer_is_an_error_before_anything_is_stopped(
    node, database, status, body, cause, retryable
):
    node.failing["/cdc/status"] = (status, body)
    with pytest.raises(ServerError) as caught:
        pause(client(node), database, owner="run 1")
    assert cause in str(caught.value)
    assert caught.value.retryable is retryable
    assert node.posts == []


def test_check_tells_a_good_key_from_a_bad_one(node):
    client(node).check()
    with pytest.raises(ServerError, match="refuses the API key"):
        client(node, key="wrong-key-0815").check()


# ---- the address


@pytest.mark.parametrize(
    "host,given,url",
    [
        ("duck", {}, "http://duck:3001"),
        ("duck", {"port": 8080}, "http://duck:8080"),
        ("duck", {"scheme": "https"}, "https://duck:443"),
        ("duck:4000", {}, "http://duck:4000"),
        ("https://duck.example/api-of-it/", {}, "https://duck.example:443/api-of-it"),
        ("http://duck", {"scheme": "https", "port": 3001}, "http://duck:3001"),
        ("::1", {}, "http://[::1]:3001"),
        (" duck ", {}, "http://duck:3001"),
    ],
)
def test_hosts_of_the_usual_forms_are_understood(host, given, url):
    assert str(NodeServerClient.parse(host, subject="c", **given)) == url


@pytest.mark.parametrize(
    "host,given,cause",
    [
        ("", {}, "the host is missing, or is not a host"),
        ("user:hunter22@duck", {}, "the host is missing, or is not a host"),
        ("du ck", {}, "the host is missing, or is not a host"),
        ("http://duck/?key=hunter22", {}, "the host is missing, or is not a host"),
        ("duck:hunter22", {}, "the host or its port can't be read"),
        ("duck", {"scheme": "ftp"}, "the schema must be http or https"),
        ("duck", {"api_key": "hunter22\n"}, "the API key holds white space or a character that is not ASCII"),
        ("duck", {"api_key": "hunter22ü"}, "the API key holds white space or a character that is not ASCII"),
    ],
)
def test_a_wrong_address_or_key_is_named_and_not_quoted(host, given, cause):
    with pytest.raises(ConfigError) as caught:
        NodeServerClient.parse(host, subject="the connection", **given)
    assert str(caught.value).startswith(f"the connection: {cause}")
    assert "hunter22" not in str(caught.value)


@pytest.mark.slow
def test_the_module_imports_nothing_heavy_and_no_airflow():
    heavy = {"airflow", "boto3", "duckdb", "numpy", "pyarrow", "pymysql", "cryptography", "requests"}
    code = f"import sys, duckling_provider.node_server.client; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
