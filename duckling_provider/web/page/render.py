"""How a page is made and sent: templates, URLs under Airflow's base path, headers, and errors in the page's look."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlencode

from airflow.api_fastapi.app import get_auth_manager
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from duckling_provider import __version__
from duckling_provider.dags.ids import dag_id
from duckling_provider.web.page import wording

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

#: Nothing from elsewhere, nothing inline, and framed by Airflow only. `style-src` covers the one style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'none'"
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    # Not "no-referrer": browsers would send "Origin: null" with forms, which tells nothing.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
#: Under the application's root these answer programs, whatever asks.
_FOR_PROGRAMS = ("/api/", "/health", "/metrics", "/docs", "/openapi.json", "/static/", "/static-offline-docs/")

_TITLES = {
    400: "That did not work",
    401: "You are not logged in",
    403: "You may not do this",
    404: "There is no such page",
    409: "Not now",
    422: "That did not work",
    429: "Too many requests",
    502: "The store failed",
}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(wording.filters())
    environment.globals.update(version=__version__, meaning=wording.MEANING, dag_id=dag_id)
    return environment


class Urls:
    """Paths of this page and of Airflow's, under whatever base path Airflow has."""

    def __init__(self, request: Request) -> None:
        self._base = str(request.scope.get("root_path", "")).rstrip("/")

    def home(self, **query: object) -> str:
        return self._path("/", query)

    def static(self, name: str) -> str:
        return self._path(f"/static/{name}", {"v": __version__})

    def database(self, database_id: str, action: str = "", **query: object) -> str:
        """The database's view, or that of one of its actions: ``restore``, ``delete``, ``backup``, …"""
        return self._path(f"/databases/{quote(database_id, safe='')}{'/' if action else ''}{action}", query)

    def run(self, dag: str, run_id: str, **query: object) -> str:
        # Escaped no more than needed: Airflow's window takes over the frame's path unescaped, and reloads what differs.
        return self._path(f"/runs/{quote(dag, safe='')}/{quote(run_id, safe=':+@')}", query)

    def _path(self, path: str, query: Mapping[str, object]) -> str:
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return f"{self._base}{path}{'?' if given else ''}{urlencode(given)}"


def page(request: Request, template: str, *, status: int = 200, **context: object) -> HTMLResponse:
    """Render a template of this package."""
    context.setdefault("now", datetime.now(timezone.utc))
    text = _environment().get_template(template).render(urls=Urls(request), **context)
    return HTMLResponse(text, status, headers=dict(_HEADERS))


def wants_page(request: Request) -> bool:
    """Whether it is a browser that looks at the page, and not a program that calls the API."""
    path = request.url.path.removeprefix(str(request.scope.get("root_path", "")))
    # The contract's own paths come without our prefix.
    return "text/html" in request.headers.get("accept", "") and not path.startswith(_FOR_PROGRAMS)


def error_page(
    request: Request, status: int, error: str, *, more: Mapping[str, object], headers: Mapping[str, str]
) -> HTMLResponse:
    """An error in the page's look; without a login, the way to it."""
    login = ""
    if status == 401:
        # Back to Airflow's own page around this one: its cookie is then there for both.
        login = get_auth_manager().get_url_login(next_url=str(request.url))
    answer = page(
        request,
        "error.html",
        status=status,
        title=_TITLES.get(status, "Something went wrong" if status >= 500 else "That did not work"),
        error=error,
        run_url=more.get("url"),
        login=login,
    )
    answer.headers.update(headers)
    return answer
