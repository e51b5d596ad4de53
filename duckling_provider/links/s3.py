"""A button on a finished task that leads to the object it wrote or read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from duckling_provider.config.databases import Database


class S3ObjectLink(BaseOperatorLink):
    """To the object in the AWS console; for other providers, to its address at the endpoint."""

    name = "S3 object"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """What the task left in its ``object_url``; empty when it got to none.

        Airflow asks the operator that just ran, in its own process, and stores the answer.
        """
        return getattr(operator, "object_url", "")


def object_url(database: Database, key: str) -> str:
    """Where a browser finds `key`: in the console of AWS, or at the endpoint, path or virtual-host style.

    Empty for a database without S3.
    """
    s3 = database.s3
    if s3 is None:
        return ""
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
