"""`fewbits report`: a summary as Markdown, picture and scatter JSON. Also `scripts/render_quant_sweep_report.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--summary", type=Path, required=True, metavar="FILE", help="sweep_summary.json")
    parser.add_argument(
        "--out-md", type=Path, metavar="FILE", help="Markdown report (default: sweep_report.md beside the summary)"
    )
    parser.add_argument(
        "--out-scatter", type=Path, metavar="FILE", help="scatter JSON (default: sweep_scatter.json beside the summary)"
    )
    parser.add_argument("--include-invalid", action="store_true", help="draw polluted and invalid rows too")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Read a summary and write its reports."""
    from fewbits import api
    from fewbits.store.summaries import read_summary

    source: Path = arguments.summary
    summary = read_summary(source).summary
    written = api.render_report(
        summary,
        str(source),
        arguments.out_md or source.parent / "sweep_report.md",
        arguments.out_scatter or source.parent / "sweep_scatter.json",
        include_invalid=arguments.include_invalid,
    )
    for path in written:
        print(path)
    return ExitCode.OK
