"""How one run is measured: in a fresh process, wall and CPU time of the work alone, and how much its memory grew.

Python jobs (`run_job`) measure themselves, after their imports and with their client made. Commands (`run_command`) are
measured from the outside, start included, because that is how they are used.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import MIB, ROOT
from duckling_provider.base.host_load import cpu_seconds

_SAMPLE_SECONDS = 0.005
_SETTLE_SECONDS = 1.5


@dataclass(frozen=True)
class Run:
    """One run: `wall` and `cpu` in seconds (children included), `growth` of the peak memory in bytes over idle."""

    wall: float
    cpu: float
    growth: int


@dataclass(frozen=True)
class Row:
    """Medians of several runs that moved `size` bytes; `ratio` is to the reference of the same round."""

    name: str
    size: int
    wall: float
    cpu: float
    growth: int
    ratio: float | None
    runs: int
    walls: tuple[float, ...]

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.size / 1e6 / self.wall

    @property
    def cpu_per_gib(self) -> float:
        return self.cpu * 1024 * MIB / self.size

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.size,
            "wall_s": round(self.wall, 4),
            "mb_per_s": round(self.rate, 1),
            "cpu_s_per_gib": round(self.cpu_per_gib, 3),
            "peak_growth_mib": round(self.growth / MIB, 1),
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "runs": self.runs,
            "walls_s": [round(wall, 4) for wall in self.walls],
        }


def interleaved(
    size: int, contestants: Mapping[str, Callable[[], Run]], *, runs: int, reference: str | None = None
) -> list[Row]:
    """Let all contestants run `runs` rounds, one after the other, so that what disturbs the machine hits all of them.

    :param reference: the contestant that the others' wall time is divided by, within each round.
    """
    seen: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, run in contestants.items():
            # What others left unwritten would be written at this one's expense; and in a virtual machine the memory
            # that they freed is at hand at once, until the host takes it back, so that its next user has an advantage.
            os.sync()
            if runs > 1:
                time.sleep(_SETTLE_SECONDS)
            seen[name].append(run())
    rows = []
    for name, own in seen.items():
        ratio = None
        if reference is not None:
            ratio = statistics.median(run.wall / base.wall for run, base in zip(own, seen[reference], strict=True))
        rows.append(
            Row(
                name,
                size,
                statistics.median(run.wall for run in own),
                statistics.median(run.cpu for run in own),
                max(run.growth for run in own),
                ratio,
                runs,
                tuple(run.wall for run in own),
            )
        )
    return rows


def run_job(name: str, **arguments: Any) -> Run:
    """Run one of `benchmarks.jobs` in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.jobs", name, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def measured(work: Callable[[], object]) -> Run:
    """Run `work` in this process and say what it took."""
    gc.collect()
    # Memory that the imports freed would hide what the work takes.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to what is resident now
    idle = _memory("self", "VmRSS")
    cpu, started = cpu_seconds(), time.monotonic()
    work()
    wall = time.monotonic() - started
    return Run(wall, cpu_seconds() - cpu, max(0, _memory("self", "VmHWM") - idle))


def run_command(
    *commands: Sequence[str],
    environ: Mapping[str, str],
    idle: int,
    sync: Path | None = None,
) -> Run:
    """Run commands as a pipeline from outside.

    :param idle: bytes that the same commands take to do nothing.
    :param sync: a file that they write, to be synced as part of the work.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    processes: list[subprocess.Popen[bytes]] = []
    source: Any = subprocess.DEVNULL
    for number, command in enumerate(commands):
        last = number == len(commands) - 1
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=source,
            stdout=subprocess.DEVNULL if last else subprocess.PIPE,
            stderr=subprocess.PIPE if last else subprocess.DEVNULL,
        )
        if source is not subprocess.DEVNULL:
            source.close()
        source = process.stdout
        processes.append(process)
    peaks = [_Peak(process.pid) for process in processes]
    message = processes[-1].communicate()[1]
    codes = [process.wait() for process in processes]
    if sync is not None and not any(codes):
        fsync(sync)
    wall = time.monotonic() - started
    if any(codes):
        raise RuntimeError(f"{commands[-1][0]} failed: {message.decode(errors='replace')[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, max(0, sum(peak.bytes() for peak in peaks) - idle))


def idle_memory(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Peak memory in bytes of a command that does nothing much."""
    with subprocess.Popen(command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        peak = _Peak(process.pid)
    return peak.bytes()


def fsync(path: Path) -> None:
    """Make the file durable: copying without that is only half the work."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Peak:
    """Watches the peak memory of another process until it ends."""

    def __init__(self, pid: int) -> None:
        self._pid, self._bytes = pid, 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                # The kernel keeps the peak, so only its growth in the last few milliseconds can be missed.
                now = _memory(str(self._pid), "VmHWM")
            except (OSError, ValueError):
                return
            self._bytes = max(self._bytes, now)
            time.sleep(_SAMPLE_SECONDS)

    def bytes(self) -> int:
        self._thread.join()
        return self._bytes


def _memory(process: str, field: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError("no such field: a process that has ended has no memory")
