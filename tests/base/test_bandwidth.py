"""The host's limit: processes take turns, the limit changes while they run, and counted waits are what is measured."""

import os

import pytest

from duckling_provider.base import bandwidth as module
from duckling_provider.base.bandwidth import LEAST_MBIT, LIMIT_FILE, STATE_FILE, Bandwidth
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError


@pytest.fixture
def clock(monkeypatch):
    """``clock.now``: the time that the module sees."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_two_processes_share_one_line(tmp_path, clock):
    one, other = Bandwidth(tmp_path, 8), Bandwidth(tmp_path, 8)  # a million bytes a second
    waits = [one.turn(500_000), other.turn(500_000), one.turn(250_000), other.turn(1)]
    assert waits == [0.0, 0.5, 1.0, 1.25]
    clock.now += 10
    assert other.turn(1) == 0.0  # what was not used is not saved up


def test_without_a_limit_nothing_waits_and_nothing_is_written(tmp_path, clock):
    free = Bandwidth(tmp_path, 0)
    assert (free.turn(10**12), free.turn(1), free.piece) == (0.0, 0.0, None)
    assert list(tmp_path.iterdir()) == []


def test_the_limit_changes_while_they_run(tmp_path, clock):
    limited = Bandwidth(tmp_path, 8)
    (tmp_path / LIMIT_FILE).write_text("80\n")
    clock.now += 1
    assert [limited.turn(1_000_000), round(limited.turn(1), 3)] == [0.0, 0.1]
    (tmp_path / LIMIT_FILE).write_text("0")
    clock.now += 1
    assert limited.piece is None
    (tmp_path / LIMIT_FILE).unlink()
    clock.now += 1
    assert [limited.turn(1_000_000), limited.turn(1)] == [0.0, 1.0]


@pytest.mark.parametrize("text", ["", "fast", "-1", "1e9", "99999999", "1 2", "0.5"])
def test_a_limit_that_is_no_number_is_told_and_not_used(tmp_path, clock, caplog, text):
    (tmp_path / LIMIT_FILE).write_text(text)
    limited = Bandwidth(tmp_path, 8)
    assert [limited.turn(1_000_000), limited.turn(1)] == [0.0, 1.0]
    assert caplog.text.count("holds no number of megabits per second") == 1


@pytest.mark.parametrize(("mode", "is_used"), [(0o600, True), (0o644, True), (0o664, True), (0o646, False)])
def test_a_limit_counts_whatever_the_umask_of_who_wrote_it_unless_everybody_can(tmp_path, clock, caplog, mode, is_used):
    (tmp_path / LIMIT_FILE).write_text("0\n")
    (tmp_path / LIMIT_FILE).chmod(mode)
    limited = Bandwidth(tmp_path, 8)
    assert (limited.piece is None) is is_used
    told = "" if is_used else f"{tmp_path / LIMIT_FILE}: can be written by others (mode 0646): it is not used"
    assert [record.message for record in caplog.records] == [told] * (not is_used)


def test_no_limit_is_so_low_that_thirty_tasks_take_the_line_beyond_the_time_in_which_it_counts(tmp_path, clock):
    """Sixteen parts each; what is taken for longer would count as of before the machine's start."""
    limited = Bandwidth(tmp_path, LEAST_MBIT)
    waits = [limited.turn(limited.piece or 0) for _ in range(28 * 16)]
    assert waits == sorted(waits)
    assert 55 < waits[-1] < 60


def test_a_line_taken_before_the_machines_start_is_free(tmp_path, clock):
    limited = Bandwidth(tmp_path, 8)
    limited.turn(20_000_000)
    clock.now = 1.0
    assert limited.turn(1) == 0.0


def test_a_state_file_that_cannot_be_used_leaves_a_limit_for_each_process(tmp_path, clock, caplog):
    (tmp_path / STATE_FILE).symlink_to(tmp_path / "elsewhere")
    limited = Bandwidth(tmp_path, 8)
    assert [limited.turn(1_000_000), limited.turn(1)] == [0.0, 1.0]
    assert "each process alone" in caplog.text
    assert not (tmp_path / "elsewhere").exists()


def test_a_slow_line_is_taken_in_small_pieces(tmp_path):
    assert [Bandwidth(tmp_path, mbit).piece for mbit in (0.1, 8, 1000)] == [16 << 10, 50_000, 1 << 20]
    assert Control(bandwidth=Bandwidth(tmp_path, 8)).piece(100) == 100


def test_waiting_for_a_turn_ends_with_a_cancellation(tmp_path):
    control = Control(bandwidth=Bandwidth(tmp_path, 0.001))
    control.transfer(1000)
    control.cancel()
    with pytest.raises(CancelledError):
        control.transfer(1000)
    assert (control.sent, control.received) == (0, 2000)


def test_the_state_is_for_its_owner_alone(tmp_path):
    Bandwidth(tmp_path, 8).turn(1)
    assert os.stat(tmp_path / STATE_FILE).st_mode & 0o777 == 0o600
