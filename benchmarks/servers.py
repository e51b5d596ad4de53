"""What the clients talk to: the store double, and rclone's S3 server on disk. Each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import BUCKET, ROOT
from demo.serving import answers, free_port, listens, program, serving

ACCESS_KEY, SECRET_KEY = "bench-access-key", "bench-secret-key"


@dataclass(frozen=True)
class Server:
    """A running server; `folder` holds the buckets as folders, `pid` is its process."""

    name: str
    endpoint: str
    folder: Path
    pid: int
    #: Where the benchmark itself reaches it, past proxies; empty: at its endpoint.
    direct: str = ""
    #: The certificate that clients are to trust; None without TLS.
    ca: Path | None = None
    #: Processes of the servers behind this one.
    behind: tuple[int, ...] = ()

    @property
    def is_double(self) -> bool:
        """No store: it is never in the way, so it shows what the client can do."""
        return self.name.startswith("double")

    def cpu(self) -> float:
        """CPU seconds that it, its workers and the servers behind it have used so far."""
        return sum(map(_seconds, [self.pid, *self.behind]))

    def forget(self) -> None:
        """Drop what was uploaded, so that the next client finds nothing there."""
        if self.is_double:
            url = f"{self.direct or self.endpoint}/-/uploads"
            request = urllib.request.Request(url, method="DELETE")  # noqa: S310 - our own
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        else:
            for path in (self.folder / BUCKET).glob("**/*"):
                if path.is_file() and not path.is_relative_to(self.folder / BUCKET / "kept"):
                    path.unlink()


def _seconds(process: int) -> float:
    """Of a process and its children that run."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_seconds(int(child)) for child in children)


@contextlib.contextmanager
def double(folder: Path) -> Iterator[Server]:
    """The store double, serving the objects in `folder`."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.double", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        try:
            port = int(process.stdout.readline())
            yield Server("double", f"http://127.0.0.1:{port}", folder, process.pid)
        finally:
            process.stdin.close()


@contextlib.contextmanager
def delayed(server: Server, milliseconds: int) -> Iterator[Server]:
    """The same server at the end of a line on which an answer takes so long."""
    port = str(urllib.parse.urlsplit(server.endpoint).port)
    command = [sys.executable, "-m", "benchmarks.delay", port, str(milliseconds)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        try:
            port = process.stdout.readline().strip()
            scheme = urllib.parse.urlsplit(server.endpoint).scheme
            name = f"{server.name}, {milliseconds} ms away"
            yield replace(
                server, name=name, endpoint=f"{scheme}://127.0.0.1:{port}", direct=server.direct or server.endpoint
            )
        finally:
            process.stdin.close()


_NGINX = """
daemon off; user {user}; worker_processes 2; pid {home}/pid; error_log {home}/error.log;
events {{}}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 100000; client_max_body_size 0;
  client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3; uwsgi_temp_path {home}/4;
  scgi_temp_path {home}/5;
  upstream double {{ server 127.0.0.1:{double}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {home}/cert.pem; ssl_certificate_key {home}/key.pem;
    root {folder}; output_buffers 2 512k;
    location / {{ try_files $uri @double; }}
    location @double {{
      proxy_pass http://double; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_request_buffering off; proxy_buffering off;
    }}
  }}
}}
"""


@contextlib.contextmanager
def tls(server: Server, home: Path) -> Iterator[Server | None]:
    """nginx before the double: it takes TLS off, and sends the objects itself. None when there is no nginx.

    Clients are to trust ``home/ca.pem``, by ``AWS_CA_BUNDLE``.
    """
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        yield None
        return
    home.mkdir(parents=True, exist_ok=True)
    _certify(home)
    port = free_port()
    inner = urllib.parse.urlsplit(server.endpoint).port
    user = pwd.getpwuid(os.getuid()).pw_name
    settings = _NGINX.format(home=home, folder=server.folder, port=port, double=inner, user=user)
    (home / "nginx.conf").write_text(settings)
    command = [nginx, "-p", str(home), "-c", str(home / "nginx.conf")]
    with serving(command, lambda: listens(port), home / "log") as process:
        name = f"{server.name} behind nginx, https"
        endpoint = f"https://127.0.0.1:{port}"
        far = replace(server, name=name, endpoint=endpoint, direct=server.endpoint, ca=home / "ca.pem")
        yield replace(far, pid=process.pid, behind=(server.pid,))


def _certify(home: Path) -> None:
    """An authority, ``ca.pem``, and nginx's certificate by it: not all clients trust one that signed itself."""
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    authority = ["-subj", "/CN=bench", "-keyout", "ca-key.pem", "-out", "ca.pem"]
    leaf = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-CA", "ca.pem", "-CAkey", "ca-key.pem"]
    leaf += ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"]
    for command in ([*made, *authority], [*made, *leaf]):
        subprocess.run(command, cwd=home, check=True, capture_output=True)


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Server | None]:
    """``rclone serve s3`` with its objects in `folder`; None when there is no rclone."""
    executable = program("rclone")
    if executable is None:
        yield None
        return
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    port = free_port()
    # Objects are removed behind its back between runs: it must look again each time. Its ETag is the MD5 of the whole
    # object, read again for every ranged request, which would measure nothing else.
    options = ["--addr", f"127.0.0.1:{port}", "--dir-cache-time", "1ms", "--etag-hash", ""]
    command = [executable, "serve", "s3", *options, str(folder)]
    # An empty file of its own: the user's remotes are none of our business.
    environ = {**os.environ, "RCLONE_CONFIG": "/dev/null", "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'}
    endpoint = f"http://127.0.0.1:{port}"
    with serving(command, lambda: answers(endpoint), folder.with_suffix(".log"), environ=environ) as process:
        yield Server("rclone on disk", endpoint, folder, process.pid)
