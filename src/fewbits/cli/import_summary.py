"""`fewbits import OLD --out NEW`: convert a summary of the older 1.1.x shape, so that gates and reports accept it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("old", type=Path, metavar="OLD", help="sweep_summary.json of schema 1.1.x")
    parser.add_argument("--out", type=Path, required=True, metavar="NEW", help="where the converted summary is written")
    parser.add_argument("--json", action="store_true", help="print the converted summary as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Convert, write, and say what could not be taken over."""
    from fewbits.api.import_summary import import_summary
    from fewbits.core.codec import encode_pretty
    from fewbits.report.escape import visible

    summary = import_summary(arguments.old, arguments.out)
    origin = summary.provenance.imported_from
    if arguments.json or origin is None:
        sys.stdout.write(encode_pretty(summary).decode())
        return ExitCode.OK
    print(f"{arguments.out}  (schema {summary.schema_version}, from schema {origin.schema_version})")
    print("Read before using the numbers:")
    for note in origin.notes:
        print(f"- {visible(note)}")
    return ExitCode.OK
