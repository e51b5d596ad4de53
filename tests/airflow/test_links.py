from __future__ import annotations

import pytest

KEY = "a b/ä?/backup.db"


@pytest.mark.parametrize(
    "fields,url",
    [
        (
            {"region": "eu-west-1"},
            "https://eu-west-1.console.aws.amazon.com/s3/object/shop?region=eu-west-1&prefix=a%20b%2F%C3%A4%3F%2Fbackup.db",
        ),
        (
            {"region": "cn-north-1"},
            "https://cn-north-1.console.amazonaws.cn/s3/object/shop?region=cn-north-1&prefix=a%20b%2F%C3%A4%3F%2Fbackup.db",
        ),
        (
            {"endpoint": "http://minio:9000", "forcePathStyle": True},
            "http://minio:9000/shop/a%20b/%C3%A4%3F/backup.db",
        ),
        (
            {"endpoint": "https://fra1.digitaloceanspaces.com"},
            "https://shop.fra1.digitaloceanspaces.com/a%20b/%C3%A4%3F/backup.db",
        ),
    ],
)
def test_the_link_leads_to_the_object(installation, fields, url):
    from duckling_provider.links.s3 import object_url

    s3 = {"enabled": True, "bucket": "shop", "region": "eu-west-1", "accessKeyId": "a", "secretAccessKey": "secret"}
    installation.write(installation.entry("a", s3=s3 | fields))
    assert object_url(installation.database("a"), KEY) == url
