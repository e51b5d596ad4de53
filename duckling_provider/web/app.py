"""The application: routes, documentation, and every failure in the contract's shape."""

from __future__ import annotations

import logging

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from duckling_provider import __version__
from duckling_provider.base.errors import ConfigError, DucklingError
from duckling_provider.web.api import backups, databases, monitoring
from duckling_provider.web.page import views
from duckling_provider.web.page.render import error_page, wants_page
from duckling_provider.web.services.dependencies import (
    all_entries,
    each_parameter_once,
    json_bodies_only,
    says_json,
    wanted_body,
)
from duckling_provider.web.services.errors import ApiError, of_core
from duckling_provider.web.services.limits import Guard
from duckling_provider.web.services.privacy import hidden_mistake, hiding, sees_places

log = logging.getLogger(__name__)

_DESCRIPTION = """
Backups of DuckDB replicas. Each call needs `Authorization: Bearer …`, with `DUCKLING_API_KEY` or a token of Airflow's
(`POST /auth/token`), whose user may do what he may do with the database's DAGs.

Errors are `{"success": false, "error": "…"}`.
"""


def create_app() -> FastAPI:
    """Make the application. It is mounted under `mount.PREFIX`, and answers the contract's own paths as well."""
    # Its documentation works without a connection to anywhere: FastAPI's own loads its scripts from a public host.
    app = FastAPIOffline(
        title="Duckling", version=__version__, description=_DESCRIPTION, docs_url="/docs", redoc_url=None
    )
    for part in (backups, databases, monitoring):
        app.include_router(part.router, dependencies=[Depends(each_parameter_once), Depends(json_bodies_only)])
    views.install(app)
    app.add_middleware(Guard)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(DucklingError, _core_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    return app


async def _answer(request: Request, error: ApiError) -> Response:
    """For a browser on the page, a page; else in the contract's shape."""
    caller = getattr(request.state, "duckling_caller", None)
    if caller is not None:
        error.error = await run_in_threadpool(lambda: hiding(caller, all_entries())(error.error))
    if wants_page(request):
        return error_page(request, error.status, error.error, more=error.more, headers=error.headers)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return await _answer(request, error)


async def _core_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ConfigError) and not sees_places(getattr(request.state, "duckling_caller", None)):
        error = hidden_mistake(error)
    return await _api_error(request, of_core(error) if isinstance(error, DucklingError) else error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Which field is wrong and how; never its value, which may be a secret in the wrong place."""
    if not isinstance(error, RequestValidationError):
        raise error
    mistakes = []
    for problem in error.errors():
        where, *inside = problem["loc"]
        place = ".".join(str(part) for part in inside)
        if problem["type"] == "json_invalid":
            mistakes.append(f"the body is not JSON: {problem['ctx']['error']} at character {place}")
        elif where == "body" and not place and not says_json(request):
            mistakes.append(wanted_body(request))
        else:
            mistakes.append(f"{place or where}: {problem['msg']}")
    return await _answer(request, ApiError(400, "; ".join(mistakes)))


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    text = {404: "there is no such path", 405: f"this path has no method {request.method}"}.get(error.status_code)
    return await _answer(request, ApiError(error.status_code, text or str(error.detail), headers=error.headers))


async def _unexpected(request: Request, error: Exception) -> Response:
    """A mistake in the program: the log has the traceback, the answer does not."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return await _answer(request, ApiError(500, "an internal error; the API server's log tells more"))
