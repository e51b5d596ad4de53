"""Whether MySQL's binlog still has all that follows the newest verified backup, so that a recovery would lose nothing.

A backup does not say at which position it is. But a sync knows where the replica stood when it began, and writes it
down: a backup that was made before the sync ended is there, or later. ``positions.json`` beside the local backups,
mode 0600, has these positions of the last days.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from duckling_provider.base.durable_files import make_folder, write_durably
from duckling_provider.base.errors import CancelledError, DucklingError
from duckling_provider.base.state_files import read_state
from duckling_provider.oversight.record import Reach, note, read_record
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.availability import is_available
from duckling_provider.replication.mysql.source import connect
from duckling_provider.replication.run import source_of

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database

_FILE = "positions.json"
#: Positions that are kept: those of syncs that applied something. Every quarter of an hour, that is four days.
_MOST = 400

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stood:
    """A replica was at `position` or later until a moment."""

    until: AwareDatetime
    position: Position


def stood_at(history: list[Stood], moment: datetime) -> Position | None:
    """A position that a backup of that moment has passed; None where no sync has ended since.

    :param history: the oldest first.
    """
    return next((stood.position for stood in history if stood.until >= moment), None)


def with_position(history: list[Stood], position: Position, *, until: datetime) -> list[Stood]:
    if history and history[-1].position == position:
        return [*history[:-1], replace(history[-1], until=until)]
    return [*history, Stood(until, position)][-_MOST:]


def note_reach(database: Database, began: Position | None) -> None:
    """Record whether the binlog reaches back to the newest verified backup.

    :param began: where the replica stood before the sync that just ended; None: that did not get so far.

    Raises nothing but a cancellation: it is about what is told, and not about the replica.
    """
    if began is None:
        return
    now = datetime.now(timezone.utc)
    path = database.backup_path / _FILE
    try:
        make_folder(path.parent)
        history = with_position(_read(database), began, until=now)
        write_durably(path, _adapter().dump_json(history))
        newest = read_record(database).newest
        position = None if newest is None else stood_at(history, newest.created)
        if newest is None or position is None:
            return
        with contextlib.closing(connect(source_of(database))) as connection:
            reach = Reach(newest.name, is_available(connection, position), now)
        note(database, lambda record: replace(record, reach=reach))
    except CancelledError:
        raise
    except (DucklingError, OSError) as error:
        log.warning("whether the binlog reaches back to the newest backup could not be recorded: %s", error)


@cache
def _adapter() -> TypeAdapter[list[Stood]]:
    return TypeAdapter(list[Stood])


def _read(database: Database) -> list[Stood]:
    path = database.backup_path / _FILE
    try:
        return _adapter().validate_json(read_state(path))
    except FileNotFoundError:
        return []
    except (DucklingError, ValidationError) as error:
        log.warning("%s is not believed: %s", path, type(error).__name__)
        return []
