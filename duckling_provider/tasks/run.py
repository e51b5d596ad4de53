"""What every task of ours does around its call into the core: progress, cancellation, errors, results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import DucklingError, ErrorRecord
from duckling_provider.base.host_load import cpu_seconds, lowered_priority
from duckling_provider.base.ownership import as_owner_of
from duckling_provider.config.environment import bandwidth_of
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.oversight.record import Change, Work, note
from duckling_provider.tasks.progress_log import ProgressLog
from duckling_provider.tasks.results import Used

if TYPE_CHECKING:
    from airflow.sdk import Context


Result = TypeVar("Result", bound=Mapping[str, Any])

#: The XCom in which a failed task leaves its error; Airflow clears it when the task is tried again.
ERROR_KEY = "error"


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Let Airflow retry what a retry can cure, and nothing else.

    :raises AirflowException: for a `DucklingError` that is retryable; the message stays as it is.
    :raises AirflowFailException: for one that is not.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A mistake in the program: no retry cures it, and a restore that waits for one keeps the replica held.
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
    except DucklingError as error:
        # `from None`: the message says it all, and pages of the core's frames would bury it.
        raise (AirflowException if error.retryable else AirflowFailException)(str(error)) from None


def run_owner(context: Context) -> str:
    """The name under which a DAG run holds a replica; the same in all its tasks and tries."""
    run = context["dag_run"]
    return f"{run.dag_id} {run.run_id}"


def run_by(context: Context) -> str:
    """Whose deed a run is, for the audit: the user who triggered it, or its schedule; and the run."""
    run = context["dag_run"]
    return f"{getattr(run, 'triggering_user_name', None) or 'its schedule'}, {run.dag_id} {run.run_id}"


def _ends_with_the_task() -> bool:
    """Whether this process was made for one task. One in which Airflow runs tasks itself, as `dag.test()` does, is not,
    and neither is what we don't know.
    """
    try:
        from airflow.sdk.execution_time import task_runner
    except ImportError:
        return False
    return type(getattr(task_runner, "SUPERVISOR_COMMS", None)).__name__ == "CommsDecoder"


class CoreTask:
    """Mixin of our operators and sensor: one call into the core at a time, stopped by `on_kill`."""

    log: Any
    database_id: str
    outlets: list[Any]
    #: What fails with it; None where that is no trouble of its own.
    work: ClassVar[Work | None] = None
    #: Set by tasks that end with an object; `links.s3.S3ObjectLink` shows it.
    object_url: str = ""
    _control: Control | None = None
    _cpu_before: float = 0.0

    @contextmanager
    def core_call(self) -> Iterator[Control]:
        """The `Control` to hand to the core; errors leave the block as Airflow's own.

        A task on another machine than the entry's `host` fails here, whatever it was about to do: it came by a wrong
        queue, and the paths of a restore to elsewhere, say, mean that host too.
        """
        self._control = control = Control(ProgressLog(self.log))
        self._cpu_before = cpu_seconds()
        with airflow_errors():
            try:
                hook = DucklingHook(self.database_id)
                database = hook.database
                database.require_host()
                control.bandwidth = bandwidth_of(hook.settings)
                # What the core lets through, so that the run's page can tell it too.
                with (
                    lowered_priority(hook.settings.nice, for_good=_ends_with_the_task()),
                    as_owner_of(*database.places),
                    disk_errors(database.backup_path, subject=database.id),
                ):
                    yield control
            except DucklingError as error:
                # Lines of their own, because the log view cuts off a long exception.
                self.log.error("%s", error.what)
                if error.hint:
                    self.log.error("What to do: %s", error.hint)
                self.record(error.as_record())
                raise

    def record(self, error: ErrorRecord, *, final: bool = True) -> None:
        """Leave the error as an XCom: the page and the REST API show why a run failed without reading its log. Once
        Airflow won't try again, this host records it too.

        :param final: the task ends with it.
        """
        with contextlib.suppress(Exception):  # the error itself matters more than its record
            from airflow.sdk import get_current_context

            task = get_current_context()["ti"]
            task.xcom_push(ERROR_KEY, dict(error))
            again = error["retryable"] and task.try_number <= task.max_tries
            if (
                final
                and not again
                and self.work is not None
                and error["kind"] not in ("CancelledError", "WrongHostError")
            ):
                work, now = self.work, datetime.now(timezone.utc)
                self.note(lambda record: record.failed(work, error, at=now))

    def note(self, *changes: Change) -> None:
        """Change what this host records of the database; the watch reads it."""
        database = DucklingHook(self.database_id).database
        with as_owner_of(*database.places):
            note(database, *changes)

    def on_kill(self) -> None:
        """Called by a signal handler; the core stops at its next safe point and cleans up."""
        if self._control is not None:
            self._control.cancel()

    def publish(self, context: Context, result: Result) -> Result:
        """Attach `result`, and what the task used, to its asset events and return it as the XCom."""
        from airflow.sdk import Asset

        if self._control is not None:
            used: Used = {
                "cpu_seconds": round(cpu_seconds() - self._cpu_before, 2),
                "bytes_sent": self._control.sent,
                "bytes_received": self._control.received,
            }
            result = cast("Result", {**used, **result})
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(result)
        return result
