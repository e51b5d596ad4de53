"""The benchmark of what changed, in its short form: its tables and checks come out, and what travels is the change."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from fixtures.command_line import run_here

pytestmark = [pytest.mark.slow, pytest.mark.server]

ROOT = Path(__file__).parents[1]
SECOND = "client-aes256, format 2"


def _in_this_process(arguments):
    """One mode, without a start of Python for each command."""
    import benchmarks.__main__
    from benchmarks import differential, measure

    def run_job(name, *, arguments):
        assert name == "command"

        def duckling():
            done = run_here(*arguments, environ=dict(os.environ))
            assert done.code == 0, done.err

        return measure.measured(duckling)

    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.setattr(differential, "run_job", run_job)
        patch.setattr(differential, "_MODES", {SECOND: differential._MODES[SECOND]})
        patch.setattr(differential, "_FORGOTTEN_AFTER", 0.0)
        benchmarks.__main__.main(arguments)


@pytest.fixture(scope="module")
def results(tmp_path_factory, full):
    path = tmp_path_factory.mktemp("benchmarks") / "differential.json"
    arguments = ["--quick", "--size", "64" if full else "20", "--only", "differential", "--output", str(path)]
    if full:
        command = [sys.executable, "-m", "benchmarks", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
    else:
        _in_this_process(arguments)
    found = {case["title"]: case for case in json.loads(path.read_text())["cases"]}
    if (missing := found.get("Backups of what changed")) is not None:
        pytest.skip(f"not installed: {missing['missing']}")
    return found


def passed(case):
    """What went up and down, as shares of the replica, by row."""
    row = r"^(.*): [\d,]+ bytes up, [\d,]+ down \(([\d.]+)% up, ([\d.]+)% down\)"
    rows = re.findall(row, "\n".join(case["notes"]), re.MULTILINE)
    return {name: (float(up) / 100, float(down) / 100) for name, up, down in rows}


def test_what_backups_send_is_counted_on_the_way_and_held_against_its_targets(results):
    case = results[f"Backups of what changed; {SECOND}; store: SeaweedFS"]
    names = ["all of it", "identical", "1% appended", "1% of rows updated at random"]
    assert [row["name"] for row in case["rows"]] == names
    sent = {name: up for name, (up, _) in passed(case).items()}
    assert 1 <= sent["all of it"] < 1.02
    # A small replica has few segments; each change is in one or two of them.
    assert sent["identical"] < sent["1% appended"] < sent["all of it"]
    assert sent["identical"] < sent["1% of rows updated at random"] < sent["all of it"]
    held = {target["name"]: target for target in case["targets"]}
    assert [held[f"{name}: sent / size"]["value"] for name in names[1:]] == [
        pytest.approx(sent[name], abs=0.001) for name in names[1:]
    ]
    assert held["identical: sent / size"]["holds"]
    assert held["peak growth, MiB"]["value"] > 0


def test_what_restores_fetch_is_counted_too(results):
    case = results[f"Restores of what differs; {SECOND}; store: SeaweedFS"]
    fetched = {name: down for name, (_, down) in passed(case).items()}
    whole = fetched.pop("all of it")
    assert 1 <= whole < 1.02
    assert len(fetched) == 2
    assert max(fetched.values()) < whole
    assert {target["name"] for target in case["targets"]} == {
        *(f"{name}: fetched / size" for name in fetched),
        "peak growth, MiB",
    }


def test_the_plan_of_half_a_terabyte_is_made(results):
    (case,) = [case for title, case in results.items() if title.startswith("Plan of 500 GiB")]
    (parts,) = [target for target in case["targets"] if target["name"] == "parts"]
    assert 0 < parts["value"] <= 10_000


def test_what_changed_is_counted_without_a_store_too(tmp_path, full):
    import benchmarks.__main__

    path = tmp_path / "counted.json"
    benchmarks.__main__.main(["--quick", "--size", "64" if full else "20", "--only", "counted", "--output", str(path)])
    (case,) = json.loads(path.read_text())["cases"]
    shares = {target["name"]: target["value"] for target in case["targets"]}
    assert shares["identical: sent / size"] == 0
    assert 0 < shares["1% appended: sent / size"] < 1
    assert 0 < shares["1% of rows updated at random: sent / size"] < 1
    assert 0 < shares["back from 1% appended: fetched / size"] < 1.5  # the last one counts as a whole one
