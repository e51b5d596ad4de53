"""What becomes of a look at some rows of the server: compared with the replica, looked at again, repaired, noted."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.model.validated import Place, TableValidation
from duckling_provider.replication.mysql.source import CHANGED, SourceError
from duckling_provider.replication.run import Run
from duckling_provider.replication.validate import schedule
from duckling_provider.replication.validate.keys import Key, KeyTexts
from duckling_provider.replication.validate.looks import Asker
from duckling_provider.replication.validate.sides import Kind, Sides, misshapen
from duckling_provider.replication.validate.touched import Touched
from duckling_provider.replication.validate.whole import WholeTable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: How often rows that changed are looked at before they are left for the next comparison.
_LOOKS = 5
#: Seconds between two looks whether the server shows what the replica has, and how many.
_WAIT, _WAITS = 0.1, 10
#: Rows that changed during the first look, of which so many are looked at again.
_MOST_CHANGED = 1000
#: Rows of one piece that differ: if there are more, the whole table is copied again.
_MOST_REPAIRED = 1000
#: Bytes of a table that is looked at as a whole, up to which its rows are read where checksums differ.
_MOST_READ = 256 << 20

log = logging.getLogger(__name__)


@dataclass
class Look:
    """One piece of one table on its way: what the server said of it, and what became of that.

    :param after: how far the comparison has come with it; None if that is the end of the table.
    :param told: by MySQL, see `Asker.next_rows`; of keys that the replica has, see `Asker.present`.
    :param asked: keys of the replica.
    :param doubts: keys that have to be looked at again, and how often they differed.
    """

    state: TableState
    known: TableValidation
    key: Key
    place: Place
    after: Place | None = None
    told: list[tuple[str | None, ...]] = field(default_factory=list)
    asked: list[KeyTexts] = field(default_factory=list)
    doubts: dict[KeyTexts, int] = field(default_factory=dict)
    unsettled: int = 0
    found: Counter[Kind] = field(default_factory=Counter)
    rows: int = 0

    @property
    def table(self) -> Table:
        return self.state.table


class Settling:
    """Settles the looks of one run.

    :param known: what is known of each table, kept up to date.
    """

    def __init__(self, run: Run, following: Following, known: dict[str, TableValidation]) -> None:
        self._run, self._following, self._known = run, following, known

    def settle(self, asker: Asker, looks: list[Look]) -> None:
        """Compare what the server said of some pieces, by checksums and then by values."""
        self._look_again(asker, self._compare(asker, looks))

    def is_shown(self, asker: Asker) -> bool:
        """Wait a moment until the server shows all that the replica has; whether it does."""
        for _ in range(_WAITS):
            if self._run.position is not None and asker.shows(self._run.position):
                return True
            self._run.control.sleep(_WAIT)
        log.info("%s: the server does not show yet what is in its binlog: compared later", self._run.database.id)
        return False

    def _compare(self, asker: Asker, looks: list[Look]) -> list[Look]:
        """Compare the checksums; returns the pieces in which rows have to be looked at again."""
        touched = self._follow(asker, {look.table.name: look.key.columns for look in looks})
        doubtful = []
        with self._writing() as (connection, ledger):
            for look in self._unchanged(connection, ledger, looks):
                sides = Sides(connection, look.table, look.key, touched)
                if look.place.direction == "ours":
                    differ, changed = sides.surplus(look.asked, look.told, _MOST_CHANGED + 1)
                else:
                    upto = look.after.after if look.after is not None and look.after.direction == "theirs" else None
                    differ, changed = sides.doubtful(look.told, look.place.after, upto, 2 * schedule.PIECE_ROWS)
                seen = 0 if touched.is_clouded(look.table.name) else 1
                again = sorted(changed)[:_MOST_CHANGED]
                look.unsettled = len(changed) - len(again)
                look.doubts = dict.fromkeys(again, 0) | dict.fromkeys(differ, seen)
                if look.doubts:
                    doubtful.append(look)
                else:
                    self._save(connection, ledger, look)
        return doubtful

    def _look_again(self, asker: Asker, looks: list[Look]) -> None:
        """Look at rows by their values until each is known to be the same or not, or has changed too often."""
        for number in range(_LOOKS):
            if not looks or not self.is_shown(asker):
                return  # in doubt, the next run looks at these pieces again
            try:
                values = [asker.values(look.table, look.key, list(look.doubts)) for look in looks]
            except SourceError as error:
                if error.code not in CHANGED:
                    raise
                return  # the next run looks at the table as it is then
            touched = self._follow(asker, {look.table.name: look.key.columns for look in looks})
            left = []
            with self._writing() as (connection, ledger):
                usable = {id(look) for look in self._unchanged(connection, ledger, looks)}
                for look, told in zip(looks, values, strict=True):
                    if id(look) not in usable:
                        continue
                    sides = Sides(connection, look.table, look.key, touched)
                    differ, changed = sides.differing(list(look.doubts), told)
                    clouded = touched.is_clouded(look.table.name)
                    confirmed = {k: kind for k, kind in differ.items() if not clouded and look.doubts[k]}
                    self._repair(sides, ledger, look, confirmed)
                    look.doubts = {
                        key: seen + (key in differ and not clouded)
                        for key, seen in look.doubts.items()
                        if (key in differ or key in changed) and key not in confirmed
                    }
                    if look.doubts and number + 1 < _LOOKS:
                        left.append(look)
                        self._count(ledger, look)
                    else:
                        look.unsettled += len(look.doubts)
                        self._save(connection, ledger, look)
            looks = left

    def _repair(self, sides: Sides, ledger: Ledger, look: Look, confirmed: dict[KeyTexts, Kind]) -> None:
        if not confirmed:
            return
        kinds = Counter(confirmed.values())
        look.found.update(kinds)
        told = ", ".join(f"{kinds[kind]} {kind}" for kind in ("missing", "extra", "different") if kinds[kind])
        name, count = look.table.name, len(confirmed)
        if count > _MOST_REPAIRED:
            note = f"{count} of {look.rows} rows that were compared differ from MySQL ({told})"
            ledger.mark_recopy(name, note)
            self._run.done.recopy[name] = note
        else:
            sides.repair(list(confirmed))
            note = f"{count} row{'s' * (count != 1)} differed from MySQL ({told}) and {'were' if count != 1 else 'was'}"
            note += " copied again"
        ledger.record("difference", f"{name}: {note}")
        log.warning("%s: %s: %s", self._run.database.id, name, note)

    # ---- tables as a whole ---------------------------------------------------------------------------------------

    def settle_whole(self, asker: Asker, state: TableState, known: TableValidation, rows: int) -> None:
        """Compare a table whose rows can't be named.

        :param rows: about how many it has.
        """
        name = state.name
        self._run.done.pieces += 1
        whole = WholeTable(state.table, rows)
        try:
            buckets = asker.buckets(whole.checksum)
            rows = sum(bucket.rows for bucket in buckets.values())
            look = Look(state, known, Key(()), known.place or Place(), rows=rows)
            self._run.done.compared += rows
            touched = self._follow(asker, {name: whole.columns})
            with self._writing() as (connection, ledger):
                if not self._unchanged(connection, ledger, [look]):
                    return
                differing = whole.differing(connection, buckets, touched)
                if differing is not None and not differing:
                    look.unsettled = touched.count(name)
                    self._save(connection, ledger, look)
                    return
            if differing is None:
                return  # the next run looks again
            self._whole_again(asker, whole, look, differing)
        except SourceError as error:
            self.failed(state, known, error)

    def _whole_again(self, asker: Asker, whole: WholeTable, look: Look, differing: set[str | None]) -> None:
        name = look.table.name
        statistics = asker.statistics(look.table)
        share = 1.0 if None in differing else min(1.0, len(differing) * 4096 / max(1, look.rows))
        if look.rows * statistics.row_bytes * share > _MOST_READ:
            self._note(look, "its checksum differs from MySQL's, and its rows can't be looked at one by one")
            return
        for _ in range(_LOOKS):
            if not self.is_shown(asker):
                return
            pieces = asker.where(look.table, whole.checksum.mysql_where(differing))
            touched = self._follow(asker, {name: whole.columns})
            if touched.is_clouded(name) or touched.count(name):
                continue
            with self._writing() as (connection, ledger):
                if not self._unchanged(connection, ledger, [look]):
                    return
                counts = whole.contrast(connection, pieces, differing)
                if any(counts):
                    kinds: tuple[Kind, ...] = ("missing", "extra", "different")
                    look.found.update(dict(zip(kinds, counts, strict=True)))
                    told = ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True) if count)
                    note = f"it differs from MySQL ({told})"
                    ledger.mark_recopy(name, note)
                    ledger.record("difference", f"{name}: {note}")
                    self._run.done.recopy[name] = note
                    log.warning("%s: %s: %s", self._run.database.id, name, note)
                self._save(connection, ledger, look)
            return
        self._note(look, "its checksum differs from MySQL's, and it changed each time that its rows were looked at")

    # ---- the replica ---------------------------------------------------------------------------------------------

    def _follow(self, asker: Asker, columns: dict[str, tuple[Column, ...]]) -> Touched:
        """Bring the replica to where the server stands now; returns what changed on the way."""
        touched = Touched(columns, lambda: self._run.references)
        self._following.follow_to(asker.position(), touched)
        return touched

    def _unchanged(self, connection: DuckDBPyConnection, ledger: Ledger, looks: list[Look]) -> list[Look]:
        """Those whose table and progress are what they were when the server was asked; a table that is not as a copy
        would make it is marked.
        """
        if ledger.position() != self._run.position:
            return []  # another program moved it: what was seen to change is not all that did
        states, known = ledger.tables(), ledger.validations.read()
        found = []
        for look in looks:
            state = states.get(look.table.name)
            before = self._known.get(look.table.name)
            if state is None or state.state != "ok" or state.table != look.table:
                continue
            if known.get(look.table.name) != before:
                continue
            note = misshapen(connection, look.table)
            if note:
                ledger.mark_recopy(look.table.name, note)
                ledger.record("difference", f"{look.table.name}: {note}")
                log.warning("%s: %s: %s", self._run.database.id, look.table.name, note)
                self._run.done.recopy[look.table.name] = note
                look.found["different"] += 1
                self._count(ledger, look)
                continue
            found.append(look)
        return found

    def _save(self, connection: DuckDBPyConnection, ledger: Ledger, look: Look) -> None:
        """The piece is done."""
        if look.after is None and look.key.columns:
            self._drop_keyless(connection, ledger, look)
        known = self._known.get(look.table.name)
        known = replace(
            look.known if known is None or known.begun_at != look.known.begun_at else known,
            looked_at=now(),
            place=look.after,
            rows=look.known.rows + look.rows,
            unsettled=look.known.unsettled + look.unsettled,
        )
        if look.after is None:
            known = replace(known, validated_at=known.begun_at)
            log.info("%s: %s: equal, %d rows compared", self._run.database.id, known.name, known.rows)
        self._known[known.name] = known
        self._count(ledger, look)

    def _drop_keyless(self, connection: DuckDBPyConnection, ledger: Ledger, look: Look) -> None:
        """Rows with a NULL in the key can't be named, and can't be MySQL's: no zero dates were met in it."""
        sides = Sides(connection, look.table, look.key, Touched({look.table.name: look.key.columns}, list))
        count = sides.drop_without_key()
        if count:
            look.found["extra"] += count
            note = f"{count} rows had no key, which MySQL can't have, and were removed"
            ledger.record("difference", f"{look.table.name}: {note}")
            log.warning("%s: %s: %s", self._run.database.id, look.table.name, note)

    def _count(self, ledger: Ledger, look: Look) -> None:
        """Note what was found, and where the comparison stands."""
        name = look.table.name
        known = self._known.get(name, look.known)
        count = look.found.total()
        if count:
            known = replace(known, differences=known.differences + count, differed_at=now())
            self._run.done.differing[name] = self._run.done.differing.get(name, 0) + count
            look.found.clear()
        self._known[name] = known
        ledger.validations.save(known)

    def failed(self, state: TableState, known: TableValidation, error: SourceError) -> None:
        """Note that a table can't be compared, which is no reason not to follow it.

        :raises SourceError: another try may help. One that was altered meanwhile gets it from the next run.
        """
        if error.retryable:
            raise error
        if error.code not in CHANGED:
            self._note(Look(state, known, Key(()), Place()), f"it can't be compared: {error.cause}")

    def _note(self, look: Look, note: str) -> None:
        log.warning("%s: %s: %s", self._run.database.id, look.table.name, note)
        with self._writing() as (_, ledger):
            known = replace(look.known, looked_at=now(), place=None, note=note)
            self._known[known.name] = known
            ledger.validations.save(known)
            ledger.record("validation", f"{known.name}: {note}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[DuckDBPyConnection, Ledger]]:
        with self._run.access("sync"), self._run.opened() as connection:
            connection.begin()
            yield connection, Ledger.open(connection)
            connection.commit()


def now() -> datetime:
    return datetime.now(timezone.utc)
