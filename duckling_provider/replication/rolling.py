"""The rolling validation: each sync compares a small part of the replica with the server, and repairs what differs.

A look at some rows: the server is asked in single statements, without a lock or a lasting transaction. Then the replica
is brought to where the binlog stood after that, and the rows are compared there. A row that no event changed in between
must be the same on both sides. One that did change is looked at again, by value; so is one that differs, and only when
the second look finds the difference too is it counted, and the row replaced by the server's. The look that repairs is
one transaction of the replica: what it knows, it found, and it mended is committed at once or not at all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.validated import Place, TableValidation, oldest
from duckling_provider.replication.mysql.source import SourceError
from duckling_provider.replication.run import Run
from duckling_provider.replication.settling import Look, Settling, now
from duckling_provider.replication.validate import schedule
from duckling_provider.replication.validate.keys import Key, KeyTexts, UnfitKeyError
from duckling_provider.replication.validate.looks import Asker
from duckling_provider.replication.validate.sides import misshapen, next_keys

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: Rows and seconds of the server after which what it said is compared.
_BATCH_ROWS, _BATCH_SECONDS = 20_000, 1.0


class Rolling:
    """The rolling validation of one run."""

    def __init__(self, run: Run, following: Following) -> None:
        self._run, self._following = run, following
        self._known: dict[str, TableValidation] = {}
        self._settling = Settling(run, following, self._known)
        self._states: dict[str, TableState] = {}
        self._sizes: dict[str, int] = {}
        #: What the last go took is to be its share of the time until the next, by `time.monotonic`.
        self._rests_until = 0.0
        #: Whether a table waits for a new copy.
        self._is_waiting = False

    def work(self) -> None:
        """Compare what is due. The replica is to stand where the server stands, or close to it.

        :raises SourceError: the server can't be reached; the next run goes on from there.
        """
        interval = self._run.database.validate_interval_days * 86_400
        with self._opened() as connection:
            self._read(connection)
        if interval:
            moment = now()
            names = schedule.due(self._states, self._known, interval, moment)
            allowance = schedule.allowance(self._sizes, self._known, interval, moment)
            started = time.monotonic()
            if names and allowance.seconds and started >= self._rests_until:
                with Asker(self._run.source, self._run.control) as asker:
                    self._compare_all(asker, names, allowance)
                ended = time.monotonic()
                self._rests_until = ended + (ended - started) / schedule.BURDEN
        self._tell()

    def _read(self, connection: DuckDBPyConnection) -> None:
        ledger = Ledger.open(connection)
        self._known.clear()
        self._known.update(ledger.validations.read())
        mirrored = {name: state for name, state in ledger.tables().items() if self._run.mirrors(name)}
        self._states = {name: state for name, state in mirrored.items() if state.state == "ok" and state.table.columns}
        self._is_waiting = len(self._states) < len(mirrored)
        rows = connection.execute(
            "SELECT table_name, estimated_size FROM duckdb_tables() "
            "WHERE database_name = current_database() AND schema_name = 'main'"
        ).fetchall()
        sizes = {str(name): int(size or 0) for name, size in rows}
        self._sizes = {name: sizes.get(name, 0) for name in self._states}

    def _tell(self) -> None:
        done = self._run.done
        done.is_told = True
        waiting = self._is_waiting or bool(done.recopy)
        done.validated = None if waiting else oldest(self._states, self._known)
        done.differences = sum(table.differences for table in self._known.values())
        done.differed = max((table.differed_at for table in self._known.values() if table.differed_at), default=None)

    # ---- looking -------------------------------------------------------------------------------------------------

    def _compare_all(self, asker: Asker, names: list[str], allowance: schedule.Allowance) -> None:
        started = time.monotonic()
        left, waiting = allowance.rows, names
        while waiting and (not self._run.done.pieces or (left > 0 and time.monotonic() - started < allowance.seconds)):
            if not self._settling.is_shown(asker):
                return
            before = self._run.done.compared
            pieces = self._run.done.pieces
            waiting = self._batch(asker, waiting, left)
            left -= self._run.done.compared - before + schedule.cost_of(0) * (self._run.done.pieces - pieces)

    def _batch(self, asker: Asker, names: list[str], left: int) -> list[str]:
        """Look at a piece of each of the first tables; returns the names that are still to be looked at."""
        started = time.monotonic()
        looks: list[Look] = []
        rest, rows = list(names), 0
        ours = self._keys_of_ours(names)
        finished: set[str] = set()
        while rest:
            name = rest.pop(0)
            if self._place(name).direction == "ours" and name not in ours:
                continue
            state = self._states[name]
            known = self._begun(state)
            key = Key.of(state.table)
            try:
                if key is None:
                    raise UnfitKeyError(name)
                look = Look(state, known, key, known.place or Place())
                self._ask(asker, look, ours)
                looks.append(look)
            except UnfitKeyError:
                if not looks:  # else what was asked is compared first, before the replica moves on
                    finished.add(name)
                    self._settling.settle_whole(asker, state, known, self._sizes[name])
                break
            except SourceError as error:
                finished.add(name)
                self._settling.failed(state, known, error)
                break
            rows += schedule.cost_of(look.rows)
            if rows >= min(left, _BATCH_ROWS) or time.monotonic() - started >= _BATCH_SECONDS:
                break
        if looks:
            self._run.done.pieces += len(looks)
            self._settling.settle(asker, looks)
        finished |= {look.table.name for look in looks if look.after is None or self._is_stuck(look)}
        self._run.done.compared += sum(look.rows for look in looks)
        return [name for name in names if name not in finished]

    def _is_stuck(self, look: Look) -> bool:
        """Whether its place has not moved: the next run looks there again."""
        known = self._known.get(look.table.name)
        return known is None or known.place != look.after

    def _begun(self, state: TableState) -> TableValidation:
        """What is known of the table, with the comparison that goes on or begins now."""
        known = self._known.get(state.name, TableValidation(state.name))
        shape = repr((state.table.columns, state.table.primary_key))
        if known.place is None or known.shape != shape:
            known = replace(known, place=Place(), begun_at=now(), shape=shape, rows=0, unsettled=0, note="")
        return known

    def _keys_of_ours(self, names: list[str]) -> dict[str, list[KeyTexts]]:
        """Of the tables that are being compared along the replica's keys, the next of these."""
        found: dict[str, list[KeyTexts]] = {}
        along = {name: place.after for name in names if (place := self._place(name)).direction == "ours"}
        if not along:
            return found
        with self._opened() as connection:
            for name, after in along.items():
                table = self._states[name].table
                key = Key.of(table)
                # A table of another shape is seen to be one when it is compared.
                usable = key is not None and not misshapen(connection, table)
                found[name] = next_keys(connection, table, key, after, schedule.PIECE_ROWS) if key and usable else []
                if sum(map(len, found.values())) >= _BATCH_ROWS:
                    break
        return found

    def _place(self, name: str) -> Place:
        known = self._known.get(name)
        if known is None or known.place is None:
            return Place()
        return self._begun(self._states[name]).place or Place()

    def _ask(self, asker: Asker, look: Look, ours: dict[str, list[KeyTexts]]) -> None:
        table, key, place = look.table, look.key, look.place
        if place.direction == "ours":
            look.asked = ours[table.name]
            for first in range(0, len(look.asked), 500):
                look.told += asker.present(table, key, look.asked[first : first + 500])
            look.rows = len(look.asked)
            is_end = look.rows < schedule.PIECE_ROWS
            look.after = None if is_end else Place("ours", look.asked[-1])
            return
        count = schedule.piece_rows(asker.statistics(table).row_bytes)
        look.told = asker.next_rows(table, key, place.after, count)
        look.rows = len(look.told)
        if key.has_dates:
            for row in look.told:
                key.check(row[:-1])
        if look.rows == count:
            look.after = Place("theirs", tuple(str(text) for text in look.told[-1][:-1]))
        elif not key.is_ordered_alike:
            # Rows that only the replica has are found along its own keys.
            look.after = Place("ours")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[DuckDBPyConnection]:
        with self._run.access("sync"), self._run.opened(read_only=True) as connection:
            yield connection
