"""`fewbits sweep`: the main job. Also `scripts/run_quant_sweep.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from fewbits.cli.progress import create_observer
from fewbits.core.errors import ExitCode
from fewbits.records.summary import SweepSummary
from fewbits.spec.flags import add_sweep_arguments, explicit_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sweep's flags."""
    add_sweep_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan and touch nothing")
    parser.add_argument("--fresh", action="store_true", help="start over; an earlier run in the folder is kept in superseded/")
    parser.add_argument("--json", action="store_true", help="print the summary (or the dry-run document) as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Plan, run, summarise, print."""
    flags = explicit_flags(arguments)
    return sweep(flags, arguments.matrix_config, dry_run=arguments.dry_run, fresh=arguments.fresh, as_json=arguments.json)


def sweep(flags: Mapping[str, object], matrix: Path | None, *, dry_run: bool, fresh: bool, as_json: bool) -> ExitCode:
    """Do what `fewbits sweep` does, from already parsed flags."""
    from fewbits import api

    prepared = api.prepare_sweep(flags, matrix)
    if dry_run:
        print_dry_run(api.dry_run(prepared), as_json=as_json)
        return ExitCode.OK
    observer = create_observer()
    try:
        summary = api.run_sweep(prepared, observer, fresh=fresh)
    finally:
        observer.close()
    print_summary(summary, as_json=as_json)
    if not as_json:
        print_paths(prepared.directory.root, api.summary_path_of(prepared.directory))
    return ExitCode.OK


def print_dry_run(document: dict[str, object], *, as_json: bool) -> None:
    """Print the resolved plan."""
    if as_json:
        print(json.dumps({"dry_run": document}, indent=2, sort_keys=True))
        return
    from rich.console import Console

    from fewbits.report.terminal import render_dry_run

    Console().print(render_dry_run(document))


def print_summary(summary: SweepSummary, *, as_json: bool) -> None:
    """Print the recommendation and its table, or the whole summary as JSON."""
    if as_json:
        from fewbits.core.codec import encode_pretty

        sys.stdout.write(encode_pretty(summary).decode())
        return
    from rich.console import Console

    from fewbits.report.terminal import render_terminal

    console = Console()
    console.print(render_terminal(summary, console.width))


def print_paths(root: Path, summary_path: Path) -> None:
    """Say where the results lie."""
    print(f"report   {root / 'sweep_report.md'}")
    print(f"summary  {summary_path}")
    print(f"journal  {root / 'trials.jsonl'}   (fewbits verify {root})")
