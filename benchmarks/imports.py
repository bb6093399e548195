"""What starting costs: `import fewbits` and `fewbits --help` against an interpreter that does nothing."""

from __future__ import annotations

import statistics
import sys

from benchmarks.result import Result, judged, quartiles, timed_command

RUNS = 15
MAX_EXTRA_MS = 150.0
_NOTHING = (sys.executable, "-c", "pass")


def measure() -> list[Result]:
    """Alternate each with `python -c pass`."""
    return [
        _compare("python -c 'import fewbits' beyond python -c pass", (sys.executable, "-c", "import fewbits")),
        _compare("fewbits --help beyond python -c pass", (sys.executable, "-m", "fewbits", "--help")),
    ]


def _compare(name: str, command: tuple[str, ...]) -> Result:
    for argv in (_NOTHING, command):
        timed_command(argv)  # unmeasured: fills the page cache and the bytecode cache
    pairs: list[tuple[float, float]] = []
    for run in range(RUNS):
        if run % 2 == 0:
            nothing, ours = timed_command(_NOTHING)[0], timed_command(command)[0]
        else:
            ours, nothing = timed_command(command)[0], timed_command(_NOTHING)[0]
        pairs.append((1000.0 * nothing, 1000.0 * ours))
    extra = [ours - nothing for nothing, ours in pairs]
    first, third = quartiles(extra)
    medians = [statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
    note = (
        f"{medians[1]:.0f} ms against {medians[0]:.0f} ms ({medians[1] / medians[0]:.1f}x); "
        f"median difference of {RUNS} alternating runs, quartiles {first:.0f} to {third:.0f} ms"
    )
    return judged(name, statistics.median(extra), MAX_EXTRA_MS, "ms", note)
