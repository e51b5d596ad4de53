"""A backup as a proven file beside a restore's target: what of it lies on this machine is taken, the rest fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from duckling_provider.backup.inventory.backup_object import StoredBackup
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.reading.delta import Lent, Patch, lend
from duckling_provider.backup.reading.proofs import Proof, Received, proof_of
from duckling_provider.backup.reading.target import new_beside
from duckling_provider.backup.reading.verified_read import read_verified
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.errors import DamagedError, IntegrityError
from duckling_provider.config.databases import Database
from duckling_provider.formats.pipeline import DurableWriter, in_turn
from duckling_provider.replica.blocks import BlockReport
from duckling_provider.replica.child_process import warm_up
from duckling_provider.replica.downloads import Download, LeftDownload, clear_downloads, unfinished
from duckling_provider.replica.duckdb_file import open_check
from duckling_provider.stores.store import BackupSource

log = logging.getLogger(__name__)


@contextlib.contextmanager
def received_file(backup: StoredBackup, target: Path, delta: Delta, control: Control) -> Iterator[Path]:
    """The backup as a complete, proven and synced file beside `target`; removed on leaving unless it was renamed."""
    database, store, new = delta.database, delta.store, new_beside(target)
    with disk_errors(target.parent, subject=database.id, needed=backup.size):
        # By its mere name: a restore to elsewhere may run on another machine than the entry's, and leaves notes there.
        notes = database.backup_path
        clear_downloads(notes)
        of = _identity_of(store, backup) if delta.is_wanted else ""
        with unfinished(new, notes=notes, of=of, left=delta.left) as download:
            missing = max(0, backup.size - download.allocated)
            require_space(target.parent, missing, subject=database.id, purpose="the restored file")
            _receive(store, backup, new, download, delta, control)
            yield new


@dataclass
class Delta:
    """Whether a restore takes from this machine what lies here, and what came of it: `bytes_lent`, or `because`.

    :param wanted: False: all is to be fetched.
    :param owner: whose hold keeps the replica's writers away; empty where none does.
    :param left: what a restore to the same place left that was killed.
    """

    database: Database
    store: BackupSource
    wanted: bool
    owner: str = ""
    left: LeftDownload | None = None
    bytes_lent: int = 0
    because: str = ""

    @property
    def is_wanted(self) -> bool:
        return self.wanted and not isinstance(self.store, LocalBackups)

    @contextlib.contextmanager
    def received(self, backup: StoredBackup, download: Download, proof: Proof | None) -> Iterator[Received | None]:
        """What is to be kept of the bytes that arrive, for a restore that goes on with them; None where that is not
        needed.
        """
        if not self.is_wanted or proof is not None:
            yield None
            return
        with contextlib.closing(Received(download.received, backup.size, goes_on=download.goes_on)) as received:
            yield received

    def lend(
        self,
        backup: StoredBackup,
        download: Download,
        proof: Proof | None,
        received: Received | None,
        control: Control,
    ) -> Lent | None:
        """What fills the new file already; None where all is to be fetched."""
        self.bytes_lent, self.because = 0, "" if self.wanted else "it was asked for"
        if not self.is_wanted:
            return None
        lent = lend(self.database, backup, download, proof, received, owner=self.owner, control=control)
        self.bytes_lent, self.because = lent.bytes_lent, lent.because
        if not lent.numbers:
            log.info("%s%s: all of it is fetched: %s", self.store.url, backup.key, lent.because)
            return None
        return lent

    def failed(self, backup: StoredBackup, fd: int, error: IntegrityError) -> None:
        """What was lent did not make the backup: nothing of it is used."""
        log.warning("%s%s: all of it is fetched: %s", self.store.url, backup.key, error.cause)
        self.bytes_lent, self.because = 0, f"with what was here: {error.cause}"
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)


def _fill(store: BackupSource, backup: StoredBackup, download: Download, delta: Delta, control: Control) -> BlockReport:
    """The backup's bytes into the new file, and their proof."""
    fd = download.fd
    warm_up()  # it will open the file
    proof = proof_of(delta.database, backup) if delta.is_wanted else None
    with delta.received(backup, download, proof) as received:
        noted = [] if received is None else [received.update]
        lent = delta.lend(backup, download, proof, received, control)
        if lent is not None:
            try:
                with DurableWriter(fd) as writer:
                    sink = in_turn(Patch(lent, writer).write, *noted)
                    return read_verified(backup, store, sink=sink, lent=lent, control=control)
            except IntegrityError as error:
                delta.failed(backup, fd, error)
                if received is not None:
                    received.forget()
        with DurableWriter(fd) as writer:
            return read_verified(backup, store, sink=in_turn(writer.write, *noted), control=control)


def _receive(
    store: BackupSource, backup: StoredBackup, new: Path, download: Download, delta: Delta, control: Control
) -> None:
    report = _fill(store, backup, download, delta, control)
    if report.skipped:
        return  # encrypted by DuckDB: only the owner of that key can open it
    try:
        open_check(new, control=control)
    except DamagedError as error:
        raise IntegrityError(
            f"the backup arrived as it was stored, but DuckDB can't open it: {error.cause}",
            subject=store.url + backup.key,
            hint="The replica was damaged when it was backed up; use an older backup.",
        ) from error


def _identity_of(store: BackupSource, backup: StoredBackup) -> str:
    """What tells this object, read with this key, from every other: 64 hex digits; empty where nothing does."""
    digest = backup.mac or backup.sha256
    if not (backup.etag or digest):
        return ""
    facts = (store.url, backup.key, backup.etag, backup.size, backup.object_size, backup.mode, digest)
    return hashlib.sha256(json.dumps([*facts, backup.key_fingerprint]).encode()).hexdigest()
