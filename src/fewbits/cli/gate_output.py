"""What every gate command has in common: its flags, its output, its exit code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.core.errors import ExitCode
from fewbits.records.gates import GateReport, GateStatus

EXIT_CODES = "exit codes of this gate: 0 PASS (or SKIP with --allow-skip), 2 FAIL or unusable input, 3 SKIP not allowed"


def add_gate_arguments(parser: argparse.ArgumentParser, *, allow_skip: bool = True) -> None:
    """Declare `--json`, `--out`, `--junit` and `--allow-skip`."""
    parser.add_argument("--json", action="store_true", help="print the gate report as JSON on stdout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the gate report (JSON) here")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML for CI here")
    if allow_skip:
        parser.add_argument("--allow-skip", action="store_true", help="exit 0 although something could not be judged")


def finish(report: GateReport, arguments: argparse.Namespace) -> ExitCode:
    """Write what was asked for, print the answer with its evidence, and return the exit code."""
    from fewbits.core.codec import encode_pretty
    from fewbits.core.files import atomic_write
    from fewbits.report.junit import render_junit
    from fewbits.report.terminal_gates import render_gate

    if arguments.out is not None:
        atomic_write(arguments.out, encode_pretty(report))
    if arguments.junit is not None:
        atomic_write(arguments.junit, render_junit(report))
    sys.stdout.write(encode_pretty(report).decode() if arguments.json else render_gate(report))
    return exit_code(report)


def exit_code(report: GateReport) -> ExitCode:
    """Return 0 for PASS (and an allowed SKIP), 2 for FAIL, 3 for SKIP."""
    if report.status is GateStatus.FAIL:
        return ExitCode.FAILED_CHECK
    if report.status is GateStatus.SKIP and not report.allow_skip:
        return ExitCode.PREREQUISITE
    return ExitCode.OK
