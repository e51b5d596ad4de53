"""How the DAGs of a database are called."""

from __future__ import annotations

from typing import Literal

Kind = Literal["backup", "restore", "verify", "sync"]

KINDS: tuple[Kind, ...] = ("backup", "restore", "verify", "sync")


def dag_id(kind: Kind, database_id: str) -> str:
    return f"duckling_{kind}__{database_id}"


def parse_dag_id(text: str) -> tuple[Kind, str] | None:
    """Kind and database of one of our DAGs, None for any other."""
    for kind in KINDS:
        prefix = dag_id(kind, "")
        if text.startswith(prefix) and text != prefix:
            return kind, text[len(prefix) :]
    return None
