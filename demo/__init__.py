"""The main job of this repository, to be watched: ``make demo``, ``make airflow``. No part of the package."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class DemoError(Exception):
    """A step did not do what it should; the message is for people."""


def demo_folder() -> Path:
    """Where everything of the demo lives: ``.demo`` in the repository, or DEMO_FOLDER."""
    return Path(os.environ.get("DEMO_FOLDER") or ROOT / ".demo").resolve()


def quiet_environment(**more: str) -> dict[str, str]:
    """Our environment without anything that would make Airflow, boto3 or Duckling look elsewhere, plus `more`."""
    ours = ("AIRFLOW_", "AWS_", "BACKUP_", "RCLONE_", "DUCKLING_", "PYTHONWARNINGS")
    names = ("AUTO_BACKUP", "DATA_PATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours) and name not in names}
    return {**kept, **more}


def tail(path: Path, lines: int = 20, *, of: str = "") -> str:
    """The end of a log, and where the rest is.

    :param of: only lines that begin with this, where there are any.
    """
    try:
        found = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        found = []
    end = ([line for line in found if of and line.lstrip().startswith(of)] or found)[-lines:]
    return "\n".join([*(f"  {line}" for line in end), f"  (all of it: {shown(path)})"])


def shown(path: Path) -> str:
    """`path` as short as it gets in the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
