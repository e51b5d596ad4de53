from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import duckling_provider
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, CancelledError, DamagedError, DucklingError, ReplicaError
from duckling_provider.replica import child_process
from duckling_provider.replica.blocks import HEADER_BYTES
from duckling_provider.replica.child_process import end_idle, run_duckdb, warm_up
from duckling_provider.replica.duckdb_file import (
    WAL_SUFFIXES,
    ReadLock,
    checkpoint,
    full_scan,
    header_of,
    open_check,
    owner_of_wal,
    pending_wal,
    rows_of,
    wal_files,
    wal_of,
    writer_of,
)

ROOT = str(Path(duckling_provider.__file__).parents[1])

# Opens argv[1] in mode argv[2] and keeps it open until its standard input ends.
HOLD = """
import sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "reader")
print("open", flush=True)
sys.stdin.read()
connection.close()
"""
# Runs argv[2] (with a key in argv[3], if any) and dies, so that the WAL stays.
DIE = """
import os, sys
import duckdb
connection = duckdb.connect()
if len(sys.argv) > 3:
    connection.execute("SET force_mbedtls_unsafe = 'true'")
options = f"(ENCRYPTION_KEY '{sys.argv[3]}')" if len(sys.argv) > 3 else ""
connection.execute(f"ATTACH '{sys.argv[1]}' AS replica {options}")
connection.execute("USE replica")
connection.execute(sys.argv[2])
os._exit(0)
"""
TRY = """
import sys
import duckdb
try:
    duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "reader").close()
    print("opened")
except duckdb.IOException as error:
    print("refused" if "lock" in str(error) else error)
"""
MakeReplica = Callable[..., Path]
QueryReplica = Callable[[Path, str], list[list[object]]]


class Holder:
    """Another process that has a replica open in DuckDB."""

    def __init__(self, path: Path, mode: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), mode, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"open\n"
        self.pid = self._process.pid

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def start(path: Path, mode: str, *arguments: str) -> Holder:
        holders.append(Holder(path, mode, *arguments))
        return holders[-1]

    yield start
    for holder in holders:
        holder.close()


@pytest.fixture
def replica(tmp_path: Path, make_replica: MakeReplica) -> Path:
    return make_replica(tmp_path / "data" / "replica.db")


@pytest.fixture
def with_wal(tmp_path: Path, make_replica: MakeReplica) -> Path:
    return make_replica(tmp_path / "data" / "replica.db", wal=True)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders of the product appear."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def duckdb_in_another_process(path: Path, mode: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(path), mode], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class CancelsWhileWaiting(Control):
    """Cancels itself at the n-th look, which is when the child runs or the lock is waited for."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def check(self) -> None:
        self._looks -= 1
        if self._looks <= 0:
            self.cancel()
        super().check()


# ---- files that are no replicas ----------------------------------------------------------------------------


def _missing(path: Path) -> None:
    pass


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("gone.db"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


NO_REPLICAS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (_missing, "does not exist"),
    "dangling link": (_dangling, "symbolic link to"),
    "folder": (Path.mkdir, "is a folder"),
    "fifo": (os.mkfifo, "not a regular file"),
    "socket": (_socket, "can't be opened"),
    "empty": (Path.touch, "is empty"),
    "text": (lambda path: path.write_text("SELECT 1" * 5000), "not a DuckDB file"),
    "short": (lambda path: path.write_bytes(b"x"), "not a DuckDB file"),
}


@pytest.mark.parametrize("kind", NO_REPLICAS)
@pytest.mark.parametrize("use", [header_of, lambda path: ReadLock(path).__enter__(), checkpoint, open_check, full_scan])
def test_what_is_no_replica_is_refused_with_its_path_and_left_alone(
    tmp_path: Path, kind: str, use: Callable[[Path], object]
) -> None:
    path = tmp_path / "no.db"
    make, message = NO_REPLICAS[kind]
    make(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ReplicaError) as caught:
        use(path)
    assert message in caught.value.cause
    assert caught.value.subject == str(path)
    assert not caught.value.retryable
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(replica: Path) -> None:
    replica.chmod(0)
    with pytest.raises(ReplicaError, match="permission denied"):
        header_of(replica)


def test_a_wal_without_its_file_survives_a_checkpoint(with_wal: Path) -> None:
    # DuckDB itself would make an empty database and delete the WAL.
    with_wal.rename(with_wal.with_name("moved.db"))
    wal = digest(with_wal.with_name("replica.db.wal"))
    with pytest.raises(ReplicaError, match="does not exist"):
        checkpoint(with_wal)
    assert not with_wal.exists()
    assert digest(with_wal.with_name("replica.db.wal")) == wal


# ---- WAL files ---------------------------------------------------------------------------------------------


def test_a_quiet_replica_has_no_wal_and_a_killed_writer_leaves_one(replica: Path) -> None:
    assert wal_files(replica) == []
    subprocess.run([sys.executable, "-c", DIE, str(replica), "DELETE FROM customers"], check=True)
    assert pending_wal(replica) == wal_files(replica) == [replica.with_name("replica.db.wal")]


def test_empty_and_interrupted_wals_are_files_but_only_full_ones_are_pending(replica: Path) -> None:
    replica.with_name("replica.db.wal").touch()
    replica.with_name("replica.db.wal.checkpoint").write_bytes(b"x")
    replica.with_name("replica.db.wal.recovery").write_bytes(b"x")
    replica.with_name("other.db.wal").write_bytes(b"x")
    assert [path.name for path in wal_files(replica)] == [
        "replica.db.wal",
        "replica.db.wal.checkpoint",
        "replica.db.wal.recovery",
    ]
    assert [path.name for path in pending_wal(replica)] == ["replica.db.wal.checkpoint", "replica.db.wal.recovery"]


def test_the_wal_of_a_linked_replica_is_found(with_wal: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(with_wal)
    assert pending_wal(link) == [with_wal.with_name("replica.db.wal")]
    checkpoint(link)
    assert pending_wal(link) == []


@given(name=st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1, max_size=20))
@example("what?.db")
@example("?")
@example("a?b?.wal")
@example("x.db?access_mode=READ_ONLY")
@settings(max_examples=settings.default.max_examples * 6 // 10)
def test_our_name_of_the_log_is_duckdb_s(name: str) -> None:
    assume(name not in {".", ".."})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1")
            assert set(os.listdir(folder)) == {name, wal_of(path).name}
            assert pending_wal(path) == [wal_of(path)]
    for suffix in WAL_SUFFIXES:
        assert owner_of_wal(wal_of(path, suffix)) == path


@pytest.mark.parametrize("path", ["a?b/x.db", "x\\y.db", "link/x.db"])
def test_a_path_of_which_duckdb_makes_another_one_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "a?b").mkdir()
    (tmp_path / "link").symlink_to("a?b")
    (tmp_path / path).touch()
    with pytest.raises(ReplicaError, match="can't be trusted with this path"):
        wal_files(tmp_path / path)


# ---- locks -------------------------------------------------------------------------------------------------


def test_a_read_lock_keeps_writers_out_and_lets_readers_in(replica: Path) -> None:
    with ReadLock(replica) as lock:
        assert os.path.samestat(os.fstat(lock.fileno()), replica.stat())
        assert lock.file.read(HEADER_BYTES) == replica.read_bytes()[:HEADER_BYTES]
        assert duckdb_in_another_process(replica, "writer") == "refused"
        assert duckdb_in_another_process(replica, "reader") == "opened"
    assert duckdb_in_another_process(replica, "writer") == "opened"


def test_closing_another_descriptor_of_the_file_does_not_drop_the_lock(replica: Path) -> None:
    with ReadLock(replica):
        replica.read_bytes()
        header_of(replica)
        assert duckdb_in_another_process(replica, "writer") == "refused"


def test_two_read_locks_do_not_disturb_each_other(replica: Path) -> None:
    with ReadLock(replica):
        with ReadLock(replica):
            pass
        assert duckdb_in_another_process(replica, "writer") == "refused"


def test_the_lock_is_gone_after_an_error_inside(replica: Path) -> None:
    lock = ReadLock(replica)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert duckdb_in_another_process(replica, "writer") == "opened"
    with pytest.raises(ReplicaError, match="not locked"):
        lock.fileno()


def test_neither_a_fork_nor_a_program_started_meanwhile_keeps_the_lock(replica: Path) -> None:
    # Both children live on when the lock is given back; the fork in a process of its own, since ours has threads.
    program = f"""
import os, subprocess, sys
from pathlib import Path
from duckling_provider.replica.duckdb_file import ReadLock
wait, go = os.pipe()
with ReadLock(Path(sys.argv[1])):
    if os.fork() == 0:
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
subprocess.run([sys.executable, "-c", {TRY!r}, sys.argv[1], "writer"], check=True)
other.communicate(b"\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(replica)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.stdout == "opened\n"


def test_a_writer_is_named_by_pid_and_program_and_a_reader_is_none(replica: Path, hold: Callable[..., Holder]) -> None:
    assert writer_of(replica) is None
    reader = hold(replica, "reader")
    assert writer_of(replica) is None
    reader.close()
    writer = hold(replica, "writer")
    assert writer_of(replica) == f"PID {writer.pid} ({Path(sys.executable).name} -c)"


def test_the_lock_gives_up_on_a_writer_and_names_it(replica: Path, hold: Callable[..., Holder]) -> None:
    writer = hold(replica, "writer")
    for wait in (0.0, 0.3):
        with pytest.raises(BusyError) as caught, ReadLock(replica, wait=wait):
            pass
        assert f"PID {writer.pid} (" in caught.value.holder
        assert caught.value.holder in str(caught.value)
        assert caught.value.retryable
    # The attempts have not taken the writer's own lock away.
    assert duckdb_in_another_process(replica, "writer") == "refused"


def test_the_lock_waits_for_a_writer_that_closes(replica: Path, hold: Callable[..., Holder]) -> None:
    writer = hold(replica, "writer")
    first_look = threading.Event()

    class Watching(Control):
        def sleep(self, seconds: float) -> None:
            first_look.set()
            super().sleep(seconds)

    def close() -> None:
        first_look.wait()
        writer.close()

    closing = threading.Thread(target=close)
    closing.start()
    with ReadLock(replica, wait=60, control=Watching()):
        assert writer_of(replica) is None
    closing.join()


def test_waiting_for_a_writer_stops_on_request(replica: Path, hold: Callable[..., Holder]) -> None:
    hold(replica, "writer")
    for use in (
        lambda c: ReadLock(replica, wait=3600, control=c).__enter__(),
        lambda c: checkpoint(replica, wait=3600, control=c),
    ):
        control = Control()
        control.cancel()
        with pytest.raises(CancelledError):
            use(control)


def test_the_holder_s_arguments_are_not_shown(replica: Path, hold: Callable[..., Holder]) -> None:
    hold(replica, "writer", "--password=hunter2", "mysql://root:hunter2@db/shop")
    with pytest.raises(BusyError) as caught, ReadLock(replica):
        pass
    assert "hunter2" not in str(caught.value)


# ---- checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["v1.0.0", "v1.2.0", "v1.5.0", "v2.0.0"])
def test_a_checkpoint_folds_the_wal_in_and_keeps_the_storage_version(
    tmp_path: Path, make_replica: MakeReplica, query_replica: QueryReplica, storage: str
) -> None:
    replica = make_replica(tmp_path / "replica.db", storage=storage, wal=True)
    before = header_of(replica)
    assert pending_wal(replica)
    checkpoint(replica)
    after = header_of(replica)
    assert (after.version, after.storage) == (before.version, before.storage)
    assert list(tmp_path.iterdir()) == [replica]
    # Moved away from whatever might still lie beside it: the file alone has all rows.
    alone = replica.rename(tmp_path / "alone.db")
    assert query_replica(alone, "SELECT count(*) FROM customers WHERE name = 'only in the WAL'") == [[10]]


def test_a_checkpoint_of_a_file_without_wal_changes_nothing(replica: Path) -> None:
    before, modified = digest(replica), replica.stat().st_mtime_ns
    checkpoint(replica)
    assert (digest(replica), replica.stat().st_mtime_ns) == (before, modified)
    assert list(replica.parent.iterdir()) == [replica]


@pytest.mark.parametrize("mode", ["writer", "reader"])
def test_a_checkpoint_gives_up_on_whoever_has_the_file_open_and_names_them(
    with_wal: Path, hold: Callable[..., Holder], mode: str
) -> None:
    holder = hold(with_wal, mode)
    with pytest.raises(BusyError) as caught:
        checkpoint(with_wal, wait=0.3)
    assert f"PID {holder.pid} (" in caught.value.holder


def test_a_checkpoint_during_a_read_lock_is_refused_although_the_lock_is_ours(with_wal: Path) -> None:
    with ReadLock(with_wal), pytest.raises(BusyError):
        checkpoint(with_wal)


def test_a_program_with_the_file_open_is_named_by_duckdb_s_refusal_too(
    with_wal: Path, hold: Callable[..., Holder]
) -> None:
    writer = hold(with_wal, "writer")
    answer = run_duckdb("checkpoint", with_wal, Control())
    assert answer.kind == "busy"
    assert f"PID {writer.pid}" in answer.message


def test_a_cancelled_checkpoint_leaves_the_wal_and_no_litter(with_wal: Path, scratch: Path) -> None:
    end_idle()  # the new one's start is waited for
    with pytest.raises(CancelledError):
        checkpoint(with_wal, control=CancelsWhileWaiting(3))
    assert pending_wal(with_wal)
    assert list(scratch.iterdir()) == []
    checkpoint(with_wal)
    assert pending_wal(with_wal) == []


def test_a_spoiled_wal_is_damage_and_leaves_the_file_as_it_was(with_wal: Path) -> None:
    wal, before = with_wal.with_name("replica.db.wal"), digest(with_wal)
    spoiled = bytearray(wal.read_bytes())
    spoiled[len(spoiled) // 2] ^= 0xFF
    wal.write_bytes(spoiled)
    with pytest.raises(DamagedError) as caught:
        checkpoint(with_wal)
    assert caught.value.operation == "checkpoint"
    assert digest(with_wal) == before


@pytest.mark.parametrize("storage", ["v1.0.0", "v1.5.0"])
@pytest.mark.parametrize("lost", [1, 300])
def test_a_wal_with_nothing_but_an_unfinished_transaction_is_named_and_kept(
    tmp_path: Path, make_replica: MakeReplica, storage: str, lost: int
) -> None:
    # DuckDB reports success and leaves such a WAL there: without a word of ours the caller would wait for ever.
    replica = make_replica(tmp_path / "replica.db", storage=storage, wal=True)
    wal = replica.with_name("replica.db.wal")
    os.truncate(wal, wal.stat().st_size - lost)
    before = digest(replica), digest(wal)
    with pytest.raises(ReplicaError) as caught:
        checkpoint(replica)
    assert "replica.db.wal" in caught.value.cause
    assert "killed writer" in (caught.value.hint or "")
    assert (digest(replica), digest(wal)) == before


def test_garbage_behind_a_finished_transaction_does_not_keep_its_rows_back(
    with_wal: Path, query_replica: QueryReplica
) -> None:
    with with_wal.with_name("replica.db.wal").open("ab") as wal:
        wal.write(bytes(100))
    checkpoint(with_wal)
    assert wal_files(with_wal) == []
    assert query_replica(with_wal, "SELECT count(*) FROM customers WHERE name = 'only in the WAL'") == [[10]]


def test_a_replica_with_a_damaged_header_is_never_given_to_duckdb_for_writing(with_wal: Path) -> None:
    with with_wal.open("r+b") as file:
        file.seek(5000)
        file.write(b"damaged")
    before, wal = digest(with_wal), digest(with_wal.with_name("replica.db.wal"))
    with pytest.raises(DamagedError, match="database header 1"):
        checkpoint(with_wal)
    assert (digest(with_wal), digest(with_wal.with_name("replica.db.wal"))) == (before, wal)


@pytest.mark.slow
def test_an_encrypted_replica_needs_no_checkpoint_unless_it_has_a_wal(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.db"
    script = "CREATE TABLE t AS SELECT 1 AS i; CHECKPOINT"
    subprocess.run([sys.executable, "-c", DIE, str(path), script, "the key"], check=True)
    before = digest(path)
    checkpoint(path)
    open_check(path)
    full_scan(path)
    assert digest(path) == before
    subprocess.run([sys.executable, "-c", DIE, str(path), "INSERT INTO t VALUES (2)", "the key"], check=True)
    with pytest.raises(ReplicaError) as caught:
        checkpoint(path)
    assert "encrypted" in caught.value.cause
    assert "cleanly" in (caught.value.hint or "")


# ---- DuckDB looks at it ------------------------------------------------------------------------------------


def test_looking_at_a_sound_replica_changes_nothing_and_leaves_nothing(replica: Path, scratch: Path) -> None:
    before = digest(replica)
    open_check(replica)
    full_scan(replica)
    assert digest(replica) == before
    assert list(replica.parent.iterdir()) == [replica]
    assert list(scratch.iterdir()) == []


def test_a_scan_reads_tables_with_odd_names_types_and_generated_columns(replica: Path) -> None:
    script = """
        CREATE SCHEMA "my ""schema";
        CREATE TABLE "my ""schema"."ta""ble; --" (
            "a b" INT, "select" STRUCT(x INT, y VARCHAR[]), m MAP(INT, INT), u UNION(p INT, q VARCHAR), j JSON,
            d DECIMAL(38, 10), b BLOB, e ENUM('x'), f INT[3], twice INT GENERATED ALWAYS AS ("a b" + 1));
        INSERT INTO "my ""schema"."ta""ble; --" ("a b") VALUES (1);
        CREATE TABLE main.customers2 AS FROM customers;
        CREATE VIEW broken AS SELECT 1 AS i;
        CHECKPOINT;
    """
    subprocess.run([sys.executable, "-c", DIE, str(replica), script], check=True)
    full_scan(replica)


def test_damage_that_opening_does_not_see_is_found_by_the_scan(tmp_path: Path, make_replica: MakeReplica) -> None:
    replica = make_replica(tmp_path / "replica.db", rows=100_000)
    with replica.open("r+b") as file:
        file.seek(HEADER_BYTES + 262_144 + 100_000)
        file.write(b"damaged")
    open_check(replica)
    with pytest.raises(DamagedError) as caught:
        full_scan(replica)
    assert "checksum" in caught.value.cause
    assert "\n" not in caught.value.cause
    assert caught.value.subject == str(replica)


def test_a_file_that_opening_finds_damaged_says_so(replica: Path) -> None:
    # Everything behind the header is gone, and with it the catalog.
    os.truncate(replica, HEADER_BYTES)
    with pytest.raises(DamagedError) as caught:
        open_check(replica)
    assert caught.value.operation == "open"


def test_looking_at_a_file_with_a_writer_names_the_writer(replica: Path, hold: Callable[..., Holder]) -> None:
    writer = hold(replica, "writer")
    for look in (open_check, full_scan):
        with pytest.raises(BusyError) as caught:
            look(replica)
        assert f"PID {writer.pid} (" in caught.value.holder


def test_a_cancelled_scan_ends_its_child_and_leaves_nothing(replica: Path, scratch: Path) -> None:
    end_idle()  # the new one's start is waited for
    with pytest.raises(CancelledError):
        full_scan(replica, control=CancelsWhileWaiting(2))
    assert list(scratch.iterdir()) == []
    # A child that still ran would hold a read lock.
    assert duckdb_in_another_process(replica, "writer") == "opened"


def test_the_child_is_found_and_not_misled_wherever_the_caller_stands(
    replica: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "duckdb.py").write_text("raise RuntimeError('the wrong duckdb')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    open_check(Path("data") / replica.name)


@pytest.mark.slow
def test_the_child_stops_and_removes_its_folder_when_its_parent_is_gone(tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    program = (
        "import time; from duckling_provider.replica import duckdb_program as program;"
        "program.ACTIONS['open'] = lambda path, temp: time.sleep(3600); program.main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    # What the kernel does with the pipe of a parent that was killed.
    child.communicate(
        json.dumps(["duckling_provider.replica.duckdb_program", "open", "/nowhere", str(temp)]).encode() + b"\n",
        timeout=60,
    )
    assert child.returncode == 1
    assert not temp.exists()


def idle_child() -> int:
    """Its process id."""
    warm_up()
    assert child_process._idle is not None
    return child_process._idle._process.pid


def test_one_child_serves_checkpoint_counting_and_scan(with_wal: Path) -> None:
    child = idle_child()
    checkpoint(with_wal)
    assert rows_of(with_wal)
    full_scan(with_wal)
    assert idle_child() == child
    with with_wal.open("r+b"):  # no lock of a job that is over keeps a writer out
        assert writer_of(with_wal) is None
    assert duckdb_in_another_process(with_wal, "writer") == "opened"


def test_a_child_that_met_damage_is_trusted_with_no_other_file(replica: Path) -> None:
    child = idle_child()
    os.truncate(replica, HEADER_BYTES)
    with pytest.raises(DamagedError):
        open_check(replica)
    assert idle_child() != child


def test_a_child_that_has_ended_while_it_waited_is_replaced(replica: Path) -> None:
    child = idle_child()
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    open_check(replica)


def test_a_child_that_leaves_for_lack_of_work_as_it_gets_some_is_replaced(replica: Path) -> None:
    end_idle()
    program = "import sys; sys.stdin.readline()"
    leaving = child_process._Child()
    leaving.end()
    leaving._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child_process._keep(leaving)
    open_check(replica)
    assert leaving._process.returncode == 0


def test_a_forked_process_leaves_its_parent_s_child_alone(replica: Path) -> None:
    child = idle_child()
    if (fork := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            end_idle()
        os._exit(0)
    os.waitpid(fork, 0)
    open_check(replica)
    assert idle_child() == child


def test_every_error_is_one_of_the_family_and_names_the_file(replica: Path) -> None:
    os.truncate(replica, 5000)
    for use in (header_of, checkpoint, open_check, full_scan):
        with pytest.raises(DucklingError) as caught:
            use(replica)
        assert caught.value.subject == str(replica)
