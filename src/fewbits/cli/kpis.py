"""`fewbits kpis`: report, check, trend. Also `scripts/quant_sweep_kpi_report.py` and `scripts/check_quant_sweep_kpis.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.cli.gate_output import add_gate_arguments, finish
from fewbits.cli.numbers import at_least_one, share
from fewbits.core.errors import ExitCode

DEFAULT_TREND_ROOT = Path(".orket/durable/diagnostics/kpi_trend")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    report = actions.add_parser("report", help="extract the stability KPIs of a summary", allow_abbrev=False)
    report.add_argument("--summary", type=Path, required=True, metavar="FILE", help="sweep_summary.json")
    report.add_argument("--out", type=Path, metavar="FILE", help="write the KPI report (JSON) here")
    report.add_argument("--json", action="store_true", help="print the KPI report as JSON on stdout")
    _add_check(actions.add_parser("check", help="hold the KPIs against limits (0 PASS, 2 FAIL, 3 SKIP)", allow_abbrev=False))
    _add_trend(actions.add_parser("trend", help="compare a night's KPIs with the nights before it", allow_abbrev=False))


def _add_check(check: argparse.ArgumentParser) -> None:
    check.add_argument("--summary", type=Path, required=True, metavar="FILE", help="sweep_summary.json")
    for flag, default, words in (
        ("--max-missing-telemetry-rate", 0.01, "largest share of replies without token counts or timings"),
        ("--max-polluted-run-rate", 0.1, "largest share of polluted trials, whatever the operator let in"),
        ("--min-frontier-success-rate", 0.8, "smallest share of sessions with a strictly eligible row"),
        ("--min-determinism-rate", 1.0, "smallest share of repeated cells with the same output"),
    ):
        check.add_argument(flag, type=share, default=default, metavar="SHARE", help=f"{words}, 0..1 ({default:g})")
    add_gate_arguments(check)


def _add_trend(trend: argparse.ArgumentParser) -> None:
    trend.add_argument("--kpis", type=Path, required=True, metavar="FILE", help="this night's report, from `fewbits kpis report`")
    trend.add_argument("--storage-root", type=Path, default=DEFAULT_TREND_ROOT, metavar="DIR", help="history of the nights")
    trend.add_argument("--window", type=at_least_one, default=7, metavar="N", help="how many earlier nights count (7)")
    trend.add_argument(
        "--max-worsening", type=share, default=0.05, metavar="SHARE", help="how much worse than their median a KPI may be (0.05)"
    )
    trend.add_argument("--keep-last", type=at_least_one, default=90, metavar="N", help="nights that the history keeps (90)")
    add_gate_arguments(trend)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Report, check, or follow the trend."""
    if arguments.action == "report":
        return _report(arguments)
    return _check(arguments) if arguments.action == "check" else _trend(arguments)


def _report(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.gates import report_kpis
    from fewbits.core.codec import encode_pretty
    from fewbits.core.files import atomic_write
    from fewbits.report.terminal_gates import render_kpis

    report = report_kpis(arguments.summary)
    if arguments.out is not None:
        atomic_write(arguments.out, encode_pretty(report))
    sys.stdout.write(encode_pretty(report).decode() if arguments.json else render_kpis(report))
    return ExitCode.OK


def _check(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.analysis.kpis import KpiLimits
    from fewbits.api.gates import gate_kpis

    limits = KpiLimits(
        max_missing_telemetry_rate=arguments.max_missing_telemetry_rate,
        max_polluted_run_rate=arguments.max_polluted_run_rate,
        min_frontier_success_rate=arguments.min_frontier_success_rate,
        min_determinism_rate=arguments.min_determinism_rate,
    )
    return finish(gate_kpis(arguments.summary, limits, allow_skip=arguments.allow_skip), arguments)


def _trend(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.gates import follow_kpis

    report = follow_kpis(
        arguments.kpis,
        arguments.storage_root,
        window=arguments.window,
        max_worsening=arguments.max_worsening,
        keep_last=arguments.keep_last,
        allow_skip=arguments.allow_skip,
    )
    return finish(report, arguments)
