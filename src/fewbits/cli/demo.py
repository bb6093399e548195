"""`fewbits demo`: the main job on the packaged model, with nothing to decide first."""

from __future__ import annotations

import argparse
from pathlib import Path

from fewbits.cli.sweep import sweep
from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's flags."""
    parser.add_argument("--out-dir", type=Path, help="where results go (default: runs/demo)")
    parser.add_argument("--fresh", action="store_true", help="start over; an earlier demo is kept in superseded/")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run and touch nothing")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Sweep the demo preset."""
    from fewbits.api import REPOSITORY_ROOT

    preset = REPOSITORY_ROOT / "benchmarks" / "configs" / "quant_sweep_demo.json"
    flags: dict[str, object] = {}
    if arguments.out_dir is not None:
        flags["out_dir"] = str(arguments.out_dir)
    return sweep(flags, preset, dry_run=arguments.dry_run, fresh=arguments.fresh, as_json=arguments.json)
