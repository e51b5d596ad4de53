"""That a store copies no parts, remembered for a week, or until ``duckling check`` finds that it does."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone

from duckling_provider.backup.inventory.segment_records import records_folder
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import DucklingError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.base.state_files import read_state
from duckling_provider.config.databases import Database
from duckling_provider.stores.store import Store

log = logging.getLogger(__name__)

#: How long a store's refusal is believed.
_BELIEVED = timedelta(days=7)
_REFUSAL = "copies.json"


def remember_refusal(database: Database, store: Store, because: str) -> None:
    """The store copies nothing: not to be asked again with each backup. An empty reason forgets that."""
    if not database.is_here or not records_folder(database).is_dir():
        return
    path = records_folder(database) / _REFUSAL
    try:
        if because:
            facts = {"store": store.url, "because": because, "at": iso(datetime.now(timezone.utc))}
            write_durably(path, json.dumps(facts).encode())
        else:
            path.unlink(missing_ok=True)
    except (DucklingError, OSError) as error:
        log.warning("that %s copies no parts could not be noted: %s", store.url, error)


def remembered_refusal(database: Database, store: Store) -> str:
    """Why the store is not asked for copies; empty when it is."""
    try:
        facts = json.loads(read_state(records_folder(database) / _REFUSAL))
        recent = datetime.now(timezone.utc) - parse_moment(facts["at"]) < _BELIEVED
        return str(facts["because"]) if recent and facts["store"] == store.url else ""
    except (OSError, DucklingError, ValueError, KeyError, TypeError):
        return ""
