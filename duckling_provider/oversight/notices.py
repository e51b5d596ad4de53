"""What is to be told, and to whom it was told already: each trouble once, again when it is over, and never a storm.

The file ``BACKUP_PATH/notices….json``, mode 0600, remembers the open troubles. A run of the watch sends one message to
each channel at most, however many troubles there are. A trouble is over when it was gone for half an hour: one that
comes and goes is told once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from duckling_provider.base.durable_files import make_folder, write_durably
from duckling_provider.base.errors import DucklingError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.moments import iso
from duckling_provider.base.state_files import read_state
from duckling_provider.oversight.watch import Trouble

_SETTLED = timedelta(minutes=30)
#: Lines of a message: an outage of a store is one message, and not a thousand lines.
_MOST_LINES = 40

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """What one channel is told at a time."""

    subject: str
    new: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    more: int = 0  #: that are not among them

    @property
    def text(self) -> str:
        lines = [f"NEW   {line}" for line in self.new] + [f"OVER  {line}" for line in self.over]
        if self.more:
            lines.append(f"and {self.more} more; duckling status shows all that is wrong now")
        return "\n".join([self.subject, "", *lines])

    def as_json(self) -> dict[str, Any]:
        """For a webhook; ``text`` is what chat programs show."""
        return {
            "text": self.text,
            "subject": self.subject,
            "new": list(self.new),
            "over": list(self.over),
            "more": self.more,
        }


@dataclass(frozen=True)
class Notice:
    """An open trouble: `gone` is when it was first seen to be gone, None while it lasts; `told` are channels."""

    text: str
    since: AwareDatetime
    gone: AwareDatetime | None = None
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notices:
    """The open troubles, by their ids."""

    open: Mapping[str, Notice] = field(default_factory=dict)

    def seen(self, troubles: Sequence[Trouble], *, now: datetime) -> Notices:
        """After a look that found these troubles, and no others."""
        lasting = {trouble.id: str(trouble) for trouble in troubles}
        found: dict[str, Notice] = {}
        for name, notice in self.open.items():
            if name in lasting:
                found[name] = replace(notice, gone=None, text=lasting[name] if not notice.told else notice.text)
            elif notice.told or now - (notice.gone or now) < _SETTLED:
                found[name] = replace(notice, gone=notice.gone or now)
        for name, text in lasting.items():
            found.setdefault(name, Notice(text, now))
        return Notices(found)

    def message_for(self, channel: str, *, now: datetime, host: str) -> Message | None:
        """What a channel does not know yet; None where it knows all."""
        new = [n for n in self.open.values() if n.gone is None and channel not in n.told]
        over = [n for n in self.open.values() if channel in n.told and _is_over(n, now)]
        if not new and not over:
            return None
        counted = [f"{len(new)} new trouble{'s' * (len(new) != 1)}"] if new else []
        counted += [f"{len(over)} over"] if over else []
        lines = [n.text for n in new][:_MOST_LINES]
        ended = [f"{n.text} (since {iso(n.since)})" for n in over][: _MOST_LINES - len(lines)]
        more = len(new) + len(over) - len(lines) - len(ended)
        return Message(f"Duckling on {host}: {', '.join(counted)}", tuple(lines), tuple(ended), more)

    def told(self, channel: str, *, now: datetime) -> Notices:
        """After `channel` got its message; what all know to be over is forgotten."""
        found: dict[str, Notice] = {}
        for name, notice in self.open.items():
            knows = {*notice.told}
            if _is_over(notice, now):
                knows.discard(channel)
                if not knows:
                    continue
            elif notice.gone is None:
                knows.add(channel)
            found[name] = replace(notice, told=tuple(sorted(knows)))
        return Notices(found)

    def only(self, channels: Sequence[str]) -> Notices:
        """Without channels that are no longer configured: nothing is owed to them."""
        kept = {}
        for name, notice in self.open.items():
            told = tuple(channel for channel in notice.told if channel in channels)
            if told or notice.gone is None:
                kept[name] = replace(notice, told=told)
        return Notices(kept)


def _is_over(notice: Notice, now: datetime) -> bool:
    return notice.gone is not None and now - notice.gone >= _SETTLED


def notify(
    folder: Path,
    troubles: Sequence[Trouble],
    channels: Sequence[str],
    send: Callable[[str, Message], None],
    *,
    now: datetime,
    host: str,
    scope: str = "",
) -> list[str]:
    """Tell each channel what it does not know yet.

    :param folder: where the file is, ``BACKUP_PATH``.
    :param send: delivers a message to a channel, or raises `DucklingError`: then the next run tries again.
    :param host: of which the messages speak.
    :param scope: tells the files apart of watches that look at different databases.
    :returns: why some channels could not be told; empty where all were.
    :raises BusyError: another watch of this scope is at it.
    """
    suffix = f"-{re.sub(r'[^A-Za-z0-9_-]', '_', scope)}" if scope else ""
    path = folder / f"notices{suffix}.json"
    failures = []
    make_folder(folder)
    with FileLock(path.with_suffix(".lock"), operation="watch", wait=60):
        notices = _read(path).only(channels).seen(troubles, now=now)
        for channel in channels:
            message = notices.message_for(channel, now=now, host=host)
            if message is None:
                continue
            try:
                send(channel, message)
            except DucklingError as error:
                failures.append(f"{channel}: {error}")
                continue
            notices = notices.told(channel, now=now)
            # At once: a kill before the next channel must not tell this one twice.
            write_durably(path, _adapter().dump_json(notices, indent=1))
        write_durably(path, _adapter().dump_json(notices, indent=1))
    return failures


@cache
def _adapter() -> TypeAdapter[Notices]:
    return TypeAdapter(Notices)


def _read(path: Path) -> Notices:
    try:
        return _adapter().validate_json(read_state(path))
    except FileNotFoundError:
        return Notices()
    except (DucklingError, ValidationError) as error:
        log.warning("%s is not believed, so troubles may be told again: %s", path, error)
        return Notices()
