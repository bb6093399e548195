"""Run the benchmarks and print one table: `python -m benchmarks.run [--only NAME] [--json]`.

The exit code is 0 unless a benchmark broke: a MISS is printed, not failed, because shared machines are noisy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence

from benchmarks.result import Outcome, Result, notice
from fewbits.core.codec import to_builtins
from fewbits.core.engines import EngineTool, find_tool
from fewbits.core.errors import FewbitsError, PrerequisiteError
from fewbits.probes.machine import cpu_name, usable_cores

BENCHMARKS = (
    "imports",
    "resume",
    "overhead",
    "throughput",
    "summary",
    "verdicts",
    "divergence",
    "pollution",
    "ladder",
    "slo",
    "sensitivity",
    "recipes",
    "detection",
)
_TOOLS = ("llama-server", "llama-quantize", "llama-bench", "llama-perplexity")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure the claims about speed, here.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one (may be given more than once)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args(argv)
    results: list[Result] = []
    for name in arguments.only or BENCHMARKS:
        notice(f"{name} ...")
        results += _run(name)
    if arguments.json:
        print(json.dumps({"machine": machine(), "results": to_builtins(results)}, indent=2, sort_keys=True))
    else:
        print(table(results))
        print(f"\n{machine()}")
    return 1 if any(result.outcome is Outcome.ERROR for result in results) else 0


def _run(name: str) -> list[Result]:
    """Run one benchmark; what it lacks is a SKIP with the remedy, what breaks is an ERROR, and the others still run."""
    measure: Callable[[], list[Result]] = importlib.import_module(f"benchmarks.{name}").measure
    try:
        return measure()
    except PrerequisiteError as error:
        return [_without_number(name, Outcome.SKIP, str(error))]
    except FewbitsError as error:
        return [_without_number(name, Outcome.ERROR, str(error).splitlines()[0])]  # an engine's log tail follows
    except Exception as error:  # noqa: BLE001 - one broken benchmark must not hide what the others measured
        traceback.print_exc()
        return [_without_number(name, Outcome.ERROR, f"{type(error).__name__}: {error}")]


def _without_number(name: str, outcome: Outcome, why: str) -> Result:
    return Result(name=name, measured=None, limit=None, unit="", outcome=outcome, note=why)


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| claim | measured | limit | | how |", "|---|---:|---:|---|---|"]
    for result in results:
        sign = ">=" if result.at_least else "<="
        limit = f"{sign} {_amount(result.limit, result.unit)}" if result.limit is not None else "-"
        note = " ".join(result.note.replace("|", "\\|").split())
        lines.append(f"| {result.name} | {_amount(result.measured, result.unit)} | {limit} | {result.outcome} | {note} |")
    return "\n".join(lines)


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}"


def machine() -> str:
    """CPU, usable cores, and the version of each engine tool that was used."""
    tools = "; ".join(_describe(name) for name in _TOOLS)
    return f"Machine: {cpu_name()}, {len(usable_cores())} cores. {tools}."


def _describe(name: str) -> str:
    try:
        tool: EngineTool | None = find_tool(name)
    except PrerequisiteError:
        tool = None
    return f"{name}: {tool.kind} {tool.version or tool.sha256[:12]}" if tool is not None else f"{name}: none"


if __name__ == "__main__":
    sys.exit(main())
