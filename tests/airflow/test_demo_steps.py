"""The demo's steps, its two DAG runs by the Airflow of these tests: tests/test_demo.py has the command as it is."""

from __future__ import annotations

import dataclasses
import re
import subprocess

import pytest
from fixtures.command_line import run_here
from fixtures.demo_output import assert_all_came_back

from demo import round_trip
from demo.airflow import Airflow, Task
from demo.screen import Screen

pytestmark = [pytest.mark.airflow, pytest.mark.server]


@pytest.fixture
def own_airflow(monkeypatch, installation, run_dag):
    """The demo without an Airflow of its own, and with its commands in this process."""

    @dataclasses.dataclass(frozen=True)
    class Here(Airflow):
        def begin_migration(self):
            monkeypatch.setenv("DATA_PATH", str(self.data))
            monkeypatch.delenv("BACKUP_PATH")

        def finish_migration(self, migration):
            pass

        def test(self, dag_id, conf=None):
            run = run_dag(dag_id, conf)
            assert run.state == "success"
            return [Task(name, state, 0.0) for name, state in run.tasks.items()]

    def duckling(self, *arguments, fails=False):
        done = run_here(*arguments, environ=self.airflow.environment())
        assert bool(done.code) is fails, done
        return subprocess.CompletedProcess(arguments, done.code, done.out, done.err)

    monkeypatch.setattr(round_trip, "Airflow", Here)
    monkeypatch.setattr(round_trip._Demo, "_duckling", duckling)
    monkeypatch.setattr(round_trip, "ignore_stop_signals", lambda: None)  # these are pytest's


def test_every_table_comes_back_from_a_damaged_replica(own_airflow, tmp_path, capsys):
    folder = tmp_path / "demo" / "shop"
    folder.parent.mkdir()
    # Small, but of several segments.
    round_trip.run(folder, megabytes=28, screen=Screen())
    output = capsys.readouterr().out
    assert_all_came_back(output)
    [sent] = [line for line in output.splitlines() if "the store copied" in line]
    assert mib(sent, "sent") < mib(sent, "of") / 2
    [fetched] = [line for line in output.splitlines() if "were on this machine" in line]
    assert mib(fetched, "fetched") < mib(fetched, "of") / 2
    assert not list(folder.rglob("*.pid"))


def mib(line, word):
    """The number of MiB beside a word: before ``of``, or in "A MiB of B MiB sent" its total after it."""
    first, total = re.findall(r"([\d,]+) MiB", line)[:2]
    return int((total if word == "of" else first).replace(",", ""))
