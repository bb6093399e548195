"""`fewbits frontier`: the frontier explorer artifact and its history. Also `scripts/quant_frontier_explorer.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.core.errors import ExitCode
from fewbits.store.history import DEFAULT_KEEP_LAST

STORAGE_ROOT = ".orket/durable/diagnostics/frontiers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--summary", type=Path, required=True, metavar="FILE", help="sweep_summary.json")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the artifact (default: frontier_explorer.json beside the summary)"
    )
    add_history_arguments(parser, STORAGE_ROOT)


def add_history_arguments(parser: argparse.ArgumentParser, storage_root: str) -> None:
    """Declare `--provenance-ref`, `--storage-root`, `--keep-last`, `--no-history` and `--json`."""
    parser.add_argument("--provenance-ref", default="", metavar="REF", help="free text naming the run, like local-run:manual")
    parser.add_argument(
        "--storage-root", type=Path, default=Path(storage_root), metavar="DIR", help=f"folder of the histories ({storage_root})"
    )
    parser.add_argument(
        "--keep-last",
        type=keep_count,
        default=DEFAULT_KEEP_LAST,
        metavar="N",
        help=f"artifacts kept per history ({DEFAULT_KEEP_LAST}); 0: all",
    )
    parser.add_argument("--no-history", action="store_true", help="write the artifact only")
    parser.add_argument("--json", action="store_true", help="print the artifact as JSON on stdout")


def keep_count(text: str) -> int:
    """Read how many artifacts are kept. Raises `ArgumentTypeError`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        msg = f"{text!r} is not a whole number of 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Write the artifact, append it, and print what it recommends."""
    from fewbits.api.explorer import Destination, explore_frontier
    from fewbits.core.codec import encode_pretty
    from fewbits.report.escape import visible

    out = arguments.out or arguments.summary.parent / "frontier_explorer.json"
    root = None if arguments.no_history else arguments.storage_root
    artifact, written = explore_frontier(
        arguments.summary, arguments.provenance_ref, Destination(out, root, arguments.keep_last or None)
    )
    if not artifact.summary_complete:
        print("fewbits frontier: trials of the plan are missing, so this may still change", file=sys.stderr)
    if arguments.json:
        sys.stdout.write(encode_pretty(artifact).decode())
        return ExitCode.OK
    for session in artifact.sessions:
        print(f"{visible(session.model_id)}: {visible(session.recommendation)}")
        print(f"  on the frontier: {visible(', '.join(session.pareto_quant_tags)) or 'nothing'}")
    for path in written:
        print(path)
    return ExitCode.OK
