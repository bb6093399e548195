"""`fewbits summarize RUN`: the summary again, from the journal; also of a run that is not finished."""

from __future__ import annotations

import argparse
from pathlib import Path

from fewbits.cli.sweep import print_paths, print_summary
from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder (it holds plan.json and trials.jsonl)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Rebuild and write summary and reports, then print."""
    from fewbits import api
    from fewbits.store.run_directory import RunDirectory

    directory = RunDirectory(arguments.run)
    summary = api.write_results(directory)
    print_summary(summary, as_json=arguments.json)
    if not arguments.json:
        print_paths(directory.root, api.summary_path_of(directory))
    return ExitCode.OK
