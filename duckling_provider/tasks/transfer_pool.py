"""The Airflow pool that bounds how many transfers run at once, of all databases together.

A task whose pool does not exist is never started and never fails: it waits, without a word but one in the scheduler's
log. So the pool is made when a scheduler starts (`plugins.pool_listener`), and `duckling check` looks for it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path

from duckling_provider.base.errors import DucklingError, UnavailableError
from duckling_provider.config.databases import Settings

_DESCRIPTION = "Uploads, verifications and restores of Duckling at once; change the slots as you like"

log = logging.getLogger(__name__)


def create_missing(settings: Settings) -> bool:
    """Make the pool when there is none of that name; one that is there stays as it is.

    For processes of Airflow that may use its database.

    :returns: whether it was made.
    """
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import IntegrityError

    if settings.pool is None:
        return False
    with contextlib.suppress(IntegrityError):  # another process was faster
        with create_session() as session:
            if _slots(session, settings.pool) is not None:
                return False
            # Those that are verified in the triggerer count as well: each reads a whole backup there.
            session.add(
                Pool(pool=settings.pool, slots=settings.pool_slots, description=_DESCRIPTION, include_deferred=True)
            )
        log.info("made the pool %s with %d slots", settings.pool, settings.pool_slots)
        return True
    return False


def is_airflow_here() -> bool:
    """Whether an Airflow is set up for this user and environment; imports nothing of it, which would set one up."""
    names = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD")
    home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
    return any(os.environ.get(name) for name in names) or (home / "airflow.cfg").is_file()


def find_slots(name: str) -> int | None:
    """The slots of the pool `name`, -1 for endless; None when Airflow has no such pool.

    :raises DucklingError: Airflow's database can't be asked; why.
    """
    silence = io.StringIO()
    logging.disable(logging.ERROR)
    try:
        # Airflow tells what it does while it is imported, on stdout too, where a JSON document may be due.
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            from airflow import settings
            from airflow.utils.session import create_session

            url = settings.engine.url if settings.engine is not None else None
            # To ask SQLite is to make the file.
            if url is not None and url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
                raise UnavailableError("its database does not exist yet", subject="Airflow")
            with create_session() as session:
                return _slots(session, name)
    except DucklingError:
        raise
    except Exception as error:
        # Its message may hold the URL with a password.
        raise UnavailableError(f"its database can't be asked ({type(error).__name__})", subject="Airflow") from None
    finally:
        logging.disable(logging.NOTSET)


def _slots(session: object, name: str) -> int | None:
    from airflow.models.pool import Pool
    from sqlalchemy import select

    found: int | None = session.scalars(select(Pool.slots).where(Pool.pool == name)).one_or_none()  # type: ignore[attr-defined]
    return found
