"""From a database id to the objects that the core works on, with secrets masked before anybody can log them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import BaseHook

from duckling_provider.base.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database, Installation
    from duckling_provider.config.environment import Settings
    from duckling_provider.stores.s3_client import Credentials
    from duckling_provider.stores.store import BackupSource, Store


class DucklingHook(BaseHook):
    """One entry of databases.json, read when it is first needed: an edited file takes effect with the next task.

    :param database_id: the entry's ``id``.
    """

    def __init__(self, database_id: str) -> None:
        super().__init__()
        self.database_id = database_id

    @cached_property
    def _installation(self) -> Installation:
        from duckling_provider import config

        return config.load()

    @cached_property
    def database(self) -> Database:
        """:raises NotFoundError: when there is no such entry.
        :raises ConfigError: when the entry, or databases.json as a whole, is wrong.
        """
        from airflow.sdk.log import mask_secret

        database = self._installation.database(self.database_id)
        for secret in database.secrets():
            mask_secret(secret)
        return database

    @property
    def settings(self) -> Settings:
        """What the environment says.

        :raises ConfigError: when it, or databases.json as a whole, is wrong.
        """
        return self._installation.settings

    def target(self, path: str) -> Path:
        """Where a run's ``target_path`` leads.

        :raises RequestError: a run may not write there, see `config.targets`.
        """
        from duckling_provider.config.targets import run_target

        return run_target(path, self._installation)

    def read_as(self, key: str, encryption: str | None) -> Database:
        """The entry as a run's conf wants it to be read.

        :param encryption: in place of the entry's; empty means the entry's.
        :raises RequestError: see `key_choice.read_as`; or it is weaker than ``DUCKLING_MIN_ENCRYPTION``, since
            those who may trigger a run may be others than those who configure.
        """
        from duckling_provider.backup.inventory.key_choice import read_as

        least = self._installation.settings.min_encryption
        return read_as(self.database, key, encryption=(encryption or "").strip() or None, least=least)

    def store(self, database: Database | None = None) -> Store:
        """The S3 store of the entry.

        :param database: the entry as `read_as` made it.

        :raises ConfigError: when S3 is not configured, or ``s3.awsConnId`` names no usable connection.
        """
        from duckling_provider.stores.s3 import open_store

        return open_store(database or self.database, credentials=self.credentials())

    def store_or_none(self) -> Store | None:
        """The S3 store of the entry; None when S3 is not configured."""
        return self.store() if self.database.s3 is not None else None

    def backups(self, database: Database | None = None) -> BackupSource:
        """Where restores come from: S3 where it is configured, else the local backups.

        :param database: the entry as `read_as` made it.
        """
        from duckling_provider.backup.inventory.local_backups import backups_of

        return backups_of(self.database, self.store(database) if self.database.s3 is not None else None)

    def credentials(self) -> Credentials | None:
        """Those of the Airflow connection ``s3.awsConnId``, or the machine's own; None when the entry has its own.

        :raises ConfigError: when the connection is missing, or there are no credentials.
        :raises UnavailableError: when the service that gives a role's credentials fails.
        """
        from airflow.sdk.log import mask_secret

        s3 = self.database.s3
        if s3 is None or (s3.aws_conn_id is None and s3.credential_source is None):
            return None
        from duckling_provider.base.ownership import as_caller
        from duckling_provider.stores.s3_client import default_credentials

        with as_caller():
            if s3.aws_conn_id is None:
                found = default_credentials(self.database_id)
            else:
                found = self._of_connection(s3.aws_conn_id)
        for secret in found.secrets:
            mask_secret(secret)
        return found

    def _of_connection(self, name: str) -> Credentials:
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
        from botocore.exceptions import BotoCoreError, ClientError

        from duckling_provider.stores.s3_client import Credentials

        region = self.database.s3.region if self.database.s3 is not None else None
        try:
            # The amazon hook only warns of a missing connection and takes whatever the machine's environment offers.
            self.get_connection(name)
        except AirflowNotFoundException:
            raise self._connection_error(
                "does not exist", "Create it (Amazon Web Services), or correct the name."
            ) from None
        hook = AwsBaseHook(aws_conn_id=name, client_type="s3", region_name=None if region == "auto" else region)
        try:
            session = hook.get_session(region_name=hook.region_name)
            found = session.get_credentials()
            keys = found.get_frozen_credentials() if found is not None else None
        except (BotoCoreError, ClientError, RuntimeError) as error:
            # RuntimeError: of credentials that had ended when they were handed out.
            raise UnavailableError(
                f"the Airflow connection {name!r} gave no credentials: {error}",
                subject=self.database_id,
                retryable=True,
            ) from error
        if keys is None or not keys.access_key or not keys.secret_key:
            raise self._connection_error(
                "holds no credentials", "Fill in the access key and the secret key, or a role."
            )
        return Credentials(keys.access_key, keys.secret_key, keys.token, session)

    def _connection_error(self, cause: str, hint: str) -> ConfigError:
        s3 = self.database.s3
        name = s3.aws_conn_id if s3 is not None else None
        return ConfigError(
            f"the Airflow connection {name!r} {cause}", entry=self.database_id, field="s3.awsConnId", hint=hint
        )
