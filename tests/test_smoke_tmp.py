import os, pytest
from pathlib import Path
from duckling_provider.core.backup import back_up
from duckling_provider.core.restore import restore_backup
from duckling_provider.core.s3 import open_store
from duckling_provider.core.check import check_database

@pytest.mark.parametrize("mode",["none","client-aes256","sse-s3","sse-kms"])
@pytest.mark.parametrize("rows",[2000,400000])
def test_round_trip(installation, s3_server, moto_server, make_replica, query_replica, mode, rows):
    srv = moto_server if mode.startswith("sse") else s3_server
    bucket=srv.new_bucket()
    extra={"encryptionKey":"ab"*32} if mode=="client-aes256" else {}
    installation.write(installation.entry(s3=srv.s3(bucket,encryption=mode,partSizeMiB=5,**extra)))
    make_replica(installation.replica(), rows=rows, wal=True)
    db=installation.database()
    store=open_store(db)
    for s in check_database(db,store): print(s)
    res=back_up(db,store)
    print(res)
    before=installation.replica().read_bytes()
    print(os.listdir(installation.data_path), len(before))
    installation.replica().write_bytes(b"garbage")
    Path(str(installation.replica())+".wal").write_bytes(b"stale")
    r=restore_backup(db,store)
    print(r)
    assert installation.replica().read_bytes()==before
    print(os.listdir(installation.data_path), os.listdir(db.backup_dir))
    print([o["Key"] for o in srv.client().list_objects_v2(Bucket=bucket)["Contents"]])
