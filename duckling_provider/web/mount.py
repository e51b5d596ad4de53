"""Where the API stands in Airflow's API server.

Airflow mounts plugins under a prefix of their own, and a mount answers no exact path. The contract's paths
(``/api/backups?db=…``) are none of Airflow's, so a middleware of the root application hands them over. Both parts are
imported by every Airflow process, and load the application with the first request only.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

#: Under it: the page, the API's documentation, and the API once more.
PREFIX = "/duckling"
#: The contract's paths, and those for monitors.
ROOT_PATHS = ("/api/backups", "/api/databases", "/api/automation", "/health", "/metrics")


class LazyApp:
    """The application, made when it is first called."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._made()(scope, receive, send)

    def _made(self) -> ASGIApp:
        with self._lock:
            if self._app is None:
                from duckling_provider.web.app import create_app

                self._app = create_app()
            return self._app


#: The one application of this process.
app = LazyApp()


class RootPaths:
    """ASGI middleware of Airflow's root application: hands `ROOT_PATHS` to our own."""

    def __init__(self, app: ASGIApp) -> None:
        self._airflow = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_ours(_route_path(scope)):
            await app(scope, receive, send)
        elif scope["type"] == "http" and _route_path(scope) == PREFIX:
            # A mount does not answer its own bare path.
            from starlette.responses import RedirectResponse

            await RedirectResponse(f"{scope.get('root_path', '')}{PREFIX}/")(scope, receive, send)
        else:
            await self._airflow(scope, receive, send)


def _route_path(scope: Scope) -> str:
    """The path under Airflow's own base path."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    inside = root and (path == root or path.startswith(root + "/"))
    return path[len(root) :] if inside else path


def _is_ours(path: str) -> bool:
    return any(path == known or path.startswith(known + "/") for known in ROOT_PATHS)
