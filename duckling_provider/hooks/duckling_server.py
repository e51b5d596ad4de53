"""The Airflow connection type ``duckling``: the original Node.js server, where that one writes the replica."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import BaseHook

from duckling_provider.base.errors import ConfigError, DucklingError
from duckling_provider.get_provider_info import CONNECTION_FORM

if TYPE_CHECKING:
    from duckling_provider.node_server.client import NodeServerClient


class DucklingServerHook(BaseHook):
    """Host, port, schema (http or https) and API key of the server, from an Airflow connection.

    :param duckling_conn_id: the connection's id.
    :param database_id: the entry that names the connection, for messages; empty when there is none.
    """

    conn_name_attr = "duckling_conn_id"
    default_conn_name = "duckling_default"
    conn_type = "duckling"
    hook_name = "Duckling server"

    def __init__(self, duckling_conn_id: str = default_conn_name, *, database_id: str = "") -> None:
        super().__init__()
        self.duckling_conn_id = duckling_conn_id
        self.database_id = database_id

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """For Airflow 3.1; later ones take it from the provider info, and warn of hooks that have form widgets."""
        return {name.replace("-", "_"): value for name, value in CONNECTION_FORM.items()}

    def server(self) -> NodeServerClient:
        """The server that the connection names.

        :raises ConfigError: when the connection is missing or wrong.
        """
        from airflow.sdk.log import mask_secret

        from duckling_provider.node_server.client import NodeServerClient

        try:
            connection = self.get_connection(self.duckling_conn_id)
        except AirflowNotFoundException:
            raise ConfigError(
                f"the Airflow connection {self.duckling_conn_id!r} does not exist",
                entry=self.database_id or self.duckling_conn_id,
                field="writerConnId" if self.database_id else None,
                hint="Create it (Duckling server), or correct the name.",
            ) from None
        key = connection.password or ""
        if key:
            mask_secret(key)
        return NodeServerClient.parse(
            connection.host or "",
            port=connection.port,
            scheme=connection.schema or "",
            api_key=key,
            subject=f"Airflow connection {self.duckling_conn_id!r}",
        )

    def test_connection(self) -> tuple[bool, str]:
        """What the button "Test" of the connection's form shows."""
        try:
            server = self.server()
            server.check()
        except DucklingError as error:
            return False, str(error)
        return True, f"{server} is there and takes the API key"
