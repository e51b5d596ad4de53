"""Writes databases.json as the real one must be: for its owner only, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_databases(data: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write DATA_PATH/databases.json."""
    shown = [{"mysqlConnectionString": f"mysql://demo:demo@127.0.0.1:3306/{entry['id']}", **entry} for entry in entries]
    return write_text(data / "databases.json", json.dumps(shown, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Replace a file that holds secrets, in one rename."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
    return path
