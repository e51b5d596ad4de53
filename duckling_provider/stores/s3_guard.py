"""A look at each answer before botocore takes it: redirects, which it would follow without end, and pages of something
that is no S3 store, which it would take for empty listings.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore import handlers

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class StrangeAnswerError(Exception):
    """An answer that no S3 store gives; to be turned into one of ours by `Translator`."""

    def __init__(self, cause: str, hint: str, *, retryable: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.hint, self.retryable = cause, hint, retryable


#: How the XML element begins that each answer is; other answers have none. Some stores shorten the names.
_ROOTS = {
    "ListObjectsV2": b"<ListBucketResult",
    "CreateMultipartUpload": b"<InitiateMultipartUpload",
    "CompleteMultipartUpload": b"<CompleteMultipartUpload",
    "ListParts": b"<ListParts",
    "ListMultipartUploads": b"<ListMultipartUploads",
}
#: Operations whose answers have the object's own content type, and those that must name the version of the object.
_WITH_TYPE = {"HeadObject", "GetObject"}
_WITH_ETAG = {*_WITH_TYPE, "PutObject", "UploadPart"}


def refuse_strange_answers(client: S3Client, *, endpoint: str | None) -> None:
    """Look at each answer before botocore does: it would follow redirects without end, and take any page for an empty
    listing.
    """

    def look(operation_model: Any, response_dict: dict[str, Any], **_: object) -> None:
        status, headers = int(response_dict["status_code"]), response_dict["headers"]
        if 300 <= status < 400 and status != 304:
            # On AWS, and where the answer names the bucket's region, botocore asks there, once.
            if not headers.get("x-amz-bucket-region") and not _is_aws(endpoint):
                raise _redirect(endpoint, headers.get("location") or _told_endpoint(response_dict["body"]))
        elif 200 <= status < 300 and not _is_s3(operation_model.name, headers, response_dict["body"]):
            raise StrangeAnswerError(
                f"what answers at {endpoint or 'this address'} is no S3 store",
                "Check s3.endpoint: a console, a login page or another service may answer there, on the same host.",
            )

    events = client.meta.events
    # It makes a 500 of each 200 with a page, so it must come after us. Where a later botocore calls it otherwise, pages
    # are reported as a failure of the store.
    theirs = getattr(handlers, "_handle_200_error", None)
    if theirs is not None:
        events.unregister("before-parse.s3.*", theirs)
    events.register("before-parse.s3.*", look)
    if theirs is not None:
        events.register_last("before-parse.s3.*", theirs)


def _is_aws(endpoint: str | None) -> bool:
    return endpoint is None or (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _is_s3(operation: str, headers: Any, body: Any) -> bool:
    page = "text/html" in str(headers.get("content-type", "")).lower()
    if isinstance(body, bytes) and body[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return False
    # Some stores call an answer without a body a page. No backup is one.
    if page and (operation in _WITH_TYPE or (operation == "HeadBucket" and headers.get("content-length", "0") != "0")):
        return False
    if isinstance(body, bytes) and b"<Error" in body[:2000]:
        return True  # an error may come with a 200: botocore sees to that
    root = _ROOTS.get(operation)
    if root is not None:
        return root in body[:2000]
    return operation not in _WITH_ETAG or bool(headers.get("etag"))


def _told_endpoint(body: Any) -> str:
    found = re.search(rb"<Endpoint>([^<]*)</Endpoint>", body) if isinstance(body, bytes) else None
    return found[1].decode(errors="replace") if found else ""


def _redirect(endpoint: str | None, location: str) -> StrangeAnswerError:
    """:param location: an address, absolute or not, or a bare host; empty when the answer has none."""
    url, own = urlsplit(location if "//" in location else f"//{location}"), urlsplit(endpoint or "")
    # Not the path, nor what follows it: it is the request's own, and may hold a signature.
    address = f"{url.scheme or own.scheme}://{url.netloc.rpartition('@')[2]}"
    if not location:
        return StrangeAnswerError(
            f"the endpoint {endpoint} redirects, but does not say where to",
            "Check s3.endpoint, its path, and s3.region: a bucket of another region is answered so, too.",
        )
    if location.startswith("/") or not url.netloc or address == endpoint:
        return StrangeAnswerError(
            f"the endpoint {endpoint} redirects elsewhere on the same host",
            "Check s3.endpoint: this address belongs to a login or a console, or the path is wrong.",
        )
    return StrangeAnswerError(
        f"the endpoint {endpoint} redirects to {address}",
        f"If that is the store, set s3.endpoint to {address} (without the bucket's name). A login page is none.",
    )
