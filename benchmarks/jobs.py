"""The Python side of the measurements, each in a process of its own: ``python -m benchmarks.jobs NAME ARGUMENTS``.

A job is a function that prepares (imports, configuration, client) and returns the work to be measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import BUCKET, CONCURRENCY, DATABASE, MIB, PART, REGION, formats
from benchmarks.measure import fsync, measured
from benchmarks.servers import ACCESS_KEY, SECRET_KEY

Work = Callable[[], object]
_BLOCK = MIB // 4
#: Seconds that a thread waits for those before it.
_PATIENCE = 60


# -- Duckling -------------------------------------------------------------------------------------------------------


def _database() -> tuple[Any, Any]:
    from duckling_provider import config
    from duckling_provider.stores import s3

    import_everything()
    database = config.load().database(DATABASE)
    return database, s3.open_store(database)


def upload(filename: str) -> Work:
    """A finished snapshot to the store, as the entry is configured."""
    from duckling_provider.backup.inventory.sidecar import find_snapshot
    from duckling_provider.backup.making.upload import upload_snapshot

    database, store = _database()
    snapshot = find_snapshot(database, filename)
    return lambda: upload_snapshot(database, store, snapshot)


def download(key: str, target: str) -> Work:
    """The heart of a restore: download, verify, decrypt, check DuckDB's blocks, write, fsync."""
    from duckling_provider.backup.inventory.backup_object import identify_backup
    from duckling_provider.backup.reading.verified_read import read_verified
    from duckling_provider.formats.pipeline import DurableWriter

    database, store = _database()

    def work() -> None:
        with open(target, "wb", buffering=0) as file, DurableWriter(file.fileno()) as writer:
            read_verified(identify_backup(database, store, key, chosen=True), store, sink=writer.write)

    return work


def receive(key: str, target: str) -> Work:
    """What a restore receives, by its own receiver, written past the page cache, fsync; nothing is proven."""
    from duckling_provider.formats.pipeline import DurableWriter
    from duckling_provider.stores.fetch import fetch

    _, store = _database()

    def work() -> None:
        stored = store.head(key)
        with open(target, "wb", buffering=0) as file, DurableWriter(file.fileno()) as writer:
            for chunk in fetch(store, key, spans=[(0, stored.size)], etag=stored.etag):
                writer.write(chunk)

    return work


def verify(key: str) -> Work:
    """`download` without a file: the object is read back and proven."""
    from duckling_provider.backup.reading.verify import verify_backup

    database, store = _database()
    return lambda: verify_backup(database, store, key, note=False)


def restore(key: str, target: str) -> Work:
    """A whole restore, DuckDB opening the file in a process of its own included."""
    from duckling_provider.backup.reading.restore import restore_backup

    database, store = _database()
    return lambda: restore_backup(database, store, key, to=Path(target))


def snapshot() -> Work:
    """A whole snapshot: locks, copy, SHA-256, part checksums, block checksums, HMAC of the ciphertext, fsync."""
    from duckling_provider.backup.making.snapshot import take_snapshot

    database, _ = _database()
    return lambda: take_snapshot(database)


def command(*arguments: str) -> Work:
    """``duckling …`` in this process: what its user sees grow."""
    from duckling_provider.cli.app import main

    _database()

    def work() -> None:
        sys.argv = ["duckling", *arguments]
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                main()
            except SystemExit as error:
                if error.code:
                    raise

    return work


def import_everything() -> None:
    """What the commands import late, so that only the work itself counts as growth."""
    import numpy as np  # noqa: F401

    from duckling_provider.backup.making import upload  # noqa: F401
    from duckling_provider.backup.reading import restore, verify  # noqa: F401
    from duckling_provider.backup.retention import clean_up  # noqa: F401
    from duckling_provider.oversight import record  # noqa: F401
    from duckling_provider.stores import s3  # noqa: F401


# -- boto3 ----------------------------------------------------------------------------------------------------------


def _boto3(endpoint: str, **s3: Any) -> tuple[Any, Any]:
    """A client with the settings of `stores.s3_client`, and a transfer of the same part size and concurrency."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    settings: Any = {"addressing_style": "path", **s3}
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            signature_version="s3v4",
            s3=settings,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 5},
            max_pool_connections=CONCURRENCY + 4,
            tcp_keepalive=True,
        ),
    )
    transfer = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=CONCURRENCY)
    return client, transfer


def boto3_upload(endpoint: str, path: str, key: str, *, signed: bool = True) -> Work:
    client, transfer = _boto3(endpoint, **({} if signed else {"payload_signing_enabled": False}))
    return lambda: client.upload_file(path, BUCKET, key, Config=transfer)


def boto3_download(endpoint: str, key: str, target: str) -> Work:
    client, transfer = _boto3(endpoint)

    def work() -> None:
        client.download_file(BUCKET, key, target, Config=transfer)
        fsync(Path(target))

    return work


@contextlib.contextmanager
def _crt(endpoint: str) -> Iterator[Any]:
    """AWS's client in C, from the package awscrt. Put together by hand: boto3 lets it talk to AWS only."""
    import botocore.session
    from botocore.config import Config
    from botocore.credentials import Credentials
    from s3transfer import crt

    session = botocore.session.Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY)
    options = {"region_name": REGION, "endpoint_url": endpoint, "config": Config(s3={"addressing_style": "path"})}
    provider = crt.BotocoreCRTCredentialsWrapper(Credentials(ACCESS_KEY, SECRET_KEY)).to_crt_credentials_provider()
    client = crt.create_s3_crt_client(
        REGION,
        crt_credentials_provider=provider,
        use_ssl=endpoint.startswith("https"),
        verify=os.environ.get("AWS_CA_BUNDLE"),
        part_size=PART,
        num_threads=2,
    )
    with crt.CRTTransferManager(client, crt.BotocoreCRTRequestSerializer(session, options)) as transfers:
        yield transfers


def crt_upload(endpoint: str, path: str, key: str) -> Work:
    def work() -> None:
        with _crt(endpoint) as transfers:
            transfers.upload(path, BUCKET, key).result()

    return work


def crt_download(endpoint: str, key: str, target: str) -> Work:
    def work() -> None:
        with _crt(endpoint) as transfers:
            transfers.download(BUCKET, key, target).result()
        fsync(Path(target))

    return work


def _obstore(endpoint: str) -> Any:
    """A client in Rust."""
    from obstore.store import S3Store

    bundle = os.environ.get("AWS_CA_BUNDLE")
    options: Any = {"allow_http": True}
    if bundle:
        options["root_certificate"] = Path(bundle).read_bytes()
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        virtual_hosted_style_request=False,
        client_options=options,
    )


def obstore_upload(endpoint: str, path: str, key: str) -> Work:
    import obstore

    store = _obstore(endpoint)
    return lambda: obstore.put(store, key, Path(path), use_multipart=True, chunk_size=PART, max_concurrency=CONCURRENCY)


def obstore_download(endpoint: str, key: str, target: str) -> Work:
    """Ranges by threads; obstore has no download into a file."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore

    store = _obstore(endpoint)

    def work() -> None:
        size = obstore.head(store, key)["size"]
        with open(target, "wb", buffering=0) as file, ThreadPoolExecutor(CONCURRENCY) as pool:

            def fetch(start: int) -> None:
                data = memoryview(obstore.get_range(store, key, start=start, end=min(size, start + PART)))
                while data:
                    written = os.pwrite(file.fileno(), data, start)
                    data, start = data[written:], start + written

            list(pool.map(fetch, range(0, size, PART)))
            os.fsync(file.fileno())

    return work


def upload_by_processes(filename: str, endpoint: str, key: str, count: int) -> Work:
    """The parts of a finished snapshot, encrypted and sent by `count` processes of ``CONCURRENCY / count`` threads."""
    import multiprocessing

    client, _ = _boto3(endpoint)
    context = multiprocessing.get_context("fork")

    def work() -> None:
        upload_id = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        with context.Pool(count) as pool:
            share = [(filename, endpoint, key, upload_id, number, count) for number in range(count)]
            parts = sorted(itertools.chain(*pool.starmap(_send_share, share)), key=lambda part: part["PartNumber"])
        client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts})

    return work


def _send_share(
    filename: str, endpoint: str, key: str, upload_id: str, number: int, count: int
) -> list[dict[str, Any]]:
    from concurrent.futures import ThreadPoolExecutor

    from duckling_provider.backup.inventory.sidecar import find_snapshot
    from duckling_provider.formats.crypto import CtrCipher
    from duckling_provider.formats.upload_body import SnapshotBody
    from duckling_provider.stores.s3_client import send_whole_blocks, sign_known_payloads

    database, _ = _database()
    snapshot = find_snapshot(database, filename)
    client, _ = _boto3(endpoint)
    sign_known_payloads(client)
    send_whole_blocks(client)
    with (
        SnapshotBody(
            snapshot.path,
            snapshot.plan,
            checksums=snapshot.part_checksums,
            checksum_key=bytes.fromhex(snapshot.checksum_key),
            cipher=CtrCipher(database.s3.encryption_key, bytes.fromhex(snapshot.iv or "")),
            lead=bytes.fromhex(snapshot.iv or ""),
        ) as body,
        ThreadPoolExecutor(CONCURRENCY // count) as pool,
    ):

        def send(part: int) -> dict[str, Any]:
            with body.open(part) as reader:
                answer = client.upload_part(
                    Bucket=BUCKET,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=part + 1,
                    ContentLength=len(reader),
                    Body=reader,
                )
            return {"PartNumber": part + 1, "ETag": answer["ETag"]}

        return list(pool.map(send, range(number, body.count, count)))


# -- ceilings -------------------------------------------------------------------------------------------------------


def copy(path: str, target: str) -> Work:
    def work() -> None:
        subprocess.run(["cp", path, target], check=True)
        fsync(Path(target))

    return work


def write(size: int, target: str) -> Work:
    block = os.urandom(4 * MIB)

    def work() -> None:
        with open(target, "wb", buffering=0) as file:
            file.writelines(itertools.repeat(block, size // len(block)))
            os.fsync(file.fileno())

    return work


def floor(path: str, target: str) -> Work:
    """What a snapshot can't do without: the copy on the disk, SHA-256, AES and HMAC, each free of the others."""
    from concurrent.futures import ThreadPoolExecutor

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from duckling_provider.base.host_load import page_memory
    from duckling_provider.formats.pipeline import DurableWriter

    sha256, code = hashlib.sha256(), hmac.new(bytes(32), digestmod=hashlib.sha256)
    cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()

    def encrypt(chunk: memoryview) -> None:
        cipher.update_into(chunk, chunk)
        code.update(chunk)

    def read(step: Callable[[memoryview], object]) -> None:
        block = page_memory(MIB)
        with open(path, "rb", buffering=0) as source:
            while read := source.readinto(block):
                step(block[:read])

    def work() -> None:
        with (
            open(target, "wb", buffering=0) as file,
            DurableWriter(file.fileno()) as writer,
            ThreadPoolExecutor() as pool,
        ):
            list(pool.map(read, (sha256.update, encrypt, writer.write)))

    return work


def aes(size: int) -> Work:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    context = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
    return _over(size, lambda block: context.update_into(block, block))


def mac(size: int) -> Work:
    return _over(size, hmac.new(bytes(32), digestmod=hashlib.sha256).update)


def loopback(endpoint: str, key: str, ca: str | None = None) -> Work:
    """One object over one connection into memory that is there already."""
    import http.client
    import ssl

    host = endpoint.partition("://")[2]
    block = memoryview(bytearray(MIB))
    connection = (
        http.client.HTTPSConnection(host, context=ssl.create_default_context(cafile=ca))
        if ca
        else http.client.HTTPConnection(host)
    )

    def work() -> None:
        connection.request("GET", f"/{BUCKET}/{key}")
        with connection.getresponse() as answer:
            while answer.readinto(block):
                pass

    return work


def receive_floor(endpoint: str, key: str, size: int, *, target: str | None = None) -> Work:
    """The least that a restore has to do, or without `target` a verification: receive by several connections, HMAC in
    order, decrypt, write past the page cache, fsync. No signatures, no retries, no deadlines, no checks of blocks, no
    limits, no progress, no proof of anything.
    """
    import http.client
    import mmap
    import ssl
    import threading

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    scheme, _, host = endpoint.partition("://")
    context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE")) if scheme == "https" else None
    code = hmac.new(bytes(32), digestmod=hashlib.sha256)
    turn, turns = threading.Condition(), iter(range(0, size, PART))
    done = [0]

    def take(start: int, block: memoryview, ready: memoryview, file: int | None) -> None:
        with turn:
            if not turn.wait_for(lambda: done[0] == start, _PATIENCE):
                raise RuntimeError("the bytes before these did not come")
        for at in range(0, len(block), _BLOCK):
            code.update(block[at : at + _BLOCK])
        with turn:
            done[0] += len(block)
            turn.notify_all()
        if file is None:
            return
        stream = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
        for at in range(0, len(block), _BLOCK):
            stream.update_into(block[at : at + _BLOCK], block[at : at + _BLOCK])
        # Whole pages, as the way past the cache demands; what is too much is cut off in the end.
        left = ready[: -(-len(block) // mmap.PAGESIZE) * mmap.PAGESIZE]
        while left:
            written = os.pwrite(file, left, start)
            left, start = left[written:], start + written

    def run(file: int | None) -> None:
        ready = memoryview(mmap.mmap(-1, PART))
        connection = http.client.HTTPSConnection(host, context=context) if context else http.client.HTTPConnection(host)
        while (start := next(turns, None)) is not None:
            block = ready[: min(PART, size - start)]
            span = f"bytes={start}-{start + len(block) - 1}"
            connection.request("GET", f"/{BUCKET}/{key}", headers={"Range": span})
            with connection.getresponse() as answer:
                at = 0
                while at < len(block) and (count := answer.readinto(block[at:])):
                    at += count
            if at < len(block):
                return
            take(start, block, ready, file)

    def work() -> None:
        file = None if target is None else os.open(target, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        threads = [threading.Thread(target=run, args=(file,)) for _ in range(CONCURRENCY)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if done[0] != size:
            raise RuntimeError(f"{done[0]} bytes came of {size}")
        if file is not None:
            os.ftruncate(file, size)
            os.fsync(file)
            os.close(file)

    return work


def _over(size: int, step: Callable[[bytearray], object]) -> Work:
    block = bytearray(os.urandom(_BLOCK))

    def work() -> None:
        for _ in range(size // _BLOCK):
            step(block)

    return work


# -- Airflow --------------------------------------------------------------------------------------------------------


def parse() -> Callable[[], dict[str, Any]]:
    """The DAG file, beyond the import of Airflow itself."""
    import airflow.sdk  # noqa: F401
    from airflow.sdk import DAG, Asset, BaseOperator, BaseSensorOperator, Param  # noqa: F401

    def work() -> dict[str, Any]:
        from duckling_provider import config
        from duckling_provider.dags.factory import build_dags

        return build_dags(config.load())

    return work


def serialize() -> Work:
    """All DAGs, made and serialized: what Airflow's DAG processor does with the file at each parse."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization  # type: ignore[no-redef]

    build = parse()

    def work() -> None:
        for dag in build().values():
            DagSerialization.to_dict(dag)

    return work


def parse_for_task(dag_id: str) -> Work:
    """The DAG file in a process that is about to run a task of the DAG."""
    os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = dag_id
    return parse()


JOBS: dict[str, Callable[..., Work]] = {
    job.__name__: job
    for job in (
        upload,
        formats.seal,
        formats.place_object,
        formats.read_back,
        download,
        receive,
        verify,
        restore,
        snapshot,
        boto3_upload,
        boto3_download,
        crt_upload,
        crt_download,
        obstore_upload,
        obstore_download,
        loopback,
        receive_floor,
        upload_by_processes,
        copy,
        write,
        floor,
        aes,
        mac,
        parse,
        serialize,
        parse_for_task,
    )
}


def prepared(name: str, arguments: dict[str, Any]) -> Work:
    """The job of that name, ready to be measured."""
    return command(*arguments["arguments"]) if name == "command" else JOBS[name](**arguments)


def main() -> None:
    print(json.dumps(asdict(measured(prepared(sys.argv[1], json.loads(sys.argv[2]))))))


if __name__ == "__main__":
    main()
