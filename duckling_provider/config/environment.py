"""The environment variables of an installation."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from duckling_provider.base.bandwidth import LEAST_MBIT, MOST_MBIT, Bandwidth, can_be_limit
from duckling_provider.base.errors import ConfigError
from duckling_provider.base.strict_json import printable
from duckling_provider.config.fields import MAX_DAYS, MAX_HOURS, MIN_HOURS, host_fault
from duckling_provider.config.s3 import MODES, Encryption

DATABASES_FILE = "databases.json"
#: Characters of an API key below which it is warned of.
SHORTEST_API_KEY = 24
DEFAULT_POOL = "duckling_transfers"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says; paths are absolute."""

    data_path: Path
    backup_path: Path
    restore_path: Path = Path("/nonexistent")  #: where DAG runs may write restored files
    drill_path: Path | None = None  #: where backups are restored on trial; None = beside the local backups
    auto_backup: bool = True
    backup_interval_hours: float = 24.0
    backup_retention_days: float = 7.0
    api_key: SecretStr | None = None
    api_rate: str = "60/minute"  #: writes through the REST API, per caller
    sync_interval_minutes: float = 15.0
    cdc_enabled: bool = False
    auto_start_sync: bool = False
    excluded_tables: tuple[str, ...] = ()
    host: str = ""  #: this machine's name, for those entries that name theirs
    pool: str | None = DEFAULT_POOL  #: the Airflow pool of the tasks that transfer; None = Airflow's own default
    min_encryption: Encryption = "none"  #: what each entry's mode must be at least
    max_mbit_per_second: float = 0.0  #: what this host's transfers send and receive together; 0 = no limit
    nice: int = 0  #: by how much tasks and commands lower their priority
    notify_conn_ids: tuple[str, ...] = ()  #: Airflow connections that are told of troubles
    heartbeat_url: SecretStr | None = None  #: called by the watch while all is well
    pool_slots: int = 16  #: of that pool, when we have to make it

    @property
    def databases_file(self) -> Path:
        return self.data_path / DATABASES_FILE

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and unwise."""
        length = len(self.api_key.get_secret_value()) if self.api_key is not None else SHORTEST_API_KEY
        if length >= SHORTEST_API_KEY:
            return ()
        more = f"take {SHORTEST_API_KEY} or more: openssl rand -hex 32"
        return (f"DUCKLING_API_KEY: has {length} characters only, and its holder may do everything; {more}",)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables of the contract and those of the sync; an empty one counts as unset.

        :raises ConfigError: naming the variable, with ``entry="environment"``.
        """
        data = _env_path(environ, "DATA_PATH", "data")
        return cls(
            data_path=data,
            backup_path=_env_path(environ, "BACKUP_PATH", str(data / "backups")),
            restore_path=_env_path(environ, "DUCKLING_RESTORE_PATH", str(data / "restored")),
            drill_path=_env_path(environ, "DUCKLING_DRILL_PATH", "") if environ.get("DUCKLING_DRILL_PATH") else None,
            auto_backup=_env_bool(environ, "AUTO_BACKUP", default="true"),
            backup_interval_hours=_env_number(environ, "BACKUP_INTERVAL_HOURS", 24.0, least=MIN_HOURS, most=MAX_HOURS),
            backup_retention_days=_env_number(environ, "BACKUP_RETENTION_DAYS", 7.0, least=0.0, most=MAX_DAYS),
            api_key=SecretStr(environ["DUCKLING_API_KEY"]) if environ.get("DUCKLING_API_KEY") else None,
            api_rate=_env_rate(environ, "DUCKLING_API_RATE", "60/minute"),
            sync_interval_minutes=_env_number(
                environ, "SYNC_INTERVAL_MINUTES", 15.0, least=MIN_HOURS * 60, most=MAX_HOURS * 60
            ),
            cdc_enabled=_env_bool(environ, "CDC_ENABLED", default="false"),
            auto_start_sync=_env_bool(environ, "AUTO_START_SYNC", default="false"),
            excluded_tables=_env_list(environ, "EXCLUDED_TABLES"),
            host=_env_host(environ),
            # Empty is a choice here, of no pool.
            pool=environ.get("DUCKLING_POOL", DEFAULT_POOL).strip() or None,
            pool_slots=_env_slots(environ),
            max_mbit_per_second=_env_mbit(environ),
            nice=_env_nice(environ),
            min_encryption=_env_mode(environ, "DUCKLING_MIN_ENCRYPTION"),
            notify_conn_ids=_env_list(environ, "DUCKLING_NOTIFY_CONN_IDS"),
            heartbeat_url=_env_url(environ, "DUCKLING_HEARTBEAT_URL"),
        )


def bandwidth_of(settings: Settings) -> Bandwidth:
    """The limit that the transfers of this host share."""
    return Bandwidth(settings.data_path, settings.max_mbit_per_second)


def _env_path(environ: Mapping[str, str], name: str, default: str) -> Path:
    text = environ.get(name) or default
    if "\0" in text:
        raise ConfigError("holds a null character", entry="environment", field=name)
    try:
        # not resolve(): a symbolic link in DATA_PATH is the user's choice and stays
        return Path(os.path.abspath(text))
    except OSError as error:
        hint = "Set it to an absolute path."
        raise ConfigError(f"no current folder: {error.strerror}", entry="environment", field=name, hint=hint) from None


def _env_host(environ: Mapping[str, str]) -> str:
    text = environ.get("DUCKLING_HOST", "").strip()
    if fault := host_fault(text):
        raise ConfigError(fault, entry="environment", field="DUCKLING_HOST")
    return text or socket.gethostname()


def _env_slots(environ: Mapping[str, str]) -> int:
    slots = _env_number(environ, "DUCKLING_POOL_SLOTS", 16.0, least=0.0, most=100_000.0)
    if slots < 1 or slots != int(slots):
        raise ConfigError("expected a whole number from 1", entry="environment", field="DUCKLING_POOL_SLOTS")
    return int(slots)


def _env_mbit(environ: Mapping[str, str]) -> float:
    name = "DUCKLING_MAX_MBIT_PER_SECOND"
    mbit = _env_number(environ, name, 0.0, least=0.0, most=MOST_MBIT)
    if not can_be_limit(mbit):
        cause = f"expected 0 (no limit) or a number from {LEAST_MBIT:.0f} to {MOST_MBIT:.0f}"
        raise ConfigError(cause, entry="environment", field=name)
    return mbit


def _env_nice(environ: Mapping[str, str]) -> int:
    steps = _env_number(environ, "DUCKLING_NICE", 0.0, least=0.0, most=19.0)
    if steps != int(steps):
        raise ConfigError("expected a whole number from 0 to 19", entry="environment", field="DUCKLING_NICE")
    return int(steps)


def _env_bool(environ: Mapping[str, str], name: str, *, default: str) -> bool:
    text = environ.get(name) or default
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.strip().lower() not in words:
        cause = f'expected true or false (or 1/0, yes/no, on/off), got "{printable(text)}"'
        raise ConfigError(cause, entry="environment", field=name)
    return words[text.strip().lower()]


def _env_mode(environ: Mapping[str, str], name: str) -> Encryption:
    text = (environ.get(name) or MODES[0]).strip()
    for mode in MODES:
        if mode == text:
            return mode
    cause = f'expected {", ".join(MODES[:-1])} or {MODES[-1]}, got "{printable(text)}"'
    raise ConfigError(cause, entry="environment", field=name)


def _env_url(environ: Mapping[str, str], name: str) -> SecretStr | None:
    """A monitor's address, which is a secret."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"https?://[^\s/?#@]+([/?#]\S*)?", text, re.ASCII):
        raise ConfigError("expected http(s)://host/…", entry="environment", field=name)
    return SecretStr(text)


def _env_rate(environ: Mapping[str, str], name: str, default: str) -> str:
    text = (environ.get(name) or default).strip().lower()
    if not re.fullmatch(r"[1-9]\d{0,8}/(second|minute|hour)", text, re.ASCII):
        cause = f'expected a rate such as 60/minute (second, minute or hour), got "{printable(text)}"'
        raise ConfigError(cause, entry="environment", field=name)
    return text


def _env_list(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The parts of a comma-separated text, without blanks around them; empty ones don't count."""
    parts = (part.strip() for part in environ.get(name, "").split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _env_number(environ: Mapping[str, str], name: str, default: float, *, least: float, most: float) -> float:
    text = environ.get(name) or str(default)
    # float() alone would take "nan", "1_000" and digits of any script
    number = float(text) if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", text, re.ASCII) else math.nan
    if not least <= number <= most:
        bounds = f"from 0 to {most:.0f}" if least == 0 else f"above 0 and up to {most:.0f}"
        raise ConfigError(f'expected a number {bounds}, got "{printable(text)}"', entry="environment", field=name)
    return number
