"""Backups to stores that can't do all: archives that are read after hours, few parts."""

from __future__ import annotations

import pytest

from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.backup.retention.clean_up import delete_backup
from duckling_provider.base.errors import StoreError
from duckling_provider.stores import parts
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    "fields",
    [{"encryption": "none"}, {"encryption": "client-aes256", "encryptionKey": "ab" * 32}],
    ids=lambda fields: fields["encryption"],
)
def test_a_backup_to_an_archive_is_verified_by_its_head(installation, small_replica, moto_server, fields):
    s3 = moto_server.s3(moto_server.new_bucket(), storageClass="DEEP_ARCHIVE", verify="head", **fields)
    installation.write(installation.entry(s3=s3))
    small_replica(installation.replica())
    database = installation.database()
    store = open_store(database)
    snapshot = take_snapshot(database)
    key = upload_snapshot(database, store, snapshot).key
    assert verify_backup(database, store, key, full=False).evidence == "head"
    assert upload_snapshot(database, store, snapshot).key == key
    with pytest.raises(StoreError, match="thaw"):
        verify_backup(database, store, key)


def test_an_upload_that_is_refused_for_its_parts_starts_again_with_larger_ones(
    installation, medium_replica, moto_server, make_proxy, monkeypatch
):
    monkeypatch.setattr(parts, "SAFE_PARTS", 3)
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (400, "InvalidArgument") if seen.part > 3 else None
    s3 = proxy.server.s3(moto_server.new_bucket(), partSizeMiB=5, encryption="client-aes256", encryptionKey="ab" * 32)
    installation.write(installation.entry(s3=s3))
    medium_replica(installation.replica())
    database = installation.database()
    store = open_store(database)
    done = upload_snapshot(database, store, take_snapshot(database))
    assert verify_backup(database, store, done.key).size == done.size
    assert max(seen.part for seen in proxy.seen if seen.status == 200) == 3


def test_a_deletion_says_that_a_version_stays_where_the_bucket_keeps_them(installation, moto_server):
    bucket = moto_server.new_bucket()
    client = moto_server.client()
    installation.write(installation.entry(s3=moto_server.s3(bucket)))
    store = open_store(installation.database())
    key = "production/backup-2025-03-01T14-32-11-482Z.db"
    client.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert delete_backup(store, key) is False
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert delete_backup(store, key) is True


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_a_backup_in_a_bucket_with_a_lock_outlives_its_deletion_and_that_is_said(
    installation, small_replica, moto_server, mode
):
    client, bucket = moto_server.client(), f"locked-{mode.lower()}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": mode, "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    s3 = moto_server.s3(bucket, encryption="client-aes256", encryptionKey="ab" * 32)
    installation.write(installation.entry(s3=s3))
    small_replica(installation.replica())
    database = installation.database()
    store = open_store(database)
    key = upload_snapshot(database, store, take_snapshot(database)).key
    assert verify_backup(database, store, key).evidence == "HMAC-SHA256"
    assert delete_backup(store, key) is True
    kept = {row["Key"] for row in client.list_object_versions(Bucket=bucket)["Versions"]}
    assert kept == {key, key + ".mac", key + ".state"}
