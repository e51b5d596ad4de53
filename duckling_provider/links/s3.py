"""A button on a finished task that leads to the object it wrote or read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

    from duckling_provider.core.config import Database, S3Settings

_URL_XCOM = "s3_object_url"


class S3ObjectLink(BaseOperatorLink):
    """To the object in the AWS console; for other providers, to its address at the endpoint."""

    name = "S3 object"

    @staticmethod
    def persist(context: Context, database: Database, key: str) -> None:
        """Remember the address while the task runs; a local backup has none."""
        if database.s3 is not None:
            context["ti"].xcom_push(key=_URL_XCOM, value=object_url(database.s3, key))

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The address, or an empty text when the task got to none."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(ti_key=ti_key, key=_URL_XCOM) or ""


def object_url(s3: S3Settings, key: str) -> str:
    """Where a browser finds `key`: in the console of AWS, or at the endpoint, path or virtual-host style."""
    if s3.endpoint is None:
        domain = "amazonaws.cn" if s3.region.startswith("cn-") else "aws.amazon.com"
        return (
            f"https://{s3.region}.console.{domain}/s3/object/{s3.bucket}"
            f"?region={s3.region}&prefix={quote(key, safe='')}"
        )
    if s3.force_path_style:
        return f"{s3.endpoint}/{s3.bucket}/{quote(key)}"
    parts = urlsplit(s3.endpoint)
    return parts._replace(netloc=f"{s3.bucket}.{parts.netloc}", path=f"{parts.path}/{quote(key)}").geturl()
