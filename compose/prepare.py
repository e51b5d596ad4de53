#!/usr/bin/env python3
"""Make what docker-compose.yaml needs before its first start: secrets in .env, databases.json and their folder.

    python3 compose/prepare.py [FOLDER]

Nothing but Python is needed. What is there already is kept: run it again whenever you like. No secret is printed.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

#: The user of the official Airflow image.
_IMAGE_USER = 50000

BUCKET = "duckling-backups"
_ENDPOINT = "http://minio:9000"
_MYSQL = "mysql:3306"

#: The folder on each worker's host that holds its replicas and local backups.
_HOST_FOLDER = "/duckling/host"

#: One entry per encryption mode, over both hosts.
_DATABASES = (
    ("shop", "Shop", "host-a", "none"),
    ("crm", "Customers", "host-b", "sse-s3"),
    ("inventory", "Inventory", "host-a", "client-aes256"),
)


def _token() -> str:
    """No character that means something to Compose, to a shell or in a URL; as long as signing by SHA-512 wants it."""
    return secrets.token_hex(32)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _kms_key() -> str:
    """MinIO's own key for server-side encryption, as it wants it: a name, and 32 bytes."""
    return f"duckling:{base64.b64encode(secrets.token_bytes(32)).decode()}"


def _airflow_uid() -> str:
    """Who owns the files that containers and host share; only root can give them to the image's own user."""
    return str(os.geteuid() or _IMAGE_USER)


#: Everything that docker-compose.yaml takes from its environment, by name.
VARIABLES: Mapping[str, Callable[[], str]] = {
    "AIRFLOW_UID": _airflow_uid,
    "BIND_ADDRESS": lambda: "127.0.0.1",
    "AIRFLOW_ADMIN_PASSWORD": _token,
    "AIRFLOW_FERNET_KEY": _fernet_key,
    "AIRFLOW_JWT_SECRET": _token,
    "AIRFLOW_SECRET_KEY": _token,
    "DUCKLING_API_KEY": _token,
    "POSTGRES_PASSWORD": _token,
    "REDIS_PASSWORD": _token,
    "MYSQL_ROOT_PASSWORD": _token,
    "MYSQL_DUCKLING_PASSWORD": _token,
    "MINIO_ROOT_PASSWORD": _token,
    "MINIO_KMS_SECRET_KEY": _kms_key,
    "S3_ACCESS_KEY_ID": lambda: f"duckling{secrets.token_hex(6)}",
    "S3_SECRET_ACCESS_KEY": _token,
}


def entries(values: Mapping[str, str]) -> list[dict[str, Any]]:
    """The entries of databases.json for the services of docker-compose.yaml.

    :param values: the variables of .env.
    """
    made = []
    for database, name, host, encryption in _DATABASES:
        s3: dict[str, Any] = {
            "enabled": True,
            "bucket": BUCKET,
            "region": "us-east-1",
            "accessKeyId": values["S3_ACCESS_KEY_ID"],
            "secretAccessKey": values["S3_SECRET_ACCESS_KEY"],
            "endpoint": _ENDPOINT,
            "forcePathStyle": True,
            "encryption": encryption,
        }
        if encryption == "client-aes256":
            s3["encryptionKey"] = secrets.token_hex(32)
        made.append(
            {
                "id": database,
                "name": name,
                "mysqlConnectionString": f"mysql://duckling:{values['MYSQL_DUCKLING_PASSWORD']}@{_MYSQL}/{database}",
                "duckdbPath": f"{_HOST_FOLDER}/{database}.db",
                "queue": host,
                "host": host,
                "s3": s3,
            }
        )
    return made


def prepare(folder: Path, say: Callable[[str], object] = print) -> dict[str, str]:
    """Make ``.env`` and ``compose/data/databases.json`` in `folder`, or complete the former.

    :return: the variables of ``.env``.
    :raises OSError: when something can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".env"
    known = _read(path) if path.exists() else {}
    missing = {name: make() for name, make in VARIABLES.items() if not known.get(name)}
    if missing:
        lines = "".join(f"{name}={value}\n" for name, value in missing.items())
        text = path.read_text(encoding="utf-8") if known else "# Made by compose/prepare.py. Secrets: not for git.\n"
        _write(path, text + ("" if text.endswith("\n") else "\n") + lines)
        say(f"{path}: made {', '.join(missing)}")
    else:
        path.chmod(0o600)
        say(f"{path}: complete, kept as it is")
    values = known | missing

    data = folder / "compose" / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    databases = data / "databases.json"
    if databases.exists():
        say(f"{databases}: kept as it is")
    else:
        _write(databases, json.dumps(entries(values), indent=2) + "\n")
        say(f"{databases}: made {', '.join(database[0] for database in _DATABASES)}")
        say("  Keep a copy of its encryptionKey somewhere else: without it those backups are noise.")
    if os.geteuid() == 0:
        for owned in (data, databases):
            os.chown(owned, int(values["AIRFLOW_UID"]), 0)
    elif int(values["AIRFLOW_UID"]) != os.geteuid():
        say(f"  Containers run as user {values['AIRFLOW_UID']} (AIRFLOW_UID) and must be able to read {data}.")
    return values


def _read(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _write(path: Path, text: str) -> None:
    """In one rename, never readable for others."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    folder = Path(arguments[0]).resolve() if arguments else ROOT
    try:
        prepare(folder)
    except OSError as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    print("Next: docker compose up --detach --build")
    print("Then: http://localhost:8080, user admin; its password: grep AIRFLOW_ADMIN_PASSWORD .env")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
