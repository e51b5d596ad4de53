"""The parts of the network's benchmark that need no client: lines of some length, TLS, the table."""

import json
import ssl
import time
import urllib.request

import pytest

from benchmarks import BUCKET, PART
from benchmarks.jobs import receive_floor
from benchmarks.servers import delayed, double, tls
from benchmarks.tables import markdown, publish


@pytest.fixture
def served(tmp_path):
    with double(tmp_path / "objects") as server:
        (server.folder / "bench" / "file").write_bytes(bytes(range(256)) * 1000)
        yield server


def _answer(url, data=None, context=None):
    request = urllib.request.Request(url, data=data, method="PUT" if data else "GET")  # noqa: S310 - our own
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
        return answer.read()


@pytest.mark.slow
def test_over_a_line_all_bytes_arrive_and_not_before_their_time(served):
    with delayed(served, 100) as far:
        began = time.monotonic()
        assert _answer(f"{far.endpoint}/bench/file") == bytes(range(256)) * 1000
        assert time.monotonic() - began >= 0.1
        far.forget()


@pytest.mark.slow
def test_objects_come_over_tls_and_what_is_sent_reaches_the_double(served, tmp_path):
    with tls(served, tmp_path / "nginx") as secure:
        if secure is None:
            pytest.skip("nginx is not installed")
        trusting = ssl.create_default_context(cafile=str(secure.ca))
        assert _answer(f"{secure.endpoint}/bench/file", context=trusting) == bytes(range(256)) * 1000
        _answer(f"{secure.endpoint}/bench/sent", b"some bytes", context=trusting)
        assert _answer(f"{served.endpoint}/bench/sent") == b"some bytes"


@pytest.mark.slow
def test_the_floor_receives_all_bytes_and_writes_as_many(served, tmp_path):
    size = 2 * PART + 5000
    (served.folder / BUCKET / "large").write_bytes(bytes(size))
    before = served.cpu()
    receive_floor(served.endpoint, "large", size)()
    receive_floor(served.endpoint, "large", size, target=str(tmp_path / "out"))()
    assert served.cpu() >= before
    written = (tmp_path / "out").read_bytes()
    assert len(written) == size
    # Zeros, encrypted with a key of zeros: the first block of AES-256.
    assert written[:16].hex() == "dc95c078a2408989ad48a21492842087"
    with pytest.raises(RuntimeError, match="bytes came"):
        receive_floor(served.endpoint, "none", size)()


def _row(name, *walls):
    return {
        "name": name, "wall_s": walls[0], "walls_s": walls, "mb_per_s": 10.0, "cpu_s_per_gib": 1.0,
        "peak_growth_mib": 1.0, "ratio": walls[0] / 2,
    }  # fmt: skip


@pytest.fixture
def document():
    rows = [_row("duckling, client-aes256", 3.0), _row("boto3", 2.0), _row("rclone", 1.5), _row("floor: all", 1.0)]
    title = "Download with fsync, https, 20 ms"
    target = {"name": "restore / boto3", "value": 1.5, "at most": 0.6, "holds": False}
    case = {"title": title, "rows": rows, "targets": [target], "missing": ["s5cmd"], "notes": ["the server: 0.1"]}
    machine = {"at": "2026-01-01", "cpu": "some", "cores": 2}
    return {"command": "python -m benchmarks", "machine": machine, "cases": [case]}


def test_the_table_compares_with_boto3_and_with_the_fastest_and_names_what_is_missing(document):
    table = markdown(document)
    assert "| duckling, client-aes256 | 3.00 | 10 | 1.00 | 1 | 1.50 | 2.00 |" in table
    assert "wanted at most 0.6, missed" in table
    assert "Not installed, so not measured: s5cmd." in table
    assert "- Download with fsync, https, 20 ms: the server: 0.1" in table


@pytest.mark.slow  # the first time, matplotlib asks the system for its fonts
def test_the_table_replaces_the_one_before_and_nothing_else(document, tmp_path):
    pytest.importorskip("matplotlib")
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    results.write_text(json.dumps(document))
    page.write_text("before\n<!-- network: written by benchmarks.tables -->\nold\n<!-- network: end -->\nafter\n")
    for _ in range(2):
        publish(results, page, tmp_path / "picture.svg")
    text = page.read_text()
    assert (text.startswith("before\n"), text.endswith("after\n"), "old" in text) == (True, True, False)
    assert text.count("| boto3 |") == 1
    assert "rclone" in (tmp_path / "picture.svg").read_text()
