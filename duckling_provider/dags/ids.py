"""How the DAGs of a database and their tasks are called. Nothing else spells these names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Kind = Literal["backup", "restore", "verify", "drill", "sync"]

KINDS: tuple[Kind, ...] = ("backup", "restore", "verify", "drill", "sync")

SNAPSHOT: Final = "snapshot"
UPLOAD: Final = "upload"
VERIFY: Final = "verify"
CLEANUP: Final = "cleanup"
PAUSE: Final = "pause"
RESTORE: Final = "restore"
RESUME: Final = "resume"
SYNC: Final = "sync"
DRILL: Final = "drill"
WATCH: Final = "watch"
#: The one DAG for all databases.
WATCH_DAG: Final = "duckling_watch"

#: The tasks of each DAG, in the order in which they run. A backup without S3 has neither upload nor verify.
TASKS: Mapping[Kind, tuple[str, ...]] = {
    "backup": (SNAPSHOT, UPLOAD, VERIFY, CLEANUP),
    "restore": (PAUSE, RESTORE, RESUME),
    "verify": (VERIFY,),
    "drill": (DRILL,),
    "sync": (SYNC,),
}


def dag_id(kind: Kind, database_id: str) -> str:
    return f"duckling_{kind}__{database_id}"


def parse_dag_id(text: str) -> tuple[Kind, str] | None:
    """Kind and database of one of our DAGs, None for any other."""
    for kind in KINDS:
        prefix = dag_id(kind, "")
        if text.startswith(prefix) and text != prefix:
            return kind, text[len(prefix) :]
    return None
