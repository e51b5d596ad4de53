"""Where a restore may write when it does not replace the replica.

A run of a DAG is triggered by people who may not be trusted with every path of the worker: a ``.zip`` in the DAGs
folder would be run, a lock or hold beside another replica would block it. So such a run writes only below one folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from duckling_provider.base.errors import RequestError
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Installation
from duckling_provider.config.entry import belongs_to, folded


def run_target(text: str, installation: Installation) -> Path:
    """The path that the ``target_path`` of a DAG run names.

    :raises RequestError: it is not absolute, not below ``DUCKLING_RESTORE_PATH``, no ``.db``, or belongs to an entry.
    """
    if not text.isprintable():
        raise RequestError(
            "target_path holds a control character", subject=printable(text), hint="Write a plain path ending in .db."
        )
    allowed = installation.settings.restore_path
    path = Path(os.path.normpath(text))
    if not path.is_absolute():
        raise RequestError(
            "target_path must be an absolute path",
            subject=text,
            hint="A relative path would depend on the worker's working directory.",
        )
    # Links on the way count for where they lead.
    folder = Path(os.path.realpath(path.parent))
    if Path(os.path.realpath(allowed)) not in (folder, *folder.parents):
        raise RequestError(
            f"target_path must lie below {allowed}",
            subject=text,
            hint=f"Write for example {allowed / path.stem}.db, or set DUCKLING_RESTORE_PATH for the workers.",
        )
    if path.suffix != ".db" or path.name == ".db":
        raise RequestError("target_path must end in .db", subject=text, hint="The restored file is a DuckDB database.")
    require_free_name(path, installation)
    return path


def require_free_name(path: Path, installation: Installation) -> None:
    """:raises RequestError: `path` is a replica or a copy for readers, a file that belongs to one or to the
    configuration, has the name of a state file, or lies among local backups.
    """
    for database in installation.databases:
        for file in database.files:
            if belongs_to(path, file):
                what = "replica" if file == database.replica_path else "copy for readers"
                raise RequestError(
                    f'this name belongs to the {what} of "{database.id}"', subject=str(path), hint="Name another file."
                )
    name, configuration = folded(path.name), Path(os.path.realpath(installation.settings.databases_file))
    if Path(os.path.realpath(path.parent)) == configuration.parent and folded(configuration.name) in name:
        raise RequestError("this name belongs to databases.json", subject=str(path), hint="Name another file.")
    if ".duckling-" in name:
        raise RequestError("this is a name of this program's state files", subject=str(path), hint="Name another file.")
    backups = Path(os.path.realpath(installation.settings.backup_path))
    if backups in Path(os.path.realpath(path.parent), path.name).parents:
        raise RequestError(
            f"this lies among the local backups ({backups})", subject=str(path), hint="Name a file in another folder."
        )
