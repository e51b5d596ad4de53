"""Messages through Airflow's connections: mail, webhooks, Slack, Apprise, each by its provider, where it is installed;
and the call to a monitor outside.

Airflow's own hooks are used, so that a connection means here what it means elsewhere.
"""

from __future__ import annotations

import html
import logging
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from duckling_provider import __version__
from duckling_provider.base.errors import ConfigError, DucklingError, UnavailableError

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from pydantic import SecretStr

    from duckling_provider.oversight.notices import Message

#: Seconds that a receiver gets to answer.
_PATIENCE = 20

log = logging.getLogger(__name__)


def send(name: str, message: Message) -> None:
    """Deliver a message through an Airflow connection.

    :param name: of the connection.
    :raises ConfigError: there is none, its kind is none of ours, its provider is not installed, or it lacks something.
    :raises UnavailableError: it could not be delivered.
    """
    try:
        connection = BaseHook.get_connection(name)
    except AirflowNotFoundException:
        raise _wrong(name, "does not exist", "Create it, or correct the name.") from None
    senders = {
        "smtp": _mail,
        "http": _webhook,
        "https": _webhook,
        "slackwebhook": _slack_webhook,
        "slack": _slack,
        "apprise": _apprise,
    }
    kind = connection.conn_type or ""
    deliver = senders.get(kind)
    if deliver is None:
        raise _wrong(name, f"is of the type {kind!r}", f"Use {', '.join(senders)}.")
    try:
        deliver(name, connection, message)
    except ImportError as error:
        raise _wrong(
            name,
            f"is of the type {kind!r}, whose provider is not installed",
            f"pip install apache-airflow-providers-{kind.removesuffix('webhook')}",
        ) from error
    except DucklingError:
        raise
    except Exception as error:
        # The class alone: texts of libraries may hold the address, with the secret in it.
        raise UnavailableError(
            f"the message was not delivered ({type(error).__name__})", subject=f"connection {name!r}"
        ) from error


def _mail(name: str, connection: Connection, message: Message) -> None:
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    to = connection.extra_dejson.get("to") or connection.extra_dejson.get("to_email")
    if not to:
        raise _wrong(name, "names no recipient", 'Add one to its extra: {"to": "operations@example.com"}.')
    body = f"<pre>{html.escape(message.text)}</pre>"
    with SmtpHook(smtp_conn_id=name) as hook:
        hook.send_email_smtp(to=to, subject=message.subject, html_content=body)


def _webhook(name: str, _: Connection, message: Message) -> None:
    from airflow.providers.http.hooks.http import HttpHook

    hook = HttpHook(method="POST", http_conn_id=name)
    hook.run(json=message.as_json(), extra_options={"timeout": _PATIENCE})


def _slack_webhook(name: str, _: Connection, message: Message) -> None:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    SlackWebhookHook(slack_webhook_conn_id=name, timeout=_PATIENCE).send(text=message.text)


def _slack(name: str, connection: Connection, message: Message) -> None:
    from airflow.providers.slack.hooks.slack import SlackHook

    channel = connection.extra_dejson.get("channel")
    if not channel:
        raise _wrong(name, "names no channel", 'Add one to its extra: {"channel": "#operations"}.')
    SlackHook(slack_conn_id=name, timeout=_PATIENCE).call(
        "chat.postMessage", json={"channel": channel, "text": message.text}
    )


def _apprise(name: str, connection: Connection, message: Message) -> None:
    from airflow.providers.apprise.hooks.apprise import AppriseHook
    from apprise import Apprise

    hook, services = AppriseHook(apprise_conn_id=name), Apprise()
    config = hook.get_config_from_conn(connection)
    for one in config if isinstance(config, list) else [config]:
        mask_secret(one["path"])  # Apprise logs an address that it does not understand
    hook.set_config_from_conn(connection, services)
    if not services:
        raise _wrong(name, "names no service that Apprise knows", "Correct the path in its config.")
    # Not the hook's own `notify`, which does not say whether the message was taken.
    if not services.notify(body=message.text, title=message.subject):
        raise UnavailableError("not every service of it took the message", subject=f"connection {name!r}")


def _wrong(name: str, cause: str, hint: str) -> ConfigError:
    return ConfigError(
        f"the Airflow connection {name!r} {cause}", entry="environment", field="DUCKLING_NOTIFY_CONN_IDS", hint=hint
    )


def heartbeat(url: SecretStr) -> str:
    """Tell a monitor outside that all is well; why that failed, empty where it did not. The path is a secret: whoever
    knows it could keep the monitor quiet.
    """
    request: Any = urllib.request.Request(url.get_secret_value(), headers={"User-Agent": f"duckling/{__version__}"})  # noqa: S310 - `Settings` lets http and https pass alone
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):  # noqa: S310 - as above
            return ""
    except urllib.error.HTTPError as error:
        return f"it answered with {error.code}"
    except (OSError, ValueError) as error:
        return f"it can't be reached ({type(error).__name__})"
