"""What a run by hand may be told: the fields of the form that Airflow shows when a DAG is triggered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import Param

from duckling_provider.config.s3 import MODES

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database


def key_param(database: Database) -> Param:
    """Which backup is meant."""
    prefix = database.s3.path_prefix if database.s3 else ""
    example = f"{prefix}backup-2025-03-01T14-32-11-482Z.db"
    return Param(
        "latest",
        type="string",
        minLength=1,
        title="Backup",
        description=f"latest, or the key of a backup, like {example}. To see them all: duckling list {database.id}",
        # No list of keys: made while parsing, it would be stale, and parsing must not ask S3.
        examples=["latest"],
    )


def restore_params(database: Database) -> dict[str, Param]:
    """The conf of a restore, field by field."""
    return {
        "key": key_param(database),
        "before": Param(
            None,
            type=["null", "string"],
            title="Made before",
            description="With latest: the newest backup that was made before this time: ISO 8601, in UTC unless it has "
            "an offset, or as names of backups have it (2025-03-01T14-32-11-482Z).",
        ),
        "until": Param(
            None,
            type=["null", "string"],
            title="As it was at",
            description="ISO 8601 time. With Restore to: the newest backup before it, and MySQL's binlog up to the "
            "last transaction before it.",
        ),
        "until_position": Param(
            None,
            type=["null", "string"],
            title="Up to the transaction",
            description="In place of a time: a GTID, or FILE:OFFSET of MySQL's binlog.",
        ),
        "target_path": Param(
            None,
            type=["null", "string"],
            title="Restore to",
            description="Absolute path of a new .db file below DUCKLING_RESTORE_PATH, on the replica's host. "
            "Empty: replace the replica.",
        ),
        "keep_old": Param(
            False,
            type="boolean",
            title="Keep the old file",
            description="Keep the file that is replaced, under another name beside it.",
        ),
        "any_origin": Param(
            False,
            type="boolean",
            title="Of any replica",
            description="With latest: take the newest also when it is, or may be, of another replica than this one.",
        ),
        "encryption": Param(
            None,
            type=["null", "string"],
            enum=[None, *MODES],
            title="Encryption",
            description="How this backup is encrypted, where it is otherwise than the entry says. A weaker mode needs "
            "the backup's key.",
        ),
        "fallback": Param(
            False,
            type="boolean",
            title="Pass over damaged backups",
            description="Where the backup is damaged, take the newest older one that is not.",
        ),
        "no_delta": Param(
            False,
            type="boolean",
            title="Fetch all of it",
            description="Fetch also what lies on this machine already, in the replica or a local backup.",
        ),
        "local": Param(
            False,
            type="boolean",
            title="From the local backups",
            description="Take the local backups although S3 is configured.",
        ),
    }
