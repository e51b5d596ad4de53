"""The routes of the page. What they show comes from `api`, and what they do is done there and checked there again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from duckling_provider.backup.inventory.local_backups import LocalBackups, listed_here
from duckling_provider.backup.inventory.names import LATEST, parse_name
from duckling_provider.backup.inventory.states import BackupState
from duckling_provider.base.errors import DucklingError
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.dags.ids import Kind, parse_dag_id
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.oversight.check import Look, looks
from duckling_provider.replica.origin import read_origin
from duckling_provider.stores.store import KEPT_VERSIONS
from duckling_provider.web.page import overview, wording
from duckling_provider.web.page.charts import Point, Scale, chart
from duckling_provider.web.page.listing import Item, merge, recorded_items, with_looks, with_states
from duckling_provider.web.page.progress import in_order, read_progress
from duckling_provider.web.page.questions import confirm, history_of, origin_problem, restorable
from duckling_provider.web.page.render import STATIC, Urls, page
from duckling_provider.web.services import runs
from duckling_provider.web.services.access import Action, Caller
from duckling_provider.web.services.actions import (
    connection_steps,
    delete_backup_now,
    existing_key,
    listed_in,
    looked_at,
    moment_conf,
    set_pin,
    states_of,
)
from duckling_provider.web.services.dependencies import (
    CallerDep,
    all_entries,
    database_for,
    installation,
    mistakes,
    now,
    statuses,
)
from duckling_provider.web.services.errors import ApiError
from duckling_provider.web.services.privacy import Hide, hiding, sees_places

_RUNS_SHOWN = 10
_BYTES = Scale(tuple(1024.0**power for power in range(5)), human_bytes)
_SECONDS = Scale((1.0, 60.0, 3600.0), wording.took)
_ACTIONS: tuple[Action, ...] = ("backup", "restore", "verify", "drill", "delete", "configure")

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

Page = Annotated[int, Query(alias="page", ge=1, le=1_000_000)]
Search = Annotated[str, Query(max_length=200)]
Key = Annotated[str, Query(min_length=1, max_length=1024)]
FormKey = Annotated[str, Form(min_length=1, max_length=1024)]
Typed = Annotated[str, Form(max_length=1024)]


def install(app: FastAPI) -> None:
    """Add the page to the application."""
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="duckling-static")


@router.get("/")
def everything(request: Request, caller: CallerDep, q: Search = "", state: Search = "", page_: Page = 1) -> Response:
    """All databases by trouble."""
    found = installation()
    visible = caller.visible(found.databases)
    rows = overview.rows_of(statuses(visible, caller), mistakes(caller, found, visible))
    matching = overview.search(rows, q)
    broken = sum(row.status is not None and row.status.promise.is_broken for row in rows)
    chosen = [row for row in matching if not state or row.state == state]
    return page(
        request,
        "overview.html",
        summary=wording.summary(total=len(rows), lost=sum(not row.recoverable for row in rows), broken=broken),
        well=all(row.recoverable for row in rows) and not broken,
        total=len(rows),
        matching=len(matching),
        counts=overview.counts(matching),
        paged=overview.cut(chosen, page_),
        shows_place=sees_places(caller),
        q=q,
        state=state,
    )


@router.get("/databases/{database_id}")
def one(
    request: Request,
    caller: CallerDep,
    database_id: str,
    store: bool = False,  # noqa: FBT001, FBT002 - a query parameter
    deleted: Annotated[str, Query(max_length=1024)] = "",
    kept: bool = False,  # noqa: FBT001, FBT002
    page_: Page = 1,
) -> Response:
    """A database's own view; with `store` the store is asked what is really there."""
    database = database_for(caller, "read", database_id)
    # Only what is a key of this database is shown again: a link could put any words before it.
    prefix = database.s3.path_prefix if database.s3 is not None else ""
    gone = deleted if deleted.startswith(prefix) and parse_name(deleted[len(prefix) :]) is not None else ""
    return _database_page(request, caller, database, ask_store=store, number=page_, deleted=gone, kept=kept)


@router.post("/databases/{database_id}/backup")
def back_up(request: Request, caller: CallerDep, database_id: str) -> Response:
    """Begin a backup, and go to its run."""
    return _begin(request, caller, database_for(caller, "backup", database_id), "backup")


@router.post("/databases/{database_id}/verify")
def verify(request: Request, caller: CallerDep, database_id: str, key: FormKey) -> Response:
    """Begin a verification, and go to its run."""
    return _begin(request, caller, database_for(caller, "verify", database_id), "verify", key)


@router.post("/databases/{database_id}/drill")
def drill(request: Request, caller: CallerDep, database_id: str, key: FormKey = LATEST) -> Response:
    """Begin a restore on trial, and go to its run."""
    return _begin(request, caller, database_for(caller, "drill", database_id), "drill", key)


@router.post("/databases/{database_id}/test")
def test(request: Request, caller: CallerDep, database_id: str) -> Response:
    """Try everything that backups need under the prefix, and show each step."""
    database = database_for(caller, "backup", database_id)
    steps = connection_steps(caller, database)
    return page(
        request,
        "test.html",
        database=database,
        steps=steps,
        failed=next((s for s in steps if s["error"]), None),
        shows_place=sees_places(caller),
    )


@router.get("/databases/{database_id}/restore")
def restore_form(request: Request, caller: CallerDep, database_id: str, key: Key = LATEST) -> Response:
    """What a restore would do, and the question for the name."""
    return confirm(request, caller, database_for(caller, "restore", database_id), "restore", key)


@router.post("/databases/{database_id}/restore")
def restore(
    request: Request,
    caller: CallerDep,
    database_id: str,
    key: FormKey,
    typed: Typed = "",
    newest: Annotated[bool, Form()] = False,  # noqa: FBT002 - a form's fields
    any_origin: Annotated[bool, Form()] = False,  # noqa: FBT002
) -> Response:
    """Begin a restore once the name is right, and go to its run."""
    database = database_for(caller, "restore", database_id)
    if not _is_name(database, typed):
        return confirm(request, caller, database, "restore", LATEST if newest else key, typed=typed)
    if newest and not any_origin and origin_problem(database, restorable(database), LATEST):
        return confirm(request, caller, database, "restore", LATEST, typed=typed)
    return _begin(request, caller, database, "restore", key)


@router.post("/databases/{database_id}/moment")
def to_moment(request: Request, caller: CallerDep, database_id: str, until: Typed = "", name: Typed = "") -> Response:
    """Begin a restore to a moment, into a file of its own, and go to its run."""
    database = database_for(caller, "restore", database_id)
    target = installation().settings.restore_path / name.strip() if name.strip() else ""
    try:
        conf = moment_conf(database, until=until, target_path=str(target))
    except (DucklingError, ApiError) as error:
        why = error.error if isinstance(error, ApiError) else str(error)
        refused = {"error": hiding(caller, [database])(why.rstrip(".")), "until": until, "name": name}
        return confirm(request, caller, database, "restore", LATEST, moment=refused)
    return _begin(request, caller, database, "restore", conf=conf)


@router.get("/databases/{database_id}/delete")
def delete_form(request: Request, caller: CallerDep, database_id: str, key: Key) -> Response:
    """What would be deleted, and the question for the name."""
    return confirm(request, caller, database_for(caller, "delete", database_id), "delete", key)


@router.post("/databases/{database_id}/delete")
def delete(request: Request, caller: CallerDep, database_id: str, key: FormKey, typed: Typed = "") -> Response:
    """Delete a backup from S3 once the name is right."""
    database = database_for(caller, "delete", database_id)
    if not _is_name(database, typed):
        return confirm(request, caller, database, "delete", key, typed=typed)
    gone, kept = delete_backup_now(caller, database_id, key)
    shown = Urls(request).database(database_id, store="1", deleted=gone.key, kept="1" if kept else "")
    return RedirectResponse(shown, 303)


@router.post("/databases/{database_id}/pin")
def pin(
    request: Request,
    caller: CallerDep,
    database_id: str,
    key: FormKey,
    pinned: Annotated[bool, Form()],
    page_: Annotated[int, Form(alias="page", ge=1, le=1_000_000)] = 1,
) -> Response:
    """Pin or unpin a backup, and show the list again."""
    set_pin(caller, database_id, key, pinned=pinned)
    return RedirectResponse(Urls(request).database(database_id, store="1", page=page_ if page_ > 1 else ""), 303)


@router.get("/databases/{database_id}/{action}")
def again(request: Request, caller: CallerDep, database_id: str, action: str) -> Response:
    """A reload of Airflow's window after a button was pressed comes back to the database."""
    if action not in ("backup", "verify", "drill", "test", "pin", "moment"):
        raise ApiError(404, "there is no such path")
    caller.demand("read", database_id)
    return RedirectResponse(Urls(request).database(database_id), 303)


@router.get("/runs/{dag_id}/{run_id:path}")
def run(request: Request, caller: CallerDep, dag_id: str, run_id: str, part: bool = False) -> Response:  # noqa: FBT001, FBT002
    """A run, live; with `part` only what changes."""
    parsed = parse_dag_id(dag_id)
    if parsed is None:
        raise ApiError(404, f"{dag_id} is none of Duckling's DAGs")
    kind, database_id = parsed
    caller.demand("read", database_id)
    progress = read_progress(dag_id, run_id, database_id, _hiding(caller, database_id), now=now())
    if progress is None:
        raise ApiError(404, f"{dag_id} has no run {run_id}; it may have been cleaned up")
    return page(
        request,
        "run_part.html" if part else "run.html",
        progress=progress,
        database_name=_name_of(database_id),
        tasks=in_order(progress.tasks, kind),
        active=progress.run.active,
        shows_log=sees_places(caller),
    )


# ---- what they share -------------------------------------------------------------------------------------------


def _database_page(
    request: Request,
    caller: Caller,
    database: Database,
    *,
    ask_store: bool = False,
    number: int = 1,
    deleted: str = "",
    kept: bool = False,
    problem: ApiError | None = None,
) -> Response:
    hide = hiding(caller, [database])
    history, recorded = history_of(database, hide)
    (status,) = statuses([database], caller)
    items, store_error = recorded_items(recorded), ""
    if ask_store:
        items, store_error = _ask_store(database, items)
    paged = overview.cut(items, number)
    if ask_store and not store_error:
        paged = replace(paged, items=tuple(_looked_at(database, paged.items)))
    points = recorded[::-1]
    timed = [b for b in points if b.duration_ms is not None]
    newest = status.record.verified
    tests = [b.tested for b in recorded if b.tested is not None]
    return page(
        request,
        "database.html",
        status=problem.status if problem else 200,
        database=database,
        standing=status,
        record=status.record,
        runs=history[:_RUNS_SHOWN],
        paged=paged,
        asked=ask_store,
        store_error=hide(store_error),
        newest_key=newest.key if newest else "",
        size_chart=chart("Size of backups", [Point(b.created, b.size) for b in points], _BYTES, ident="size"),
        time_chart=chart(
            "Duration of backups",
            [Point(b.created, (b.duration_ms or 0) / 1000) for b in timed],
            _SECONDS,
            ident="time",
        ),
        test_chart=chart(
            "Time to recover, as tested",
            [Point(t.at, t.restore_ms / 1000) for t in sorted(tests, key=lambda t: t.at)],
            _SECONDS,
            ident="test",
            what="tests",
            promised=database.rto_minutes * 60 if database.rto_minutes else None,
        ),
        may={action: caller.may(action, database.id) for action in _ACTIONS},
        deleted=deleted,
        kept=KEPT_VERSIONS if kept else "",
        problem=hide(problem.error) if problem else "",
    )


def _hiding(caller: Caller, database_id: str) -> Hide:
    """As `hiding`, also for an entry that is gone or has a mistake: then for all the others."""
    try:
        return hiding(caller, [installation().database(database_id)])
    except DucklingError:
        return hiding(caller, all_entries())


def _ask_store(database: Database, recorded: list[Item]) -> tuple[list[Item], str]:
    """What is really there, and why the store could not tell."""
    local = listed_here(database)
    if database.s3 is None:
        return merge(recorded, None, local, now=now()), ""
    try:
        store = DucklingHook(database.id).store()
        return merge(recorded, listed_in(store), local, now=now(), needs_mac=store.mode == CLIENT), ""
    except DucklingError as error:
        here = merge(recorded, None, local, now=now())
        names = {item.name for item in here}
        elsewhere = [item for item in recorded if item.name not in names]
        return sorted(here + elsewhere, key=lambda item: item.created, reverse=True), str(error)


def _looked_at(database: Database, items: Sequence[Item]) -> list[Item]:
    """The items with what only a request for each tells: its replica, and whether it is as large as it was made."""
    stored = [item.listed for item in items if item.stored and item.listed is not None]
    here = [item.listed for item in items if not item.stored and item.listed is not None]
    found: dict[str, Look] = {}
    states: dict[str, BackupState] = {}
    if stored:
        store = DucklingHook(database.id).store()
        found, states = looked_at(store, stored), states_of(database, store, stored)
    local, _ = looks(LocalBackups(database), here) if here else ({}, None)
    states |= states_of(database, LocalBackups(database), here) if here else {}
    mine = None
    if database.is_here:
        with contextlib.suppress(DucklingError, OSError):
            mine = read_origin(database.replica, host=database.here)
    items = with_states(items, {key.rpartition("/")[2]: state for key, state in states.items()})
    return with_looks(items, local | {key.rpartition("/")[2]: look for key, look in found.items()}, mine=mine)


def _begin(
    request: Request,
    caller: Caller,
    database: Database,
    kind: Kind,
    key: str = "",
    conf: Mapping[str, str] | None = None,
) -> Response:
    """Begin a run and go to its view; where one is under way, say so above the database."""
    if key:
        conf = {"key": existing_key(database, restorable(database), key, proven=kind == "restore")}
    try:
        begun = runs.begin(kind, database.id, caller=caller, conf=conf)
    except ApiError as error:
        if error.status != 409:
            raise
        return _database_page(request, caller, database, problem=error)
    return RedirectResponse(Urls(request).run(begun.dag_id, begun.run_id), 303)


def _name_of(database_id: str) -> str:
    """What the entry is called; its id where there is none any more."""
    try:
        return installation().database(database_id).name
    except DucklingError:
        return database_id


def _is_name(database: Database, typed: str) -> bool:
    return typed.strip() in (database.id, database.name.strip())
