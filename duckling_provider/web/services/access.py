"""Who calls, and what they may do.

Two ways in: the bearer token ``DUCKLING_API_KEY``, which may do everything, and Airflow's own login (token or cookie),
which may do what its user may do with the DAGs concerned. Routes of plugins get no authentication from Airflow.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api import security
from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from duckling_provider.config.databases import Database
from duckling_provider.config.environment import Settings
from duckling_provider.dags.ids import Kind, dag_id
from duckling_provider.web.services.errors import ApiError

log = logging.getLogger(__name__)

#: ``configure`` is reading and writing settings, credentials included, although none is shown.
Action = Literal["read", "backup", "restore", "verify", "drill", "delete", "configure"]

_METHODS_THAT_WRITE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Caller:
    """:param name: for logs and for the run's "triggered by".
    :param user: Airflow's; None for who has the API key.
    """

    name: str
    user: BaseUser | None = None

    def may(self, action: Action, database_id: str) -> bool:
        """Whether Airflow's auth manager allows this user what the action comes to: runs of DAGs, or connections."""
        if self.user is None:
            return True
        manager = get_auth_manager()
        if action == "read":
            details = DagDetails(id=dag_id("backup", database_id))
            return bool(manager.is_authorized_dag(method="GET", details=details, user=self.user))
        if action == "configure":
            details_ = ConnectionDetails(conn_id=None)
            return bool(manager.is_authorized_connection(method="PUT", details=details_, user=self.user))
        # Deleting a backup is no smaller matter than restoring one.
        kind: Kind = "restore" if action == "delete" else action
        method: Literal["POST", "DELETE"] = "DELETE" if action == "delete" else "POST"
        return bool(
            manager.is_authorized_dag(
                method=method,
                access_entity=DagAccessEntity.RUN,
                details=DagDetails(id=dag_id(kind, database_id)),
                user=self.user,
            )
        )

    def demand(self, action: Action, database_id: str) -> None:
        """:raises ApiError: 403 when the caller may not, 404 when not even to know that the database exists."""
        if not self.may("read", database_id):
            raise ApiError(404, f'no database "{database_id}" that you may see')
        if not self.may(action, database_id):
            raise ApiError(403, f'your Airflow user may not {action} "{database_id}"')

    def visible(self, databases: Iterable[Database]) -> list[Database]:
        """Those that the caller may see; one question for all of them."""
        if self.user is None:
            return list(databases)
        allowed = get_auth_manager().get_authorized_dag_ids(user=self.user, method="GET")
        return [database for database in databases if dag_id("backup", database.id) in allowed]


async def identify_caller(request: Request) -> Caller | None:
    """The caller of a request; None when it shows no credentials at all.

    :raises ApiError: 401 for credentials that are wrong, 403 for a page of another site that uses a user's cookie.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if token:
        if scheme.lower() != "bearer":
            raise ApiError(401, "expected Authorization: Bearer …")
        return await _by_token(token.strip())
    user = _vouched_for(request)
    if user is None and (cookie := request.cookies.get(COOKIE_NAME_JWT_TOKEN)):
        user = await _airflow_user(cookie)
    if user is None:
        return None
    if request.method in _METHODS_THAT_WRITE and not _same_origin(request):
        raise ApiError(403, "a login by cookie counts only for requests of Airflow's own pages; send a token instead")
    return Caller(user.get_name(), user)


async def _by_token(token: str) -> Caller:
    settings = await run_in_threadpool(Settings.from_env, os.environ)
    for warning in settings.warnings():
        _warn_once(warning)
    # No key, no such way in: an empty token never equals it.
    if settings.api_key is not None and hmac.compare_digest(
        token.encode(errors="surrogateescape"), settings.api_key.get_secret_value().encode(errors="surrogateescape")
    ):
        return Caller("DUCKLING_API_KEY")
    if token.count(".") != 2:  # no JWT: not worth an error in Airflow's log
        raise ApiError(401, "the token is wrong")
    user = await _airflow_user(token)
    if user is None:
        raise ApiError(401, "the token is wrong or has expired")
    return Caller(user.get_name(), user)


@lru_cache(maxsize=4)
def _warn_once(text: str) -> None:
    log.warning("%s", text)


async def _airflow_user(token: str) -> BaseUser | None:
    try:
        return await security.resolve_user_from_token(token)
    except HTTPException:
        return None


def _vouched_for(request: Request) -> BaseUser | None:
    """The user whom Airflow's own middleware found out, as `security.get_user` takes it."""
    marker = getattr(security, "USER_INJECTED_BY_TRUSTED_MIDDLEWARE", None)  # not in Airflow 3.1
    if marker is None or getattr(request.state, "user_authenticated_via", None) is not marker:
        return None
    return getattr(request.state, "user", None)


def _same_origin(request: Request) -> bool:
    """Whether a browser says that the request comes from a page of this very server.

    Sec-Fetch-Site is sent by browsers to trustworthy origins only (HTTPS, localhost), Origin with every POST.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == request.headers.get("host")
