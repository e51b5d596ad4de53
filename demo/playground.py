"""A standalone Airflow to look at, with a store and replicas of its own; everything is kept between two starts."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import DemoError, replica, shown
from demo.airflow import Airflow
from demo.databases import write_databases, write_text
from demo.screen import Screen
from demo.service import ignore_stop_signals, stop_all
from demo.store import Store

#: Replicas and their sizes in MB: an encrypted one, a plain one, one that only has local backups.
_REPLICAS = {"shop": 100, "crm": 30, "inventory": 10}


def start(folder: Path, screen: Screen) -> None:
    """Start store and Airflow unless they run, wait until the DAGs are listed, and say how to get in.

    :raises DemoError: when something does not start; then nothing is left running.
    """
    data, store, airflow = folder / "data", Store(folder / "store"), Airflow(folder / "home", folder / "data")
    address = folder / "url"
    if airflow.service.running() and store.service.running() and address.exists():
        screen.say("Airflow is running already.")
    else:
        try:
            address.write_text(_start(data, store, airflow, screen), encoding="utf-8")
        except BaseException:
            stop(folder, screen)
            raise
    _explain(address.read_text(encoding="utf-8"), data, airflow, screen)


def stop(folder: Path, screen: Screen) -> None:
    """End store and Airflow."""
    ignore_stop_signals()
    was = stop_all(folder)
    screen.say("Stopped; the data stays in " + shown(folder) + "." if was else "Nothing was running.")


def _start(data: Path, store: Store, airflow: Airflow, screen: Screen) -> str:
    screen.title("Duckling in a standalone Airflow")
    data.mkdir(parents=True, exist_ok=True)
    stop_all(data.parent)
    with screen.step("Store", "starting an S3-compatible server") as step:
        where = store.start()
        step.result = f"{store.name} at {where['endpoint']}, data on disk"
    with screen.step("Replicas", "filling them") as step:
        for name, megabytes in _REPLICAS.items():
            path = data / f"{name}.db"
            if not path.exists():
                new = path.with_name(f"{name}.new")  # an interrupted start must not leave half a replica
                new.unlink(missing_ok=True)
                replica.make(new, megabytes=megabytes)
                os.replace(new, path)
        step.result = ", ".join(f"{name}.db" for name in _REPLICAS)
    with screen.step("Configuration", "writing databases.json") as step:
        step.result = _configure(data / "databases.json", where)
    with screen.step("Airflow", "waiting until it is healthy and lists the DAGs, a minute or more") as step:
        url = airflow.start(DUCKLING_API_KEY=_api_key(data.parent))
        airflow.wait(url, _dag_ids(airflow))
        step.result = f"{url} is healthy and lists the DAGs"
    return url


def _api_key(folder: Path) -> str:
    """The bearer token of the REST API: made once, kept in a file for its owner only."""
    path = folder / "api-key"
    if not path.exists():
        write_text(path, secrets.token_urlsafe(24))
    return path.read_text(encoding="utf-8").strip()


def _configure(path: Path, where: Mapping[str, Any]) -> str:
    """Write databases.json; an existing one belongs to the user who edited it, and only learns the store's new port."""
    if path.exists():
        old = path.read_text(encoding="utf-8")
        pattern = re.compile(r'("endpoint":\s*)"http://127\.0\.0\.1:\d+"')
        new = pattern.sub(lambda found: f'{found[1]}"{where["endpoint"]}"', old)
        if new != old:
            write_text(path, new)
        return "databases.json as it was"
    encrypted = {"encryption": "client-aes256", "encryptionKey": secrets.token_hex(32)}
    entries = [
        _entry("shop", "Shop", s3={**where, **encrypted}),
        _entry("crm", "Customers (no encryption)", s3={**where, "encryption": "none", "s3BackupRetentionDays": 30}),
        _entry("inventory", "Inventory (local backups only)"),
        _entry("legacy", "Wrong on purpose", s3={**where, "encryption": "client-aes256", "encryptionKey": "5ec2e7"}),
    ]
    write_databases(path.parent, entries)
    return "databases.json with four entries, one of them wrong on purpose"


def _entry(database_id: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"id": database_id, "name": name, "duckdbPath": f"data/{database_id}.db", **fields}


def _dag_ids(airflow: Airflow) -> set[str]:
    from duckling_provider import config
    from duckling_provider.base.errors import ConfigError

    try:
        databases = config.load(airflow.environment()).databases
    except ConfigError as error:
        raise DemoError(str(error)) from None
    return {f"duckling_{kind}__{database.id}" for database in databases for kind in ("backup", "restore")}


def _explain(url: str, data: Path, airflow: Airflow, screen: Screen) -> None:
    user, password = airflow.login()
    duckling = shlex.quote(shown(Path(sys.executable).with_name("duckling")))
    screen.say(
        f"""
URL       {url}
Login     {user}
Password  {password}

Page      {url}/plugin/duckling, or Browse, Duckling: could everything be recovered now?
API       curl -H "Authorization: Bearer $(cat {shlex.quote(shown(data.parent / "api-key"))})" \\
               "{url}/api/backups?db=shop"
          {url}/duckling/docs for the rest

Back up   Open duckling_backup__shop and press Trigger; the first backups make themselves.
Restore   Open duckling_restore__shop and press Trigger; "latest" is filled in. Other keys:
          DATA_PATH={shlex.quote(shown(data))} {duckling} list shop
Mistakes  The entry "legacy" is wrong on purpose: see the import errors, correct it in
          {shown(data / "databases.json")}, and its DAGs appear.
Log       {shown(airflow.service.log)}
Stop      make airflow-stop"""
    )
