"""The main job without a person: a replica is backed up by Airflow, damaged, and restored by Airflow; then only what
changed goes to the store and comes back.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import secrets
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo import ROOT, DemoError, damage, replica, shown
from demo.airflow import Airflow
from demo.databases import write_databases
from demo.screen import Screen
from demo.service import ignore_stop_signals, stop_all
from demo.store import store_that_copies

DATABASE = "shop"
BACKUP_DAG, RESTORE_DAG = f"duckling_backup__{DATABASE}", f"duckling_restore__{DATABASE}"
#: The replica, its two local backups, the two objects, a copy for the foreign WAL, and the restore's temporary file.
_COPIES = 7
_AIRFLOW_BYTES = 200_000_000


def run(folder: Path, *, megabytes: int, screen: Screen) -> None:
    """The whole demo in `folder`, which is emptied first; nothing is left running, whatever happens.

    :raises DemoError: when a step does not do what it should.
    """
    _clear(folder, megabytes)
    with ExitStack() as stack:
        stack.callback(_end, folder)
        _Demo(folder, screen).run(megabytes)
    took = f"{screen.seconds:.0f} s"
    screen.say(f"\nDone in {took}; nothing is left running. Logs, store and replica: {shown(folder)}")


def _end(folder: Path) -> None:
    ignore_stop_signals()
    stop_all(folder)


def _clear(folder: Path, megabytes: int) -> None:
    stop_all(folder)  # a demo that was killed may have left something
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    needed, free = _COPIES * megabytes * 1_000_000 + _AIRFLOW_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise DemoError(
            f"needs {_size(needed)} of disk in {folder}, {_size(free)} are free; DEMO_SIZE_MB={megabytes} can be less"
        )


class _Demo:
    def __init__(self, folder: Path, screen: Screen) -> None:
        self.folder, self.screen = folder, screen
        self.data = folder / "data"
        self.replica = self.data / f"{DATABASE}.db"
        self.store = store_that_copies(folder / "store")
        self.airflow = Airflow(folder / "airflow", self.data)

    def run(self, megabytes: int) -> None:
        self.screen.title("Duckling: a DuckDB replica goes to S3 and comes back, run by Airflow")
        before, digest = self._set_up(megabytes)
        key = self._back_up()
        self._damage(before)
        self._restore(key)
        self._compare(before, digest)
        self._back_up_what_changed()
        self._restore_what_changed(self._mistake())

    def _set_up(self, megabytes: int) -> tuple[list[replica.Table], str]:
        self.data.mkdir()
        # Airflow's database, while store and replica are made: none needs the others.
        migration = self.airflow.begin_migration()
        with self.screen.step("Store", "starting an S3-compatible server") as step:
            where = self.store.start()
            step.result = f"{self.store.name} at {where['endpoint']}, data on disk"
        with self.screen.step("Replica", f"filling {self.replica.name}") as step:
            before = replica.make(self.replica, megabytes=megabytes)
            digest = _sha256(self.replica)
            rows = sum(table.rows for table in before)
            step.result = f"{self.replica.name}: {len(before)} tables, {rows:,} rows, {_file_size(self.replica)}"
        with self.screen.step("Configuration", "writing databases.json") as step:
            s3 = {**where, "encryption": "client-aes256", "encryptionKey": secrets.token_hex(32), "objectFormat": 2}
            write_databases(
                self.data, [{"id": DATABASE, "name": "Shop", "duckdbPath": f"data/{DATABASE}.db", "s3": s3}]
            )
            step.result = "databases.json: client-aes256 in format 2, with a fresh key"
        with self.screen.step("Airflow", "creating its metadata database") as step:
            self.airflow.finish_migration(migration)
            step.result = f"Airflow {importlib.metadata.version('apache-airflow')} with a home of its own"
        return before, digest

    def _back_up(self) -> str:
        self._dag("Backup", BACKUP_DAG)
        with self.screen.step("Listing", f"duckling list {DATABASE}") as step:
            listed = json.loads(self._duckling("list", DATABASE, "--json").stdout)
            # Its table is wider than this screen.
            for backup in (*listed["local"], *listed["s3"]):
                name = backup.get("key") or backup["filename"]
                step.note(f"{name}  {backup['size'] >> 20} MiB  {backup['mode']}, {backup['state']}")
            if len(listed["s3"]) != 1:
                raise DemoError(f"expected one backup in S3, found {listed['s3']}")
        key: str = listed["s3"][0]["key"]
        return key

    def _damage(self, before: list[replica.Table]) -> None:
        scratch, wal = self.folder / "scratch", damage.wal_of(self.replica)
        with self.screen.step("Damage", f"spoiling {self.replica.name}") as step:
            foreign = damage.make_foreign_wal(self.replica, scratch)
            backup = next((self.data / "backups" / DATABASE).glob("*.db"))
            naive = damage.naive_restore(backup, foreign, scratch)
            spoiled, of = damage.overwrite_blocks(self.replica)
            refused = json.loads(self._duckling("backup", DATABASE, "--json", fails=True).stdout)["error"]
            foreign.rename(wal)
            scratch.rmdir()
            step.result = f"{spoiled} of {of} blocks overwritten, a WAL of another state left beside"
            step.note(_one_line("duckling backup refuses", refused.removeprefix(f"{self.replica}: ")))
            step.note(_one_line("DuckDB", self._unreadable()))
            step.note(_one_line("A plain copy with that WAL", _differences(before, naive)))

    def _unreadable(self) -> str:
        try:
            replica.tables(self.replica)
        except DemoError as error:
            return str(error)
        raise DemoError("DuckDB read every value of the damaged replica without complaint")

    def _restore(self, key: str) -> None:
        # All of it comes from the store; what is here already is for the end.
        self._dag("Restore", RESTORE_DAG, {"key": key, "no_delta": True})

    def _compare(self, before: list[replica.Table], digest: str) -> None:
        with self.screen.step("Comparison", "reading every value of every table") as step:
            after = {table.name: table for table in replica.tables(self.replica)}
            wrong = [table.name for table in before if after.get(table.name) != table]
            if wrong or len(after) != len(before):
                raise DemoError(f"not what they were before: {', '.join(wrong) or ', '.join(after)}")
            if damage.wal_of(self.replica).exists():
                raise DemoError("the foreign WAL still lies beside the replica")
            if _sha256(self.replica) != digest:
                raise DemoError("every table is as it was, but the file is not the same")
            step.result = "every table is what it was, and so is every byte of the file"
        self.screen.table(
            ("table", "rows", "content before", "content after", ""),
            [(old.name, f"{old.rows:,}", old.digest, after[old.name].digest, "same") for old in before],
        )

    def _back_up_what_changed(self) -> None:
        with self.screen.step("A day later", "1% more events") as step:
            size = self.replica.stat().st_size
            replica.grow(self.replica)
            step.result = f"1% more events: {_size(size)} became {_file_size(self.replica)}"
        with self.screen.step("Backup", f"duckling backup {DATABASE}") as step:
            done = json.loads(self._duckling("backup", DATABASE, "--json").stdout)
            sent = f"{_size(done['bytesSent'])} of {_size(done['size'])} sent"
            copied = f"the store copied {_size(done['bytesCopied'])} of the backup before"
            step.result = f"{sent}, {done['fullBecause'] or copied}"

    def _mistake(self) -> str:
        """SHA-256 of the replica before it."""
        with self.screen.step("Mistake", "UPDATE products SET price = 0") as step:
            digest = _sha256(self.replica)
            replica.mistake(self.replica)
            # As when they have expired: the store alone has the backup.
            shutil.rmtree(self.data / "backups" / DATABASE)
            step.result = "UPDATE products SET price = 0; the local backups are gone"
        return digest

    def _restore_what_changed(self, digest: str) -> None:
        with self.screen.step("Restore", f"duckling restore {DATABASE}") as step:
            done = json.loads(self._duckling("restore", DATABASE, "--json").stdout)
            fetched = f"{_size(done['bytesReceived'])} of {_size(done['size'])} fetched"
            lent = f"{_size(done['bytesLent'])} were on this machine, each segment proven"
            step.result = f"{fetched}, {done['fullBecause'] or lent}"
            if _sha256(self.replica) != digest:
                raise DemoError("what was restored is not what was backed up")
            step.note("every byte is as it was before the mistake")

    # ---- the commands that do the work -------------------------------------------------------------------

    def _dag(self, label: str, dag_id: str, conf: Mapping[str, Any] | None = None) -> None:
        arguments = f" --conf {shlex.quote(json.dumps(conf))}" if conf else ""
        with self.screen.step(label, f"airflow dags test {dag_id}{arguments}") as step:
            tasks = self.airflow.test(dag_id, conf)
            step.note(" · ".join(f"{task.name} {task.seconds:.1f} s" for task in tasks))

    def _duckling(self, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        """The command ``duckling``; `fails` tells that it must."""
        command = [sys.executable, "-m", "duckling_provider.cli.app", *arguments]
        done = subprocess.run(
            command, env=self.airflow.environment(), capture_output=True, text=True, cwd=ROOT, check=False
        )
        if bool(done.returncode) is not fails:
            told = done.stdout + done.stderr
            raise DemoError(f"duckling {' '.join(arguments)} ended with {done.returncode}:\n{told}")
        return done


def _differences(before: list[replica.Table], naive: list[replica.Table]) -> str:
    """In words, for people."""
    found = {table.name: table for table in naive}
    told = []
    for table in before:
        other = found.get(table.name)
        if other is None:
            told.append(f"{table.name} is missing")
        elif other.rows != table.rows:
            told.append(f"{other.rows - table.rows:+,} rows in {table.name}")
        elif other.digest != table.digest:
            told.append(f"{table.name} changed")
    if not told:
        raise DemoError("the foreign WAL does no harm, so the restore proves nothing")
    return ", ".join(told)


def _one_line(who: str, text: str) -> str:
    return textwrap.shorten(f"{who}: {text}", 74, placeholder=" …")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _file_size(path: Path) -> str:
    return _size(path.stat().st_size)


def _size(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
