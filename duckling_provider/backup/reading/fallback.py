"""Which backup a restore takes: the one that is meant, or where that is damaged the newest older one that is sound."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from duckling_provider.backup.inventory.backup_object import StoredBackup, identify_backup
from duckling_provider.backup.inventory.choice import resolve
from duckling_provider.backup.inventory.names import LATEST, RULES, parse_name
from duckling_provider.backup.reading.verify import read_again
from duckling_provider.base.errors import DamagedError, DucklingError, IntegrityError, NotFoundError, WrongKeyError
from duckling_provider.config.databases import Database
from duckling_provider.stores.store import BackupSource

log = logging.getLogger(__name__)

#: What a damaged backup raises: its object does, or its sidecar.
_DAMAGE = (IntegrityError, DamagedError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Wanted:
    """Which backup a restore is to take: `key` or, with `fallback`, an older one where that is damaged."""

    database: Database
    store: BackupSource
    key: str
    before: datetime | None
    fallback: bool
    any_origin: bool

    def first_sound(self, use: Callable[[StoredBackup], Result]) -> Result:
        """What `use` makes of the backup that is meant, or with `fallback` of the newest older one that is sound.

        :param use: may read the backup, and raises `IntegrityError` or `DamagedError` when it is damaged.
        :raises IntegrityError, DamagedError: it is damaged; the hint names the next older one that looks whole.
        """
        key = resolve(self.database, self.store, self.key, before=self.before, any_origin=self.any_origin)
        chosen = self.key not in RULES
        while True:
            try:
                # Nothing is noted beside it: it may be the line that is bad, and this the only backup there is.
                return use(identify_backup(self.database, self.store, key, chosen=chosen))
            except _DAMAGE as error:
                # A key that is proven to be another one is no damage: with the right one, the backup is good.
                other_key = isinstance(error, WrongKeyError) and error.proven
                goes_on = self.fallback and not other_key
                older = self._next_whole(key, strict=goes_on)
                if older is None:
                    raise
                if isinstance(error, IntegrityError) and error.found:
                    # Bytes came that are not those that were stored: a bad line must not cost what is newest.
                    if goes_on:
                        read_again(self.database, self.store, key, error, chosen=chosen)
                    again = f"duckling verify {self.database.id} {key.rpartition('/')[2]}"
                    error.hint = f"{error.hint} Before that, {again} tells whether the network is bad or the backup."
                if not goes_on:
                    name = older.rpartition("/")[2]
                    advice = f"The next older backup that looks whole is {name}: name it"
                    advice += "." if other_key else ", or add --fallback (conf: fallback)."
                    error.hint = f"{error.hint} {advice}" if error.hint else advice
                    raise
                log.warning("passed over, since it is damaged: %s; %s is taken", error.what, older)
                key, chosen = older, False

    def _next_whole(self, key: str, *, strict: bool) -> str | None:
        """The newest backup older than `key` whose head, ``.mac`` and first bytes are as they should be.

        :param strict: whether an error in looking is raised; otherwise it counts as "there is none".
        """
        while (created := parse_name(key.rpartition("/")[2])) is not None:
            try:
                key = resolve(self.database, self.store, LATEST, before=created, any_origin=self.any_origin, quiet=True)
                identify_backup(self.database, self.store, key)
            except NotFoundError:
                return None
            except _DAMAGE:
                continue
            except DucklingError:
                if strict:
                    raise
                return None
            return key
        return None
