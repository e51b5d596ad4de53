"""Each trouble is told once, and again when it is over; never a storm. Pure, but for the file."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.base.errors import UnavailableError
from duckling_provider.oversight.notices import Message, Notices, notify
from duckling_provider.oversight.watch import Trouble

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
QUARTER = timedelta(minutes=15)
ONE, OTHER = Trouble("shop", "backup", "a backup failed: it is down"), Trouble("crm", "overdue", "too old")


class Watch:
    """Watches that come every quarter of an hour; `down` are channels that take nothing."""

    def __init__(self, folder: Path, *channels: str) -> None:
        self.folder, self.channels = folder, channels
        self.now = NOW
        self.down: set[str] = set()
        self.sent: list[tuple[str, Message]] = []

    def sees(self, *troubles: Trouble, times: int = 1) -> list[str]:
        untold = []
        for _ in range(times):
            untold = notify(self.folder, troubles, self.channels, self._send, now=self.now, host="db1")
            self.now += QUARTER
        return untold

    def _send(self, channel: str, message: Message) -> None:
        if channel in self.down:
            raise UnavailableError("it is down", subject=channel)
        self.sent.append((channel, message))

    def told(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        return [(channel, message.new, message.over) for channel, message in self.sent]


def test_a_trouble_is_told_once_and_again_when_it_is_over(tmp_path: Path):
    watch = Watch(tmp_path, "mail")
    watch.sees(times=3)
    assert watch.sent == []
    watch.sees(ONE, times=50)
    assert watch.told() == [("mail", (str(ONE),), ())]
    watch.sees(times=50)
    (_, new, over) = watch.told()[1]
    assert (len(watch.sent), new, over) == (2, (), (f"{ONE} (since 2026-03-01T12:45:00.000Z)",))
    assert stat.S_IMODE(os.stat(tmp_path / "notices.json").st_mode) == 0o600


def test_a_trouble_that_comes_and_goes_is_told_once(tmp_path: Path):
    watch = Watch(tmp_path, "mail")
    for _ in range(20):
        watch.sees(ONE)
        watch.sees()
    assert len(watch.sent) == 1


def test_a_thousand_troubles_are_one_message(tmp_path: Path):
    watch = Watch(tmp_path, "mail")
    many = [Trouble(f"db-{number:03}", "overdue", "too old") for number in range(1000)]
    watch.sees(*many, times=4)
    ((_, message),) = watch.sent
    assert (len(message.new), message.more) == (40, 960)
    assert message.text.splitlines()[0] == "Duckling on db1: 1000 new troubles"
    assert message.text.splitlines()[-1].startswith("and 960 more")


def test_a_channel_that_was_down_is_told_later_and_the_others_not_twice(tmp_path: Path):
    watch = Watch(tmp_path, "mail", "chat")
    watch.down = {"mail"}
    assert watch.sees(ONE, times=3) == ["mail: mail: it is down"]
    watch.down = set()
    assert watch.sees(ONE, OTHER) == []
    assert [(channel, new) for channel, new, _ in watch.told()] == [
        ("chat", (str(ONE),)), ("mail", (str(ONE), str(OTHER))), ("chat", (str(OTHER),))
    ]  # fmt: skip


def test_a_message_and_its_changed_cause_are_one_trouble(tmp_path: Path):
    watch = Watch(tmp_path, "mail")
    watch.sees(ONE)
    watch.sees(Trouble("shop", "backup", "a backup failed: the bucket is gone"))
    assert len(watch.sent) == 1


def test_a_channel_that_is_no_longer_configured_is_owed_nothing(tmp_path: Path):
    watch = Watch(tmp_path, "mail")
    watch.sees(ONE)
    watch.channels = ("chat",)
    watch.sees(times=9)
    watch.sees(OTHER)
    assert [(channel, new, over) for channel, new, over in watch.told()[1:]] == [("chat", (str(OTHER),), ())]


def test_a_damaged_file_tells_again_rather_than_never(tmp_path: Path, caplog: Any):
    watch = Watch(tmp_path, "mail")
    watch.sees(ONE)
    (tmp_path / "notices.json").write_text("{")
    watch.sees(ONE)
    assert len(watch.sent) == 2
    assert "may be told again" in caplog.text


@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.sets(st.sampled_from(["mail", "chat"]))), max_size=40))
def test_news_and_ends_alternate_for_each_channel(looks: list[tuple[set[str], set[str]]]):
    """Whatever comes and goes, and whichever channels are down: between two news of one trouble lies its end."""
    notices, now = Notices(), NOW
    told: dict[tuple[str, str], list[str]] = {}
    for names, down in [*looks, *[(set(), set())] * 4]:
        notices = notices.seen([Trouble(name, "backup", name) for name in sorted(names)], now=now)
        for channel in ("mail", "chat"):
            message = notices.message_for(channel, now=now, host="h")
            if message is None or channel in down:
                continue
            for kind, lines in (("new", message.new), ("over", message.over)):
                for line in lines:
                    told.setdefault((channel, line[0]), []).append(kind)
            notices = notices.told(channel, now=now)
        now += QUARTER
    for kinds in told.values():
        assert kinds == [("new", "over")[number % 2] for number in range(len(kinds))]
        assert kinds[-1] == "over"
    assert dict(notices.open) == {}
