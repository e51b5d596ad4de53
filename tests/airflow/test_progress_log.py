from __future__ import annotations

import contextvars
import threading

import pytest

from duckling_provider.base.cancellation import Control
from duckling_provider.base.units import human_seconds
from duckling_provider.tasks.progress_log import ProgressLog

MIB = 1024 * 1024


class Lines:
    def __init__(self):
        self.lines = []

    def info(self, text):
        self.lines.append(text)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def progress(lines, clock):
    return ProgressLog(lines, clock=clock)


def feed(progress, clock, *moments):
    """Each moment is seconds since the last one, step, MiB done, MiB in all."""
    for seconds, step, done, total in moments:
        clock.now += seconds
        progress(step, done * MIB, total * MIB)


def test_a_line_every_ten_seconds_tells_bytes_percentage_rate_and_time_left(progress, lines, clock):
    feed(
        progress,
        clock,
        (0, "upload", 0, 1000),
        (5, "upload", 50, 1000),
        (5, "upload", 100, 1000),
        (3, "upload", 150, 1000),
    )
    assert lines.lines == ["upload: 100.0 MiB of 1000.0 MiB (10.0%), 10.0 MiB/s, 2 min left"]


def test_each_step_ends_with_one_line(progress, lines, clock):
    feed(progress, clock, (0, "snapshot", 0, 10), (2, "snapshot", 10, 10), (1, "snapshot", 10, 10))
    feed(progress, clock, (0, "upload", 0, 20), (4, "upload", 20, 20))
    assert lines.lines == ["snapshot: 10.0 MiB in 2.0 s, 5.0 MiB/s", "upload: 20.0 MiB in 4.0 s, 5.0 MiB/s"]


def test_a_step_that_needed_less_than_announced_ends_when_the_next_begins(progress, lines, clock):
    feed(progress, clock, (0, "download", 0, 30), (2, "download", 10, 30), (0, "check", 0, 5))
    assert lines.lines == ["download: 10.0 MiB in 2.0 s, 5.0 MiB/s"]


def test_the_same_step_may_run_twice(progress, lines, clock):
    feed(progress, clock, (0, "verify", 0, 4), (2, "verify", 4, 4), (1, "verify", 0, 8), (2, "verify", 8, 8))
    assert lines.lines == ["verify: 4.0 MiB in 2.0 s, 2.0 MiB/s", "verify: 8.0 MiB in 2.0 s, 4.0 MiB/s"]


def test_the_rate_of_a_resumed_upload_does_not_count_what_was_there_before(progress, lines, clock):
    feed(progress, clock, (0, "upload", 0, 1000), (10, "upload", 800, 1000), (10, "upload", 810, 1000))
    assert lines.lines[-1] == "upload: 810.0 MiB of 1000.0 MiB (81.0%), 1.0 MiB/s, 3 min left"


def test_bytes_that_a_retry_takes_back_never_make_a_negative_rate(progress, lines, clock):
    feed(progress, clock, (0, "upload", 0, 100), (10, "upload", 50, 100), (10, "upload", 40, 100))
    assert lines.lines[-1] == "upload: 40.0 MiB of 100.0 MiB (40.0%), 0 B/s"


def test_a_step_without_a_known_size_or_without_bytes_is_no_trouble(progress, lines, clock):
    feed(progress, clock, (0, "scan", 0, 0), (10, "scan", 5, 0), (1, "empty", 0, 0), (1, "end", 0, 0))
    assert lines.lines == ["scan: 5.0 MiB, 512.0 KiB/s", "scan: 5.0 MiB in 11 s, 465.5 KiB/s"]


def test_the_core_can_report_to_it_from_many_threads(lines):
    control = Control(ProgressLog(lines, seconds=0.0))
    control.begin("upload", 64)
    threads = [threading.Thread(target=lambda: [control.advance(1) for _ in range(8)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line for line in lines.lines if " in " in line] == [lines.lines[-1]]
    assert lines.lines[-1].startswith("upload: 64 B in ")


def test_lines_from_the_cores_own_threads_belong_to_the_task_that_asked(clock):
    task = contextvars.ContextVar("task", default="none")
    seen = []

    class Log:
        def info(self, text):
            seen.append(task.get())

    task.set("verify")
    progress = ProgressLog(Log(), clock=clock)
    thread = threading.Thread(target=feed, args=(progress, clock, (0, "verify", 0, 1), (1, "verify", 1, 1)))
    thread.start()
    thread.join()
    assert seen == ["verify"]


@pytest.mark.parametrize(
    "seconds,text",
    [(0, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (4210, "1 h 10 min")],
)
def test_spans_are_short_to_read(seconds, text):
    assert human_seconds(seconds) == text
