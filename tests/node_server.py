"""A server on a loopback port that behaves as the original Node.js one does where a pause and a resume ask it.

Loaded by `runpy.run_path`, since test folders are no packages.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class NodeServer:
    """A context manager; what it is and does may be changed while it runs.

    :param busy_seconds: how long CDC goes on after it was told to stop.
    :param drains: `POST /cdc/stop` is answered only then, as by the real one.
    :param silent: paths that are never answered.
    :param failing: path to (status, body).
    """

    key: str = "node-api-key-4711"
    databases: tuple[str, ...] = ("shop",)
    running: dict[str, bool] = field(default_factory=lambda: {"automation": True, "cdc": True})
    has_cdc: bool = True
    busy_seconds: float = 0.0
    drains: bool = False
    silent: set[str] = field(default_factory=set)
    failing: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    queries: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    port: int = 0

    def __enter__(self) -> NodeServer:
        node = self
        self.over = threading.Event()
        self.busy_until = 0.0

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                status, body = node.answer(self.command, self.path, self.headers.get("Authorization", ""))
                content = body.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that gave up

        self.listener = Listener(("127.0.0.1", self.port), Handler)
        self.port = self.listener.server_port
        threading.Thread(target=self.listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.listener.shutdown()
        self.listener.server_close()

    @property
    def posts(self) -> list[str]:
        return [path for method, path in self.requests if method == "POST"]

    def answer(self, method: str, target: str, authorization: str) -> tuple[int, str]:
        url = urlsplit(target)
        path = url.path
        self.requests.append((method, path))
        self.queries.add(url.query)
        self.keys.add(authorization)
        if path in self.silent:
            self.over.wait(60)
        if path in self.failing:
            return self.failing[path]
        good = authorization == f"Bearer {self.key}"
        if path == "/api/check-auth":
            return 200, json.dumps({"authenticated": good})
        if not good:
            return 401, json.dumps({"error": "Unauthorized", "message": "Invalid or expired token"})
        database = parse_qs(url.query).get("db", ["default"])[0]
        if database not in self.databases:
            return self.no(404, f"Database '{database}' not found")
        service, _, action = path.strip("/").partition("/")
        if (method, action) == ("GET", "status") and service in self.running:
            return 200, json.dumps({"success": True, "status": self.status(service)})
        if (method, action) == ("POST", "stop") and service in self.running:
            return self.stop(service)
        if (method, action) == ("POST", "start") and service in self.running:
            self.running[service] = self.has_cdc = True
            return 200, json.dumps({"success": True, "message": "started"})
        return 200, "<!DOCTYPE html>"  # its pages have a route for everything

    def status(self, service: str) -> dict[str, Any]:
        if service == "automation":
            return {"isRunning": self.running["automation"], "autoBackup": {"enabled": True}}
        if not self.has_cdc:
            return {"isRunning": False, "message": "CDC service not initialized for this database"}
        left = self.busy_until - time.monotonic()
        return {"isRunning": self.running["cdc"] or left > 0, "queueSize": 7 if left > 0 else 0}

    def stop(self, service: str) -> tuple[int, str]:
        if service == "cdc" and not self.has_cdc:
            return self.no(404, "CDC service not running for database 'shop'")
        if service == "cdc" and self.running["cdc"]:
            self.busy_until = time.monotonic() + self.busy_seconds
            if self.drains:
                self.over.wait(self.busy_seconds)
        self.running[service] = False
        return 200, json.dumps({"success": True, "message": "stopped"})

    @staticmethod
    def no(status: int, error: str) -> tuple[int, str]:
        return status, json.dumps({"success": False, "error": error})
