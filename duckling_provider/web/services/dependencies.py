"""What every route needs: the configuration as it is now, the caller, the store of an entry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Annotated

from airflow.utils.session import create_session
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from duckling_provider import config
from duckling_provider.base.errors import ConfigError, DucklingError
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Database, Installation
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.stores.s3 import open_store
from duckling_provider.stores.store import Store
from duckling_provider.web.services.access import Action, Caller, identify_caller
from duckling_provider.web.services.errors import ApiError
from duckling_provider.web.services.limits import count_guess, count_write, refuse_guesser
from duckling_provider.web.services.privacy import hidden_mistake, hidden_record, hiding, sees_places
from duckling_provider.web.services.queries import read_records
from duckling_provider.web.services.status import Status, status_of

NO_CREDENTIALS = "no credentials: send Authorization: Bearer with DUCKLING_API_KEY or a token of Airflow's"


# For the documentation, and for its button "Authorize": `access.identify_caller` reads the header.
_bearer = HTTPBearer(auto_error=False, description="DUCKLING_API_KEY, or a token of Airflow's (POST /auth/token).")


async def guest(request: Request, _: Annotated[object, Depends(_bearer)] = None) -> Caller | None:
    """The caller, None for who shows no credentials; wrong ones are counted and refused."""
    address = request.client.host if request.client else "?"
    # The address is that of the connection, whatever X-Forwarded-For says: only uvicorn knows which proxies to believe.
    guesses = bool(request.headers.get("authorization", "").strip())  # a cookie is signed, and no one guesses it
    if guesses:
        refuse_guesser(address)
    try:
        caller = await identify_caller(request)
    except ApiError as error:
        if error.status == 401:
            count_guess(address)
        raise
    if guesses:
        refuse_guesser(address)  # while this token was looked at, others may have been wrong
    request.state.duckling_caller = caller
    if caller is not None and request.method not in ("GET", "HEAD"):
        count_write(caller.name)
    return caller


async def caller(found: Annotated[Caller | None, Depends(guest)]) -> Caller:
    """The caller of a route that is for known ones only."""
    if found is None:
        raise ApiError(401, NO_CREDENTIALS, headers={"WWW-Authenticate": "Bearer"})
    return found


def each_parameter_once(request: Request) -> None:
    """Of ``?db=a&db=b`` the last would count, and a restore would replace the replica that was not meant.

    :raises ApiError: 400 for a parameter that is given twice.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(400, f"{printable(twice)}: given more than once")


def json_bodies_only(request: Request) -> None:
    """A form is not understood, and a page elsewhere may send one in its visitor's name, as it may a body of no type.

    :raises ApiError: 400 for a body of another type, or of none.
    """
    headers = request.headers
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    if has_body and not says_json(request):
        raise ApiError(400, wanted_body(request))


def says_json(request: Request) -> bool:
    return "json" in request.headers.get("content-type", "")


def wanted_body(request: Request) -> str:
    """What the body has to be, and what came in its place."""
    sent = printable(request.headers.get("content-type", ""), limit=100)
    return (
        "the body must be a JSON object, sent with the header Content-Type: application/json; "
        f"{f'this one came as {sent}' if sent else 'this one has none'} (curl -d needs -H)"
    )


CallerDep = Annotated[Caller, Depends(caller)]
GuestDep = Annotated[Caller | None, Depends(guest)]


def now() -> datetime:
    return datetime.now(timezone.utc)


def installation() -> Installation:
    """databases.json as it is at this moment.

    :raises ConfigError: when it can't be read as a whole.
    """
    return config.load()


def all_entries() -> tuple[Database, ...]:
    """The good entries; none where the file can't be read."""
    try:
        return installation().databases
    except DucklingError:
        return ()


def database_for(caller: Caller, action: Action, database_id: str) -> Database:
    """The entry, once the caller may do `action` with it.

    :raises ApiError: 403 or 404.
    :raises NotFoundError: there is no such entry.
    :raises ConfigError: it is there but bad.
    """
    caller.demand("read", database_id)
    database = installation().database(database_id)
    caller.demand(action, database_id)
    return database


def remote_store(database: Database) -> Store:
    """:raises ApiError: 400 when the entry has no S3."""
    if database.s3 is None:
        raise ApiError(400, f'S3 is not configured for "{database.id}": its backups are local only')
    # Credentials from elsewhere may be others each time.
    elsewhere = database.s3.aws_conn_id or database.s3.credential_source
    return DucklingHook(database.id).store() if elsewhere else _store(database)


# Making a client takes as long as a listing. It may be used by several threads, and databases are equal only with all
# their settings and secrets.
@lru_cache(maxsize=64)
def _store(database: Database) -> Store:
    return open_store(database)


def statuses(databases: Sequence[Database], caller: Caller | None) -> list[Status]:
    """Where each of them stands, by what runs recorded, as `caller` may read it: no store is asked."""
    moment = now()
    with create_session() as session:
        records = read_records(session, databases)
    if not sees_places(caller):
        records = {one.id: hidden_record(records[one.id], hiding(caller, [one])) for one in databases}
    return [status_of(database, records[database.id], now=moment) for database in databases]


def mistakes(caller: Caller, found: Installation, visible: Sequence[Database]) -> tuple[ConfigError, ...]:
    """The mistakes in databases.json that `caller` may read about: who does not see every entry, none."""
    if len(visible) != len(found.databases):
        return ()
    return found.problems if sees_places(caller) else tuple(hidden_mistake(problem) for problem in found.problems)
