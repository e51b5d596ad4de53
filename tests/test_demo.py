"""The demo, run as `make demo` runs it, and the services it is made of.

To its end only in the long form: tests/airflow/test_demo_steps.py has the same steps with an Airflow that is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.demo_output import assert_all_came_back

from demo.service import Service

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.demo, pytest.mark.airflow, pytest.mark.server]


def _start(folder: Path, size: int = 2, **environ: str) -> subprocess.Popen[str]:
    """`python -m demo` with its folder elsewhere and a replica of `size` MB."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={**os.environ, "DEMO_FOLDER": str(folder), "DEMO_SIZE_MB": str(size), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _processes_of(folder: Path) -> list[str]:
    """What runs in `folder` or was told of it: every process of the demo has its path in the environment."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
                if str(folder).encode() in told or (process / "cwd").readlink().is_relative_to(folder):
                    found.append(f"{process.name} {(process / 'cmdline').read_text()}")
    return found


def _wait_for(what: Path) -> None:
    deadline = time.monotonic() + 60
    while not what.exists():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not appear")
        time.sleep(0.02)


@pytest.mark.full
def test_the_demo_brings_every_table_back_and_leaves_nothing_running(tmp_path):
    folder = tmp_path / "demo"
    demo = _start(folder, size=12)  # uploaded in parts
    output, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, output
    assert_all_came_back(output)
    assert "✓ Airflow" in output
    assert "nothing is left running" in output
    assert _processes_of(folder) == []
    assert not list(folder.rglob("*.pid"))


def test_the_demo_keeps_its_secrets_to_itself_and_a_second_one_in_its_folder_is_refused(tmp_path):
    folder = tmp_path / "demo"
    demo = _start(folder)
    _wait_for(folder / "shop" / "data" / "databases.json")
    second, _ = (other := _start(folder)).communicate(timeout=60)
    databases = json.loads((folder / "shop" / "data" / "databases.json").read_text())
    commands = _processes_of(folder)
    demo.send_signal(signal.SIGTERM)
    output, _ = demo.communicate(timeout=60)
    secrets = [databases[0]["s3"]["secretAccessKey"], databases[0]["s3"]["encryptionKey"]]
    assert commands  # the store at least
    assert not [secret for secret in secrets if secret in output or secret in "".join(commands)]
    assert (folder / "shop" / "data" / "databases.json").stat().st_mode & 0o777 == 0o600
    assert demo.returncode == 128 + signal.SIGTERM
    assert other.returncode == 1
    assert "another `make demo` is at work" in second
    assert _processes_of(folder) == []


def test_ctrl_c_leaves_nothing_running(tmp_path):
    folder = tmp_path / "demo"
    demo = _start(folder)
    _wait_for(folder / "shop" / "airflow" / "migrate.pid")  # by now the store runs, and Airflow begins to
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + signal.SIGINT
    assert "Interrupted" in output
    assert _processes_of(folder) == []


def test_a_step_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "airflow.py").write_text("raise SystemExit('no Airflow today')")
    folder = tmp_path / "demo"
    demo = _start(folder, PYTHONPATH=str(broken))
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "✗ Airflow" in output
    assert "no Airflow today" in output
    assert "migrate.log" in output
    assert _processes_of(folder) == []


# ---- services ----------------------------------------------------------------------------------------------


def test_what_outlives_its_parent_in_a_group_of_its_own_is_ended(tmp_path):
    service = Service("parent", tmp_path)
    parent = """import os, subprocess, sys
subprocess.Popen(["sleep", "300"], preexec_fn=os.setpgrp)"""
    service.start([sys.executable, "-c", parent], os.environ).wait()
    assert not service.running()
    assert len(service.processes()) == 1
    assert service.stop()
    assert service.processes() == []


def test_what_ignores_sigterm_is_ended_as_well(tmp_path):
    service = Service("stubborn", tmp_path)
    program = "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program += "; pathlib.Path('ready').touch(); time.sleep(300)"
    child = service.start([sys.executable, "-c", program], os.environ)
    _wait_for(tmp_path / "ready")
    assert service.stop(patience=0.1)
    assert child.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}], ids=["a later process", "another boot"])
def test_a_number_that_is_somebody_elses_by_now_is_left_alone(tmp_path, change):
    service = Service("old", tmp_path)
    child = service.start(["sleep", "300"], os.environ)
    note = tmp_path / "old.pid"
    right = note.read_text()
    note.write_text(json.dumps(json.loads(right) | change))
    assert not service.stop()
    assert child.poll() is None
    note.write_text(right)
    assert service.stop()
    assert child.wait(60) == -signal.SIGTERM
