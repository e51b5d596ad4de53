"""The main job of this repository, to be watched: ``make demo``, ``make airflow``. No part of the package."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class DemoError(Exception):
    """A step did not do what it should; the message is for people."""
