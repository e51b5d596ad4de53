"""Restores and uploads beside other clients, over http and https, on lines of some length.

``python -m benchmarks --only network``. The store is the double; https comes from nginx in front of it, the length of a
line from a proxy that passes bytes on later. All of them share the cores with the client, in each row alike.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import BUCKET, CONCURRENCY, MIB, WORK
from benchmarks.cases import Case, Target, place_object
from benchmarks.measure import Row, Run, interleaved, run_job
from benchmarks.peers import network_peers
from benchmarks.replicas import replica
from benchmarks.servers import Server, delayed, double, tls
from benchmarks.site import Site, site
from duckling_provider.base.host_load import forget
from duckling_provider.config.s3 import S3Settings

OURS = "duckling, client-aes256"
_PLAIN = "duckling, none"
_PROOF = "duckling verify, client-aes256"
#: Beside clients that prove nothing: what is slow, the receiver or the proof.
_UNPROVEN = "duckling, received, nothing proven"
_BOTO3 = "boto3"
_UNSIGNED = "boto3, payload not signed"
_FLOOR = "floor: copy, SHA-256, AES, HMAC"
#: Of restores and verifications: what can't be left out, and nothing else, see `jobs.receive_floor`.
_RESTORE_FLOOR = "floor: receive, HMAC, AES, write"
_PROOF_FLOOR = "floor: receive, HMAC"
#: As many parts at once as an entry allows that does not say. The others are told `CONCURRENCY`, but for awscrt, which
#: decides by itself.
_MOST = S3Settings.model_fields["max_concurrency"].default
_DEFAULT = f"{OURS}, maxConcurrency {_MOST}"
#: So much longer than its floor may a restore take: signatures, deadlines, block checksums, order, limits, progress.
_OVER_FLOOR = 1.25
_KEPT = "kept/"
#: Milliseconds that an answer takes, and which share of the rounds is spent on such a line; those with targets first.
_LINES = {0: 1.0, 100: 0.67, 20: 0.34}


def network(mib: int, *, runs: int, quick: bool) -> Iterator[Case]:
    """:param mib: of the replica.
    :param quick: one line of each kind.
    """
    source = replica(mib)
    with site(source) as place, double(place.folder / "objects") as plain:
        place.configure(plain)
        # https first: the limits are looked at there, and a run that is stopped has them.
        with tls(plain, WORK / "nginx") as secure:
            yield _ceilings(place, plain, secure, source, runs=runs)
            yield _snapshot(place, plain, source.stat().st_size, runs=runs)
            made = {mode: _object(place, plain, mode) for mode in ("client-aes256", "none")}
            for milliseconds, share in _LINES.items():
                for scheme, server in (("http", plain), ("https", secure)):
                    if server is None:
                        yield Case(f"{scheme}, {milliseconds} ms", missing=("nginx",))
                    elif not quick or (scheme, milliseconds) in {("http", 0), ("https", 20)}:
                        rounds = max(1, round(runs * share))
                        with delayed(server, milliseconds) if milliseconds else contextlib.nullcontext(server) as far:
                            line = _Line(place, far, scheme, milliseconds, made)
                            yield line.downloads(rounds)
                            yield line.uploads(rounds)


class _Line:
    """Clients that talk to one server over one line."""

    def __init__(self, place: Site, server: Server, scheme: str, milliseconds: int, made: dict[str, Path]) -> None:
        self._place, self._server, self._made = place, server, made
        self._name = f"{scheme}, {milliseconds} ms"
        self._https, self._near = scheme == "https", not milliseconds
        self._target = place.folder / "download"
        self._served: dict[str, list[float]] = {}  #: CPU seconds of the servers in each run of a client

    def _ours(self, mode: str, job: str, *, at_once: int = CONCURRENCY, **options: Any) -> Callable[[], Run]:
        def run() -> Run:
            prefix = _KEPT if job != "upload" else ""
            self._place.configure(self._server, encryption=mode, pathPrefix=prefix, maxConcurrency=at_once)
            self._target.unlink(missing_ok=True)
            return run_job(job, **options)

        return run

    def _theirs(self, job: str, **options: Any) -> Callable[[], Run]:
        def run() -> Run:
            self._target.unlink(missing_ok=True)
            return run_job(job, endpoint=self._server.endpoint, **options)

        return run

    def _key(self, mode: str) -> str:
        return f"{_KEPT}{self._made[mode].name}"

    def downloads(self, runs: int) -> Case:
        self._place.configure(self._server)
        snapshot, target = self._made["client-aes256"], str(self._target)
        key = self._key("client-aes256")
        others = network_peers(self._server, snapshot, key=key, target=self._target)
        jobs = {
            name: self._theirs(job, key=key, target=target)
            for name, job in {"obstore": "obstore_download", "awscrt": "crt_download"}.items()
            if name not in others.missing
        }
        contestants = {
            OURS: self._ours("client-aes256", "download", key=key, target=target),
            _PROOF: self._ours("client-aes256", "verify", key=key),
            _UNPROVEN: self._ours("client-aes256", "receive", key=key, target=target),
            **({_PLAIN: self._ours("none", "download", key=self._key("none"), target=target)} if self._near else {}),
            **(self._floors(key, target) if self._near else {}),
            _BOTO3: self._theirs("boto3_download", key=key, target=target),
            **self._some(others.downloads),
            **jobs,
        }
        rows = interleaved(snapshot.stat().st_size, self._emptied(contestants), runs=runs, reference=_BOTO3)
        self._target.unlink(missing_ok=True)
        peers = [row for row in rows if not row.name.startswith(("duckling", "floor"))]
        targets = [
            Target(f"restore / boto3, {self._name}", _ratio(_row(rows, OURS), _row(rows, _BOTO3)), 0.6),
            _to_fastest(f"restore / fastest plain peer, {self._name}", rows, OURS, peers, 1.15),
            Target(f"received, unproven / boto3, {self._name}", _ratio(_row(rows, _UNPROVEN), _row(rows, _BOTO3)), 0.6),
            _to_fastest(f"received, unproven / fastest plain peer, {self._name}", rows, _UNPROVEN, peers, 1.15),
            _to_fastest(f"verification / fastest plain download, {self._name}", rows, _PROOF, peers, 1.0),
        ]
        if self._near:
            for what, ours, least in (("restore", OURS, _RESTORE_FLOOR), ("verification", _PROOF, _PROOF_FLOOR)):
                ratio = _ratio(_row(rows, ours), _row(rows, least))
                targets.append(Target(f"{what} / its floor, {self._name}", ratio, _OVER_FLOOR))
        return Case(f"Download with fsync, {self._name}", rows, targets, others.missing, (self._told(snapshot),))

    def _floors(self, key: str, target: str) -> dict[str, Callable[[], Run]]:
        size = (self._server.folder / BUCKET / key).stat().st_size
        return {
            _RESTORE_FLOOR: self._theirs("receive_floor", key=key, size=size, target=target),
            _PROOF_FLOOR: self._theirs("receive_floor", key=key, size=size),
        }

    def _told(self, sent: Path) -> str:
        """What the servers took for each client, which shares the cores with them."""
        gib = sent.stat().st_size / (1024 * MIB)
        used = ", ".join(f"{name} {statistics.median(took) / gib:.2f}" for name, took in self._served.items())
        return f"CPU s/GiB of the servers: {used}"

    def uploads(self, runs: int) -> Case:
        self._place.configure(self._server)
        snapshot = self._made["client-aes256"]
        others = network_peers(self._server, snapshot, key=self._key("client-aes256"), target=self._target)
        jobs = {
            name: self._theirs(job, path=str(snapshot), key="peer")
            for name, job in {"obstore": "obstore_upload", "awscrt": "crt_upload"}.items()
            if name not in others.missing
        }
        boto3 = {_BOTO3: self._theirs("boto3_upload", path=str(snapshot), key="peer")}
        if not self._https:
            # Over https that is what it does anyway.
            boto3[_UNSIGNED] = self._theirs("boto3_upload", path=str(snapshot), key="peer", signed=False)
        most = self._ours("client-aes256", "upload", at_once=_MOST, filename=snapshot.name)
        contestants = {
            OURS: self._ours("client-aes256", "upload", filename=snapshot.name),
            **({} if self._near else {_DEFAULT: most}),
            **({_PLAIN: self._ours("none", "upload", filename=self._made["none"].name)} if self._near else {}),
            **boto3,
            **self._some(others.uploads),
            **jobs,
        }
        rows = interleaved(snapshot.stat().st_size, self._emptied(contestants), runs=runs, reference=_BOTO3)
        limit = 1.0 if self._https else 1.1
        commands = [row for row in rows if row.name.startswith(("s5cmd", "rclone"))]
        targets = [Target(f"upload / boto3, {self._name}", _ratio(_row(rows, OURS), _row(rows, _BOTO3)), limit)]
        if commands:
            targets.append(_to_fastest(f"upload / faster of s5cmd, rclone, {self._name}", rows, OURS, commands, 1.0))
        told = (self._told(snapshot),)
        return Case(f"Upload from a finished snapshot, {self._name}", rows, targets, others.missing, told)

    def _some(self, runs: Mapping[str, Callable[[], Run]]) -> dict[str, Callable[[], Run]]:
        """On long lines without Amazon's command, which takes a third of the time and tells no more than boto3."""
        return {name: run for name, run in runs.items() if self._near or not name.startswith("aws")}

    def _emptied(self, contestants: Mapping[str, Callable[[], Run]]) -> dict[str, Callable[[], Run]]:
        def emptied(name: str, run: Callable[[], Run]) -> Callable[[], Run]:
            def emptied_run() -> Run:
                self._server.forget()
                # A snapshot is not in the page cache when it is sent; so it is for all who send it.
                for made in self._made.values():
                    with made.open("rb") as file:
                        forget(file.fileno())
                before = self._server.cpu()
                done = run()
                self._served.setdefault(name, []).append(self._server.cpu() - before)
                return done

            return emptied_run

        self._served = {}
        return {name: emptied(name, run) for name, run in contestants.items()}


def _ceilings(place: Site, plain: Server, secure: Server | None, source: Path, *, runs: int) -> Case:
    """What the parts of a transfer take by themselves."""
    size, target = source.stat().st_size, place.folder / "ceiling"
    served = plain.folder / BUCKET / "ceiling"
    served.hardlink_to(source)
    contestants = {
        "disk: write, fsync": lambda: run_job("write", size=size, target=str(target)),
        "AES-256-CTR, one core": lambda: run_job("aes", size=size),
        "HMAC-SHA256, one core": lambda: run_job("mac", size=size),
        "loopback, one connection": lambda: run_job("loopback", endpoint=plain.endpoint, key=served.name),
    }
    if secure is not None:
        far = secure
        contestants["loopback with TLS, one connection"] = lambda: run_job(
            "loopback", endpoint=far.endpoint, key=served.name, ca=str(far.ca)
        )
    rows = interleaved(size, contestants, runs=runs)
    target.unlink()
    served.unlink()
    return Case("Ceilings", rows, missing=() if secure else ("nginx",))


def _snapshot(place: Site, server: Server, size: int, *, runs: int) -> Case:
    target = place.folder / "copy.db"

    def copy() -> Run:
        target.unlink(missing_ok=True)
        return run_job("copy", path=str(place.replica), target=str(target))

    def snapshot(mode: str) -> Callable[[], Run]:
        def run() -> Run:
            place.configure(server, encryption=mode)
            shutil.rmtree(place.backups, ignore_errors=True)
            return run_job("snapshot")

        return run

    contestants = {
        "cp, fsync": copy,
        _FLOOR: lambda: run_job("floor", path=str(place.replica), target=str(target)),
        OURS: snapshot("client-aes256"),
        _PLAIN: snapshot("none"),
    }
    rows = interleaved(size, contestants, runs=runs, reference="cp, fsync")
    target.unlink()
    shutil.rmtree(place.backups)
    ratios = {other: _ratio(_row(rows, OURS), _row(rows, other)) for other in ("cp, fsync", _FLOOR)}
    targets = [
        Target("snapshot / (cp, fsync)", ratios["cp, fsync"], 1.3),
        Target("snapshot / floor: its copy, SHA-256, AES and HMAC alone", ratios[_FLOOR], 1.3),
    ]
    return Case("Snapshot, disk to disk", rows, targets)


def _object(place: Site, server: Server, mode: str) -> Path:
    """A snapshot of the mode, and its object where the servers find it."""
    place.configure(server, encryption=mode)
    before = set(place.backups.glob("backup-*.db"))
    run_job("snapshot")
    (made,) = set(place.backups.glob("backup-*.db")) - before
    place_object(made, server.folder / BUCKET / _KEPT)
    return made


def _row(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def _ratio(row: Row, other: Row) -> float:
    """Of wall times within a round: what disturbs the machine hits both."""
    return statistics.median(one / two for one, two in zip(row.walls, other.walls, strict=True))


def _to_fastest(name: str, rows: list[Row], ours: str, peers: list[Row], limit: float) -> Target:
    fastest = min(peers, key=lambda row: row.wall)
    return Target(f"{name} ({fastest.name})", _ratio(_row(rows, ours), fastest), limit)
