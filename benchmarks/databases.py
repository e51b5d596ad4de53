"""The database servers that replication is measured on: those of the tests, private and on loopback."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks import ROOT

MARIADB, MYSQL = "MariaDB", "MySQL 9.7"


@functools.cache
def _fixtures() -> Any:
    """The tests' module; tests are no package, so by path."""
    path = ROOT / "tests" / "fixtures" / "mysql_servers.py"
    spec = importlib.util.spec_from_file_location("mysql_servers", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def missing(kind: str) -> str | None:
    """Why there is no server of that kind, if so."""
    found: str | None = _release(kind).missing()
    return found


def database_server(kind: str, *options: str, folder: Path | None = None) -> contextlib.AbstractContextManager[Any]:
    """A new, empty server until the block ends, a `Server` of the tests.

    :param options: of its command line.
    :param folder: where its data go; the folder for temporary files when omitted.
    """
    server: contextlib.AbstractContextManager[Any] = _fixtures().private_server(
        *options, release=_release(kind), folder=folder
    )
    return server


def _release(kind: str) -> Any:
    return {MARIADB: _fixtures().INSTALLED, MYSQL: _fixtures().MYSQL}[kind]
