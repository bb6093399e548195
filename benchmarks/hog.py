"""A CPU hog that comes and goes, and writes down when: `python -m benchmarks.hog SEED`. Ends when its stdin is closed.

Each line on stdout is one busy spell: `start end` on the system-wide monotonic clock, seconds.
"""

from __future__ import annotations

import random
import select
import sys
import time

BUSY_SECONDS, QUIET_SECONDS = (0.2, 2.0), (1.0, 3.0)


def main() -> None:
    """Alternate until told to stop."""
    rng = random.Random(int(sys.argv[1]))
    while not _told_to_stop(rng.uniform(*QUIET_SECONDS)):
        start = time.monotonic()
        end = start + rng.uniform(*BUSY_SECONDS)
        while time.monotonic() < end:
            sum(range(2000))
        print(start, time.monotonic(), flush=True)


def _told_to_stop(seconds: float) -> bool:
    """Wait, asleep; true when stdin was closed meanwhile."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    main()
