"""The cases: who competes in which, and what has to hold."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import BUCKET, DATABASE, MIB, PART, WORK
from benchmarks.measure import Row, Run, interleaved, run_job
from benchmarks.peers import peers
from benchmarks.replicas import replica, sparse
from benchmarks.servers import Server, double, rclone
from benchmarks.site import Site, entry, s3_fields, site

_KEPT = "kept/"
_OURS = "duckling, client-aes256"
_BOTO3 = "boto3"


@dataclass(frozen=True)
class Target:
    """What is wanted: `value` at most (or at least) `limit`."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        word = "at least" if self.at_least else "at most"
        return {"name": self.name, "value": round(self.value, 3), word: self.limit, "holds": self.holds}


@dataclass(frozen=True)
class Case:
    """One table: rows that belong together, targets over them, peers that were not there."""

    title: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "rows": [row.as_json() for row in self.rows],
            "targets": [target.as_json() for target in self.targets],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def transfers(mib: int, *, runs: int) -> Iterator[Case]:
    """Ceilings, snapshot, uploads and downloads of one replica of about `mib` MiB."""
    source = replica(mib)
    size = source.stat().st_size
    yield _ceilings(size, runs=runs)
    with site(source) as place:
        objects = place.folder / "objects"
        with double(objects) as fake, rclone(objects) as real:
            place.configure(fake)
            yield _snapshot(place, size, runs=runs)
            snapshot = _take_snapshot(place)
            place_object(snapshot, objects / BUCKET / _KEPT)
            for server in (fake, real):
                if server is None:
                    yield Case("rclone serve s3, on disk", missing=("rclone",))
                    continue
                yield _uploads(place, server, snapshot, runs=runs)
                yield _downloads(place, server, snapshot, runs=runs)


def _ceilings(size: int, *, runs: int) -> Case:
    target = WORK / "ceiling"
    rows = interleaved(
        size,
        {
            "disk: write, fsync": lambda: run_job("write", size=size, target=str(target)),
            "AES-256-CTR, one core": lambda: run_job("aes", size=size),
            "HMAC-SHA256, one core": lambda: run_job("mac", size=size),
        },
        runs=runs,
    )
    target.unlink()
    return Case("Ceilings", rows)


def _snapshot(place: Site, size: int, *, runs: int) -> Case:
    target = place.folder / "copy.db"

    def copy() -> Run:
        run = run_job("copy", path=str(place.replica), target=str(target))
        target.unlink()
        return run

    def snapshot() -> Run:
        run = run_job("snapshot")
        shutil.rmtree(place.backups)
        return run

    rows = interleaved(size, {"cp, fsync": copy, _OURS: snapshot}, runs=runs, reference="cp, fsync")
    return Case("Snapshot, disk to disk", rows, [_at_most("snapshot / (cp, fsync)", rows, _OURS, 2.0)])


def _uploads(place: Site, server: Server, snapshot: Path, *, runs: int) -> Case:
    place.configure(server)
    size = snapshot.stat().st_size

    def boto3(**options: Any) -> Callable[[], Run]:
        return lambda: run_job("boto3_upload", endpoint=server.endpoint, path=str(snapshot), key="peer", **options)

    others = peers(server, snapshot, key=f"{_KEPT}{snapshot.name}", target=place.folder / "download")
    contestants = {
        _OURS: lambda: run_job("upload", filename=snapshot.name),
        _BOTO3: boto3(),
        "boto3, payload not signed": boto3(signed=False),
        **others.uploads,
    }
    rows, used = _side_by_side(server, contestants, size, runs=runs)
    sealed = _named(rows, "rclone copyto, crypt")
    targets = []
    if server.is_double:
        targets.append(_at_most("client-aes256 upload / boto3 upload_file", rows, _OURS, 1.15))
    if server.is_double and sealed is not None:
        ours = _named(rows, _OURS)
        factor = sealed.wall / ours.wall if ours else 0.0
        targets.append(Target("rclone crypt / client-aes256 upload", factor, 4.0, at_least=True))
    notes = (_server_cpu(used, runs, size),)
    return Case(f"Upload from a finished snapshot; store: {_label(server)}", rows, targets, others.missing, notes)


def _downloads(place: Site, server: Server, snapshot: Path, *, runs: int) -> Case:
    place.configure(server, pathPrefix=_KEPT)
    target, key = place.folder / "download", f"{_KEPT}{snapshot.name}"

    def fresh(job: str, **options: Any) -> Callable[[], Run]:
        def run() -> Run:
            target.unlink(missing_ok=True)
            return run_job(job, key=key, target=str(target), **options)

        return run

    others = peers(server, snapshot, key=key, target=target)
    contestants = {
        _OURS: fresh("download"),
        "duckling restore --to, DuckDB opens it": fresh("restore"),
        _BOTO3: fresh("boto3_download", endpoint=server.endpoint),
        **others.downloads,
    }
    rows, used = _side_by_side(server, contestants, snapshot.stat().st_size, runs=runs)
    target.unlink(missing_ok=True)
    return Case(
        f"Download with fsync; store: {_label(server)}",
        rows,
        [_at_most("download, verify, decrypt, fsync / boto3 download_file, fsync", rows, _OURS, 1.25)]
        if server.is_double
        else [],
        others.missing,
        (_server_cpu(used, runs, snapshot.stat().st_size),),
    )


def clients(mib: int, *, runs: int) -> Iterator[Case]:
    """What was tried for the upload: boto3's own client, AWS's in C, threads, processes. See decision 0002."""
    source = replica(mib)
    with site(source) as place, double(place.folder / "objects") as server:
        place.configure(server)
        snapshot = _take_snapshot(place)

        def plain(job: str, **options: Any) -> Callable[[], Run]:
            return lambda: run_job(job, endpoint=server.endpoint, path=str(snapshot), key="peer", **options)

        def processes(count: int) -> Callable[[], Run]:
            return lambda: run_job(
                "upload_by_processes", filename=snapshot.name, endpoint=server.endpoint, key="peer", count=count
            )

        contestants = {
            _BOTO3: plain("boto3_upload"),
            "boto3, payload not signed": plain("boto3_upload", signed=False),
            f"{_OURS}, 4 threads": lambda: run_job("upload", filename=snapshot.name),
            "client-aes256, 2 processes of 2 threads": processes(2),
            "client-aes256, 4 processes": processes(4),
        }
        missing: tuple[str, ...] = ()
        if importlib.util.find_spec("awscrt"):
            contestants["boto3 with awscrt"] = plain("crt_upload")
        else:
            missing = ("boto3 with awscrt",)
        rows, _ = _side_by_side(server, contestants, snapshot.stat().st_size, runs=runs)
    yield Case(f"Transfer clients; store: {_label(server)}", rows, missing=missing)


def memory(sizes: list[int], *, large_parts: tuple[int, int] | None) -> Case:
    """`duckling backup` and `duckling restore`, whole, from and to a server that keeps its objects on disk.

    :param sizes: of replicas in MiB.
    :param large_parts: one more replica, in MiB, with parts of so many MiB.
    """
    rows = []
    for mib, part in [*((mib, None) for mib in sizes), *([large_parts] if large_parts else [])]:
        source = replica(mib)
        with site(source) as place, rclone(place.folder / "objects") as server:
            if server is None:
                return Case("Memory of the commands", missing=("rclone",))
            place.configure(server, partSizeMiB=part or PART // MIB)
            name = f"{mib} MiB" + (f", parts of {part} MiB" if part else "")
            for command in ("backup", "restore"):
                ours = {f"duckling {command}, {name}": _command(command)}
                rows += interleaved(source.stat().st_size, ours, runs=1)
    worst = max(row.growth for row in rows) / MIB
    return Case("Memory of the commands, over the same process idle", rows, [Target("peak growth, MiB", worst, 50.0)])


def plan() -> Case:
    """How many parts a replica of 500 GiB takes."""
    from duckling_provider.formats.upload_body import lead_bytes
    from duckling_provider.stores.parts import plan_parts

    path = sparse(500)
    made = plan_parts(path.stat().st_size + lead_bytes(encrypted=True), part_size=8 * MIB, max_parts=10_000)
    path.unlink()
    return Case("Plan of 500 GiB", targets=[Target("parts", made.count, 10_000.0)])


def dags() -> Case:
    """Seconds to make all DAGs, Airflow being imported already."""
    walls = {}
    with site() as place:
        for entries in (100, 1000):
            place.write([_entry(place, number) for number in range(entries)])
            walls[entries] = min(run_job("parse").wall for _ in range(3))
        whole = min(run_job("serialize").wall for _ in range(3))
        task = min(run_job("parse_for_task", dag_id="duckling_backup__shop-500").wall for _ in range(3))
    marginal = (walls[1000] - walls[100]) / 900 * 1000
    return Case(
        "DAG parsing, beyond importing Airflow; best of 3",
        targets=[
            Target("seconds for 100 entries", walls[100], 1.0),
            Target("ms for one more entry", marginal, 5.0),
            # Half of what Airflow allows for a file unless it is told otherwise (dag_file_processor_timeout).
            Target("seconds for 1,000 entries with serializing, in the DAG processor", whole, 25.0),
            Target("seconds for 1,000 entries before a task", task, 1.0),
        ],
    )


def _entry(place: Site, number: int) -> dict[str, Any]:
    name = f"shop-{number}"
    return entry(name, place.folder / f"{name}.db", s3_fields("http://127.0.0.1:9"))


def _take_snapshot(place: Site) -> Path:
    run_job("snapshot")
    (found,) = place.backups.glob("backup-*.db")
    return found


def place_object(path: Path, folder: Path) -> None:
    """Put the object of a snapshot, and its ``.mac`` if it has one, where the servers find it."""
    from duckling_provider import config
    from duckling_provider.backup.inventory.sidecar import find_snapshot
    from duckling_provider.formats.crypto import CtrCipher
    from duckling_provider.formats.upload_body import SnapshotBody

    database = config.load().database(DATABASE)
    snapshot = find_snapshot(database, path.name)
    if database.s3 is None:
        raise RuntimeError("the snapshot is for no store")
    folder.mkdir(parents=True, exist_ok=True)
    lead = bytes.fromhex(snapshot.iv or "")
    key = database.s3.encryption_key
    cipher = CtrCipher(key, lead) if key is not None and lead else None
    checksums, checksum_key = snapshot.part_checksums, bytes.fromhex(snapshot.checksum_key)
    with SnapshotBody(
        path, snapshot.plan, checksums=checksums, checksum_key=checksum_key, cipher=cipher, lead=lead
    ) as body:
        with (folder / path.name).open("wb") as file:
            for part in range(body.count):
                shutil.copyfileobj(body.open(part), file, MIB)
    if snapshot.mac is not None:
        (folder / f"{path.name}.mac").write_text(snapshot.mac)


def _command(name: str) -> Callable[[], Run]:
    return lambda: run_job("command", arguments=[name, DATABASE])


def _side_by_side(
    server: Server, contestants: Mapping[str, Callable[[], Run]], size: int, *, runs: int
) -> tuple[list[Row], dict[str, float]]:
    """The rows of clients that take turns at one server, boto3 the measure, and the CPU that the server used for each.

    :param size: bytes that each transfers.
    """
    used: dict[str, float] = {}
    turns = {name: _emptied(server, run, used, name) for name, run in contestants.items()}
    return interleaved(size, turns, runs=runs, reference=_BOTO3), used


def _emptied(server: Server, run: Callable[[], Run], used: dict[str, float], name: str) -> Callable[[], Run]:
    """The run on a server that holds nothing of earlier ones; adds the server's CPU seconds to `used`."""

    def emptied() -> Run:
        server.forget()
        before = server.cpu()
        result = run()
        used[name] = used.get(name, 0.0) + server.cpu() - before
        return result

    return emptied


def _server_cpu(used: dict[str, float], runs: int, size: int) -> str:
    each = ", ".join(f"{name} {seconds / runs * 1024 * MIB / size:.2f}" for name, seconds in used.items())
    return f"CPU s/GiB of the server, on the same cores and in no row: {each}"


def _label(server: Server) -> str:
    return "a double that discards and serves from memory" if server.is_double else "rclone serve s3 on disk"


def _at_most(name: str, rows: list[Row], ours: str, limit: float) -> Target:
    row = _named(rows, ours)
    if row is None or row.ratio is None:
        raise RuntimeError("no such row")
    return Target(name, row.ratio, limit)


def _named(rows: list[Row], name: str) -> Row | None:
    return next((row for row in rows if row.name == name), None)
