"""Work that leaves the host's other programs their processor and their page cache."""

import os
import threading

import pytest

from duckling_provider.base.host_load import Passing, cpu_seconds, forget, lowered_priority


def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def cold(tmp_path, cached):
    """A file of 8 MiB that is on the disk and not in the page cache."""
    path = tmp_path / "cold"
    with path.open("wb") as file:
        file.write(os.urandom(8 << 20))
        file.flush()
        os.fsync(file.fileno())
        forget(file.fileno())
    if cached(path) > 0.1:
        pytest.skip(f"the file system of {tmp_path} is memory itself")
    return path


def test_what_is_read_once_does_not_stay_and_what_was_there_does(cold, cached):
    with cold.open("rb", buffering=0) as file:
        # Nothing is read ahead: pages still on their way from the disk can't be given back.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 2 << 20, 0)  # is there, for another program
        os.posix_fadvise(file.fileno(), 2 << 20, 0, os.POSIX_FADV_DONTNEED)
        passing = Passing(file.fileno(), 8 << 20)
        for start in range(0, 8 << 20, 1 << 20):
            os.pread(file.fileno(), 1 << 20, start)
            passing.done(start, start + (1 << 20))
    assert 0.2 < cached(cold) < 0.4


def test_a_priority_is_lowered_for_the_block_its_threads_and_no_longer():
    if os.geteuid():
        pytest.skip("only root may raise a priority again")
    before, seen = nice(), []
    with lowered_priority(5, for_good=False):
        thread = threading.Thread(target=lambda: seen.append(nice()))
        thread.start()
        thread.join()
        other = threading.main_thread().native_id
        assert nice() == seen[0] == min(19, before + 5)
    assert (nice(), os.getpriority(os.PRIO_PROCESS, other)) == (before, before)


def test_a_process_that_lives_on_is_left_as_it_is_where_it_could_not_be_raised_again(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = nice()
    with lowered_priority(5, for_good=False):
        assert nice() == before


def test_the_processor_time_grows():
    before = cpu_seconds()
    sum(range(200_000))
    assert cpu_seconds() > before
