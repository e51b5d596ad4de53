"""What a killed transfer leaves is used by the next try, and never for other bytes than it was made of."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections import defaultdict

import pytest

from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.base.errors import DamagedError, DucklingError
from duckling_provider.stores.s3 import open_store

PART = 5 << 20
full_only = pytest.mark.full

#: What a task's try does: `upload_snapshot` of a snapshot that an earlier task made.
_UPLOAD = """
import sys
from duckling_provider import config
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.stores.s3 import open_store
from duckling_provider.backup.inventory.sidecar import find_snapshot

database = config.load().database("production")
upload_snapshot(database, open_store(database), find_snapshot(database, sys.argv[1]))
"""


@pytest.fixture(scope="session")
def long_replica(make_replica, tmp_path_factory):
    """Ten parts and a bit."""
    path = make_replica(tmp_path_factory.mktemp("long") / "long.db", rows=1_050_000, seed=4)
    assert path.stat().st_size > 9 * PART
    return path.read_bytes()


def killed_half_way(proxy, name, size):
    """An upload in a process of its own, killed when half of the object's bytes have passed."""
    process = None

    def choose(request):
        del request
        if process is not None and proxy.sent() > 0.5 * size:
            process.send_signal(signal.SIGKILL)

    proxy.choose = choose
    process = subprocess.Popen([sys.executable, "-c", _UPLOAD, name], env=dict(os.environ))
    assert process.wait(60) == -signal.SIGKILL
    proxy.choose = lambda _: None


@pytest.fixture
def half_sent(make_site, fault_proxy, long_replica):
    """``half_sent(server, …) -> (site, proxy, snapshot)``: an upload through the proxy was killed half way."""

    def make(server, mode="client-aes256", connections=2):
        site = make_site(server, mode)
        site.replica.write_bytes(long_replica)
        proxy = fault_proxy(server)
        site.write(proxy.server, maxConcurrency=connections)
        snapshot = take_snapshot(site.installation.database())
        killed_half_way(proxy, snapshot.filename, snapshot.plan.size)
        return site, proxy, snapshot

    return make


def plain_of(site, key, out):
    done = site.duckling("restore", "production", key, "--to", str(out))
    assert done.code == 0, done.said
    return out.read_bytes()


@pytest.mark.parametrize("mode", ["client-aes256", pytest.param("none", marks=full_only)])
@pytest.mark.parametrize("store", ["rclone", pytest.param("moto", marks=full_only)])
def test_an_upload_killed_half_way_is_continued(half_sent, moto_server, s3_server, long_replica, tmp_path, store, mode):
    # One part at a time, so that a kill costs one of ten; with hundreds of parts four at a time weigh as little.
    site, proxy, snapshot = half_sent(moto_server if store == "moto" else s3_server, mode, connections=1)
    assert [key for key in site.objects() if key.endswith(".db")] == []
    first = proxy.sent()
    assert first < 0.9 * snapshot.plan.size

    database = site.installation.database()
    upload_snapshot(database, open_store(database), snapshot)
    again = proxy.sent() - first
    assert 0 < again <= 0.6 * snapshot.plan.size
    site.write()
    assert plain_of(site, f"production/{snapshot.filename}", tmp_path / "out.db") == long_replica
    site.assert_tidy()


def pads(proxy):
    """For each IV, what was sent at each offset: ``{iv: {part: {bytes, ...}}}``.

    The IV of a request is the one at the head of the object that its upload id, or its single PUT, belongs to.
    """
    by_upload = defaultdict(lambda: defaultdict(set))
    for request in proxy.requests:
        if request.operation in {"part", "put"} and request.key.endswith(".db"):
            upload = request.query.get("uploadId", [f"put {request.key} {id(request)}"])[0]
            by_upload[upload][max(request.part, 1)].add(bytes(request.sent))
    found = defaultdict(lambda: defaultdict(set))
    for parts in by_upload.values():
        for body in parts[1]:
            if len(body) >= 16:
                for part, bodies in parts.items():
                    found[body[:16]][part] |= bodies
    return found


def assert_no_pad_is_used_twice(proxy):
    """The same IV and offset must always carry the same bytes: two plain texts under one keystream tell their XOR."""
    ivs = pads(proxy)
    assert ivs
    for iv, parts in ivs.items():
        for part, bodies in parts.items():
            for one, other in itertools.combinations(bodies, 2):
                shorter = min(len(one), len(other))
                assert one[:shorter] == other[:shorter], f"IV {iv.hex()}, part {part}"
    return ivs


@pytest.mark.parametrize("position", [-1, *(pytest.param(at, marks=full_only) for at in (100, 4 * PART + 5))])
def test_a_snapshot_that_changed_after_the_kill_is_never_mixed_with_old_parts(
    half_sent, moto_server, long_replica, position
):
    site, proxy, snapshot = half_sent(moto_server)
    database = site.installation.database()
    with snapshot.path.open("r+b") as file:
        file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    altered = snapshot.path.read_bytes()
    try:
        upload_snapshot(database, open_store(database), snapshot)
    except DamagedError:
        assert [key for key in site.objects() if key.endswith(".db")] == []
        assert site.unfinished() == []
    else:
        # Every part with the changed byte had arrived before: the object is the one that was copied.
        site.assert_only_complete_backups(set())
    ivs = assert_no_pad_is_used_twice(proxy)
    assert list(ivs) == [bytes.fromhex(snapshot.iv)]
    assert altered != long_replica


@pytest.mark.parametrize(
    "change",
    ["another key", *(pytest.param(what, marks=full_only) for what in ("another replica", "another part size"))],
)
def test_no_iv_ever_serves_two_plaintexts(half_sent, moto_server, long_replica, contents, tmp_path, change):
    site, proxy, snapshot = half_sent(moto_server)
    expected = long_replica
    if change == "another replica":
        site.replica.write_bytes(contents.new)
        snapshot, expected = take_snapshot(site.installation.database()), contents.new
    elif change == "another key":
        site.write(proxy.server, encryptionKey="77" * 32)
        entry = site.installation.entry(s3=proxy.server.s3(site.bucket, encryption="client-aes256", partSizeMiB=5))
        entry["s3"]["encryptionKey"] = "77" * 32
        site.installation.write(entry)
    else:
        site.write(proxy.server, partSizeMiB=6)
    database = site.installation.database()
    done = upload_snapshot(database, open_store(database), find_snapshot(database, snapshot.filename))
    assert plain_of(site, done.key, tmp_path / "out.db") == expected
    assert len(assert_no_pad_is_used_twice(proxy)) == 2


def test_two_backups_of_the_same_bytes_share_no_iv(make_site, moto_server, fault_proxy, contents):
    site = make_site(moto_server)
    site.replica.write_bytes(contents.new)
    proxy = fault_proxy(moto_server)
    site.write(proxy.server)
    for _ in range(3):
        assert site.duckling("backup", "production").code == 0
    assert len(assert_no_pad_is_used_twice(proxy)) == 3


def test_a_killed_restore_starts_again_within_the_same_disk_budget(make_site, s3_server, contents, start, fault_proxy):
    site = make_site(s3_server)
    site.replica.write_bytes(contents.new)
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    proxy = fault_proxy(s3_server)
    site.write(proxy.server)
    proxy.choose = lambda request: (
        proxy.Fault(stall_answer=1 << 20)
        # The second range of a plain object, or of one whose IV was read before.
        if request.operation == "get"
        and request.headers.get("range", "").startswith(("bytes=4194304-", "bytes=4194320-"))
        else None
    )
    process = start("restore", "production", "--no-delta")
    assert proxy.stalled.wait(60)
    process.kill()
    process.wait()
    left = site.replica.with_name("production.db.duckling-new")
    assert left.exists()

    # The next one must have removed or emptied it by the time it asks whether there is room.
    proxy.choose = lambda request: proxy.Fault(stall_sent=0) if request.operation == "get" else None
    proxy.stalled.clear()
    process = start("restore", "production", "--no-delta")
    assert proxy.stalled.wait(60)
    assert not left.exists() or left.stat().st_size == 0
    process.kill()
    process.wait()
    proxy.choose = lambda _: None
    assert site.duckling("restore", "production", "--no-delta").code == 0
    assert site.replica.read_bytes() == contents.new
    site.assert_tidy()


@full_only
def test_the_upload_of_another_bucket_is_not_continued(half_sent, moto_server, long_replica, tmp_path):
    site, _, snapshot = half_sent(moto_server)
    site.bucket = moto_server.new_bucket()
    site.write()
    database = site.installation.database()
    try:
        done = upload_snapshot(database, open_store(database), snapshot)
    except DucklingError as error:
        pytest.fail(str(error))
    assert plain_of(site, done.key, tmp_path / "out.db") == long_replica
