"""What people read about each DAG in Airflow's UI, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duckling_provider.base.units import human_days
from duckling_provider.dags.ids import PAUSE, RESTORE, RESUME, dag_id

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database, Settings

_SERVER_DOC = f"""
The Duckling server writes this replica. **{PAUSE}** stops its sync and CDC, **{RESUME}** starts what ran. It never
closes the replica's file, so its process must be down while the file is replaced: shut it down once **{PAUSE}** is
done, start it when **{RESTORE}** is done. Until it is down, **{RESTORE}** waits and replaces nothing; until it is up,
**{RESUME}** tries again.
"""


def backup_doc(database: Database, *, schedule: str, warnings: tuple[str, ...]) -> str:
    """:param schedule: described by its timetable; empty when backups are not scheduled."""
    described = schedule[0].lower() + schedule[1:] if schedule else "none (AUTO_BACKUP is off)"
    rows = [
        ("Replica", f"`{database.replica_path}`"),
        ("Schedule", described),
        (
            "Local backups",
            f"`{database.backup_path}`, kept {human_days(database.local_retention_days, zero='until the next')}",
        ),
    ]
    if database.s3 is not None:
        kept = human_days(database.s3.backup_retention_days, zero="for ever")
        rows += [("S3 backups", f"{_target(database)}, kept {kept}"), ("Encryption", database.s3.encryption)]
    if database.queue:
        rows.append(("Queue", f"`{database.queue}`"))
    if database.host:
        rows.append(("Host", f"`{database.host}`"))
    text = f"## Backups of {_plain(database.name)}\n\n{_table(rows)}\n"
    text += f"To get the replica back, trigger **{dag_id('restore', database.id)}**, "
    text += f"or without Airflow: `duckling restore {database.id}`.\n"
    if warnings:
        text += "\n**databases.json:**\n\n" + "".join(f"- {_plain(warning)}\n" for warning in warnings)
    return text


def verify_doc(database: Database) -> str:
    return (
        f"## Verification of a backup of {_plain(database.name)}\n\n"
        + _table([("From", _target(database))])
        + f"""
Reads a backup whole and compares it with its proof, as a restore would; nothing is written. Each scheduled backup does
this by itself; this is for older ones. Without Airflow: `duckling verify {database.id} KEY`.
"""
    )


def drill_doc(database: Database, *, schedule: str) -> str:
    """:param schedule: described by its timetable; empty when drills run by hand only."""
    when = schedule[0].lower() + schedule[1:] if schedule else "by hand only (drillIntervalDays is 0)"
    rows = [("From", _target(database)), ("Runs", when), ("Scratch files", f"`{database.drill_path}`")]
    if database.drill_queries:
        rows.append(("Queries", str(len(database.drill_queries))))
    return (
        f"## Restores of {_plain(database.name)} on trial\n\n{_table(rows)}"
        f"""
Restores the newest backup, or the one that you name, into a scratch file, as a machine would that has nothing else.
DuckDB reads every table of it, the rows are compared with those that were counted when it was made, and the file is
removed. The replica is not touched. Without Airflow: `duckling drill {database.id}`.
"""
    )


def sync_doc(database: Database, settings: Settings) -> str:
    when = "all the time" if settings.cdc_enabled else f"every {settings.sync_interval_minutes:g} minutes"
    rows = [("Replica", f"`{database.replica_path}`"), ("Runs", when)]
    if database.include_tables:
        rows.append(("Only", ", ".join(f"`{_plain(table)}`" for table in database.include_tables)))
    if database.exclude_tables:
        rows.append(("Without", ", ".join(f"`{_plain(table)}`" for table in database.exclude_tables)))
    return (
        f"## Sync of {_plain(database.name)}\n\n{_table(rows)}"
        f"""
Applies the changes in MySQL's binlog to the replica; the first run copies all tables. It yields to backups and
restores: such a run is *skipped*, and the next one goes on. To prove that both sides are equal:
`duckling validate {database.id}`.
"""
    )


def restore_doc(database: Database) -> str:
    source = _target(database) if database.s3 is not None else f"`{database.backup_path}`"
    return (
        f"## Restore of {_plain(database.name)}\n\n"
        + _table([("From", source), ("To", f"`{database.replica_path}`, or the file that you name")])
        + f"""
Trigger it as it is to go back to the newest backup, or choose a key or a time.

1. **{PAUSE}** keeps writers away from the replica.
2. **{RESTORE}** downloads and verifies the backup beside the replica and only then replaces it, in one rename.
   Whatever fails, the replica stays as it was.
3. **{RESUME}** lets the writers go on, also after a failure.

Free disk space needed: the size of the backup. Without Airflow: `duckling restore {database.id}`.
"""
        + (_SERVER_DOC if database.writer == "duckling-server" else "")
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _target(database: Database) -> str:
    s3 = database.s3
    if s3 is None:
        return "none"
    where = f"at `{s3.endpoint}`" if s3.endpoint else f"in {s3.region}"
    return f"`s3://{s3.bucket}/{s3.path_prefix}` {where}"


def _plain(text: str) -> str:
    """Names are free text; keep them from breaking a table or a heading."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def watch_doc() -> str:
    return (
        "Looks at all entries of databases.json, also those with mistakes, by what is recorded on each host, every 15 "
        "minutes. A run fails while something is wrong; its log is the list. `DUCKLING_NOTIFY_CONN_IDS` are told once, "
        "and again when it is over; `DUCKLING_HEARTBEAT_URL` is called when all is well."
    )
