"""`fewbits determinism`: do the answers repeat? Also `scripts/run_determinism_harness.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.cli.gate_output import add_gate_arguments, finish
from fewbits.cli.single import add_single_arguments, single_flags
from fewbits.core.errors import ExitCode

DEFAULT_OUTPUT = Path("benchmarks/results/determinism_report.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--task-bank", metavar="BANK", help="task bank file or named bank (default: the v2_realworld bank)")
    parser.add_argument("--runs", metavar="N", default="5", help="times each task is asked (5); one run shows nothing")
    parser.add_argument("--task-limit", metavar="N", help="ask only the first N selected tasks")
    parser.add_argument("--task-id-min", metavar="ID", help="smallest task id, inclusive")
    parser.add_argument("--task-id-max", metavar="ID", help="largest task id, inclusive")
    parser.add_argument("--bucket", metavar="LIST", help="task bucket(s): logic, refactor, structured_output, extraction")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="FILE", help=f"the report ({DEFAULT_OUTPUT})")
    parser.add_argument("--canary", action="store_true", help="one task: let the canary gate's judgement decide too")
    parser.add_argument(
        "--canary-latency-variance-threshold", metavar="CV", help="largest coefficient of variation of model time (0.03)"
    )
    parser.add_argument("--fresh", action="store_true", help="start over where an unfinished run could go on")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan and touch nothing")
    add_single_arguments(parser)
    add_gate_arguments(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Repeat, compare, report."""
    from fewbits.api import dry_run
    from fewbits.api.determinism import gate_determinism, prepare_harness, run_harness
    from fewbits.cli.progress import create_observer
    from fewbits.cli.sweep import print_dry_run

    own = {
        "runs_per_quant": arguments.runs,
        "task_bank": arguments.task_bank,
        "task_limit": arguments.task_limit,
        "task_id_min": arguments.task_id_min,
        "task_id_max": arguments.task_id_max,
        "buckets": arguments.bucket,
        "canary_latency_variance_threshold": arguments.canary_latency_variance_threshold,
    }
    flags = {**single_flags(arguments), **{key: value for key, value in own.items() if value is not None}}
    prepared = prepare_harness(flags, arguments.output)
    if arguments.dry_run:
        print_dry_run(dry_run(prepared), as_json=arguments.json)
        return ExitCode.OK
    observer = create_observer()
    try:
        report = run_harness(prepared, arguments.output, observer, fresh=arguments.fresh)
    finally:
        observer.close()
    rate = "not determinable" if report.determinism_rate is None else f"{report.determinism_rate:.1%}"
    line = f"{report.deterministic_tasks} of {report.determinable_tasks} determinable tasks repeat ({rate}); {arguments.output}"
    print(line, file=sys.stderr)
    return finish(gate_determinism(report, with_canary=arguments.canary, allow_skip=arguments.allow_skip), arguments)
