"""``python -m demo``: the demo; ``python -m demo airflow``, ``… airflow-stop``: a standalone Airflow to look at."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from demo import DemoError, demo_folder, playground, round_trip
from demo.screen import Screen
from demo.service import only_one

_USAGE = "usage: python -m demo [airflow | airflow-stop]"


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 done, 1 failed, 2 bad usage, 128 + n stopped by signal n."""
    command = arguments[0] if arguments else "demo"
    if len(arguments) > 1 or command not in ("demo", "airflow", "airflow-stop"):
        return _bad_usage(_USAGE)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    folder, screen = demo_folder(), Screen()
    try:
        if command == "demo":
            megabytes = os.environ.get("DEMO_SIZE_MB", "300")
            if not (megabytes.isdecimal() and 2 <= int(megabytes) <= 100_000):
                return _bad_usage(f"DEMO_SIZE_MB={megabytes}: expected a whole number from 2 to 100000")
            with only_one(folder, "demo"):
                round_trip.run(folder / "shop", megabytes=int(megabytes), screen=screen)
        else:
            with only_one(folder, "airflow"):
                (playground.start if command == "airflow" else playground.stop)(folder / "airflow", screen)
    except (DemoError, OSError) as error:
        screen.error(f"Failed: {error}")
        return 1
    except KeyboardInterrupt:
        screen.error("Interrupted; nothing is left running.")
        return 128 + signal.SIGINT
    return 0


def _bad_usage(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _stop(number: int, _frame: FrameType | None) -> None:
    """Leave by way of every `finally`."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
