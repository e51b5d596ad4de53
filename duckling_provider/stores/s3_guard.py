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
#: Statuses of which a store tells the reason in XML, as a proxy does not.
_REFUSALS = {401, 403, 404}


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
        elif status in _REFUSALS and _is_of_a_proxy(status, response_dict["body"]):
            raise StrangeAnswerError(
                f"{status}: the answer is no S3 store's, but of a proxy or a firewall before it",
                "Its log says why. Have it let these requests through; an HTTP proxy of this machine is passed by with "
                "NO_PROXY.",
            )
        elif 200 <= status < 300 and _lacks_etag(operation_model.name, headers, response_dict["body"]):
            raise StrangeAnswerError(
                "the answer has no ETag, which S3 stores name each object and each part by",
                "A proxy before the store may take that header away: have it let ETag through. Or this is no S3 store.",
            )
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


def _is_page(body: Any) -> bool:
    return isinstance(body, bytes) and body[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _is_of_a_proxy(status: int, body: Any) -> bool:
    """Whether the body of a refusal is none of a store's. Without one, as after a HEAD, nothing tells."""
    if not isinstance(body, bytes) or not body.strip():
        return False
    # What is missing, simple stores say in a line of text.
    return _is_page(body) if status == 404 else re.search(rb"<([\w.-]+:)?(Error|Code)\b", body[:2000]) is None


def _lacks_etag(operation: str, headers: Any, body: Any) -> bool:
    """Whether an answer that may be a store's does not name the version of the object."""
    page = "text/html" in str(headers.get("content-type", "")).lower()
    return operation in _WITH_ETAG and not (headers.get("etag") or page or (isinstance(body, bytes) and body.strip()))


def _is_s3(operation: str, headers: Any, body: Any) -> bool:
    page = "text/html" in str(headers.get("content-type", "")).lower()
    if _is_page(body):
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
    if url.scheme not in {"", "http", "https"}:
        return StrangeAnswerError(
            f"the endpoint {endpoint} redirects to {address}, where no S3 store can be",
            "Check s3.endpoint: another service answers there.",
        )
    if own.scheme == "https" and url.scheme == "http":
        return StrangeAnswerError(
            f"the endpoint {endpoint} redirects to {address}, without TLS",
            "A proxy that ends TLS may not know of it: correct its redirects. Backups would travel in plain text.",
        )
    return StrangeAnswerError(
        f"the endpoint {endpoint} redirects to {address}",
        f"If that is the store, set s3.endpoint to {address} (without the bucket's name). A login page is none.",
    )
