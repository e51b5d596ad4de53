"""Commands against a store that answers anything: each ends with an error of ours and with the right exit code."""

from __future__ import annotations

import pytest
from fixtures.command_line import run_here
from fixtures.store_double import HTML, Answer, error, page
from fixtures.stores import server_at

from duckling_provider.cli.session import FAILED
from duckling_provider.stores import s3, s3_client

pytestmark = pytest.mark.server

KEY = "production/backup-2025-03-01T14-32-11-482Z.db"
COMMANDS = {
    "backup": ("backup", "production"),
    "list": ("list", "production"),
    "verify": ("verify", "production"),
    "restore": ("restore", "production", "--yes"),
    "check": ("check", "production"),
    "cleanup": ("cleanup", "production"),
    "delete": ("delete", "production", KEY, "--yes"),
}
ANSWERS = {
    "denied": error(403, "AccessDenied"),
    "expired": error(400, "ExpiredToken"),
    "thaw": error(403, "InvalidObjectState"),
    "missing": error(404, "NoSuchKey"),
    "bucket": error(404, "NoSuchBucket"),
    "throttled": error(503, "SlowDown"),
    "unknown to it": error(501, "NotImplemented"),
    "bare 503": Answer(503),
    "gateway": page(502, "Bad Gateway"),
    "proxy": page(407, "Proxy Authentication Required"),
    "redirect": Answer(301, b"", {"Location": "https://store.example/"}),
    "welcome": Answer(200, b"<html>Welcome</html>", {**HTML, "ETag": '"1"'}),
    "nothing": Answer(200),
    "odd": Answer(200, b"<ListBucketResult><Contents><Key/></Contents></ListBucketResult>", {"ETag": '"1"'}),
    "hung up": Answer(hang_up=True),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_ends_in_a_traceback_whatever_the_store_answers(
    installation, small_replica, make_double, monkeypatch, command, full
):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "_SHOWN_AFTER", (0.01,))
    double = make_double()
    fields = {"encryption": "client-aes256", "encryptionKey": "ab" * 32, "s3BackupRetentionDays": 7}
    installation.write(installation.entry(s3=server_at(double.endpoint).s3("bucket", **fields)))
    replica = small_replica(installation.replica())
    before = replica.read_bytes()
    start = list(COMMANDS).index(command) % 3
    for name in list(ANSWERS) if full else list(ANSWERS)[start::3]:
        double.answers("*", ANSWERS[name])
        done = run_here(*COMMANDS[command])
        said = f"{command}, answered by {name}: {done.out}{done.err}"
        assert "unexpected" not in said.lower(), said
        assert "Traceback" not in said, said
        assert "None" not in said, said
        # DELETE may be answered by anything that is no error.
        assert done.code == FAILED or (command, name) == ("delete", "odd"), said
        assert replica.read_bytes() == before
