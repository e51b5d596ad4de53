"""Other people's clients, as commands: aws s3 cp, rclone copyto plain and through crypt, openssl piped to aws."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import BUCKET, CONCURRENCY, MIB, PART, REGION, WORK
from benchmarks.measure import Run, idle_memory, run_command
from benchmarks.servers import ACCESS_KEY, SECRET_KEY, Server
from demo.serving import program

_OPENSSL = ["enc", "-aes-256-ctr", "-K", "5b" * 32, "-iv", "7a" * 16]


@dataclass(frozen=True)
class Peers:
    """The peers' runs by name, and the names of those that are not installed."""

    uploads: dict[str, Callable[[], Run]]
    downloads: dict[str, Callable[[], Run]]
    missing: tuple[str, ...]


def peers(server: Server, source: Path, *, key: str, target: Path) -> Peers:
    """Uploads of `source`, and downloads of the object `key` to `target` with an fsync.

    The object has to be there. Through crypt a download needs an upload before, which the double does not keep.
    """
    uploads: dict[str, Callable[[], Run]] = {}
    downloads: dict[str, Callable[[], Run]] = {}
    missing = []
    aws, rclone, openssl = program("aws"), program("rclone"), program("openssl")
    if aws is None:
        missing += ["aws s3 cp", "openssl | aws s3 cp"]
    else:
        environ = _aws_environ(server)
        cp = [aws, "s3", "cp", "--only-show-errors", "--endpoint-url", server.endpoint]
        idle = idle_memory([aws, "s3", "ls", "--endpoint-url", server.endpoint, f"s3://{BUCKET}/none"], environ)
        uploads["aws s3 cp"] = lambda: run_command(
            [*cp, str(source), f"s3://{BUCKET}/peer"], environ=environ, idle=idle
        )
        downloads["aws s3 cp"] = lambda: _fresh(
            target, [*cp, f"s3://{BUCKET}/{key}", str(target)], environ=environ, idle=idle
        )
        if openssl is None:
            missing.append("openssl | aws s3 cp")
        else:
            both = idle + idle_memory([openssl, "version"], environ)
            uploads["openssl enc | aws s3 cp -"] = lambda: run_command(
                [openssl, *_OPENSSL, "-in", str(source)],
                [*cp, "--expected-size", str(source.stat().st_size), "-", f"s3://{BUCKET}/peer"],
                environ=environ,
                idle=both,
            )
    if rclone is None:
        missing += ["rclone copyto", "rclone copyto, crypt"]
    else:
        settings = _rclone_environ(server, rclone)
        rest = idle_memory([rclone, "lsf", f"store:{BUCKET}/none"], settings)
        copyto = [rclone, "copyto", "--retries", "1", "--ignore-times"]
        uploads["rclone copyto"] = lambda: run_command(
            [*copyto, str(source), f"store:{BUCKET}/peer"], environ=settings, idle=rest
        )
        uploads["rclone copyto, crypt"] = lambda: run_command(
            [*copyto, str(source), "sealed:peer"], environ=settings, idle=rest
        )
        downloads["rclone copyto"] = lambda: _fresh(
            target, [*copyto, f"store:{BUCKET}/{key}", str(target)], environ=settings, idle=rest
        )
    return Peers(uploads, downloads, tuple(missing))


def network_peers(server: Server, source: Path, *, key: str, target: Path) -> Peers:
    """As `peers`, of plain clients that are told to use several connections; libraries are only looked for."""
    uploads: dict[str, Callable[[], Run]] = {}
    downloads: dict[str, Callable[[], Run]] = {}
    missing = [name for name in ("obstore", "awscrt") if importlib.util.find_spec(name) is None]
    there, here, sent = f"s3://{BUCKET}/{key}", str(target), f"s3://{BUCKET}/peer"
    several, mib = str(CONCURRENCY), str(PART // MIB)
    s5 = ["--endpoint-url", server.endpoint, "--log", "error", "cp", "--concurrency", several, "--part-size", mib]
    remote = f"store:{BUCKET}/"
    copyto = ["copyto", "--retries", "1", "--ignore-times", "--multi-thread-streams", several]
    copyto += ["--multi-thread-cutoff", f"{mib}Mi", "--multi-thread-chunk-size", f"{mib}Mi"]
    cp = ["s3", "cp", "--only-show-errors", "--endpoint-url", server.endpoint]
    for name, found, up, down, idle in (
        ("s5cmd", program("s5cmd"), [*s5, str(source), sent], [*s5, there, here], "version"),
        (
            "rclone",
            program("rclone"),
            [*copyto, str(source), f"{remote}peer"],
            [*copyto, remote + key, here],
            "version",
        ),
        ("aws s3 cp", program("aws"), [*cp, str(source), sent], [*cp, there, here], "--version"),
    ):
        if found is None:
            missing.append(name)
            continue
        environ = _rclone_environ(server, found) if name == "rclone" else _aws_environ(server)
        rest = idle_memory([found, idle], environ)
        uploads[name] = partial(run_command, [found, *up], environ=environ, idle=rest)
        downloads[name] = partial(_fresh, target, [found, *down], environ=environ, idle=rest)
    return Peers(uploads, downloads, tuple(missing))


def _fresh(target: Path, command: list[str], *, environ: dict[str, str], idle: int) -> Run:
    target.unlink(missing_ok=True)
    return run_command(command, environ=environ, idle=idle, sync=target)


def _aws_environ(server: Server) -> dict[str, str]:
    config = WORK / "aws.ini"
    config.write_text(
        "[default]\ns3 =\n  addressing_style = path\n"
        f"  multipart_threshold = {PART}\n  multipart_chunksize = {PART}\n  max_concurrent_requests = {CONCURRENCY}\n"
    )
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(WORK),
        "AWS_CONFIG_FILE": str(config),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        **({"AWS_CA_BUNDLE": str(server.ca), "SSL_CERT_FILE": str(server.ca)} if server.ca else {}),
    }


def _rclone_environ(server: Server, rclone: str) -> dict[str, str]:
    obscured = subprocess.run([rclone, "obscure", "bench"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(WORK),
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_STORE_REGION": REGION,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": ACCESS_KEY,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": SECRET_KEY,
        "RCLONE_CONFIG_STORE_FORCE_PATH_STYLE": "true",
        "RCLONE_CONFIG_STORE_NO_CHECK_BUCKET": "true",
        "RCLONE_CONFIG_STORE_CHUNK_SIZE": f"{PART // MIB}Mi",
        "RCLONE_CONFIG_STORE_UPLOAD_CUTOFF": f"{PART // MIB}Mi",
        "RCLONE_CONFIG_STORE_UPLOAD_CONCURRENCY": str(CONCURRENCY),
        "RCLONE_CONFIG_SEALED_TYPE": "crypt",
        "RCLONE_CONFIG_SEALED_REMOTE": f"store:{BUCKET}",
        "RCLONE_CONFIG_SEALED_PASSWORD": obscured,
        **({"RCLONE_CA_CERT": str(server.ca)} if server.ca else {}),
    }
