"""`fewbits schema`: the published JSON Schemas, and whether files follow them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.cli.gate_output import EXIT_CODES, add_gate_arguments, finish
from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the schemas")
    show = actions.add_parser("show", help="print one schema")
    show.add_argument("name", metavar="NAME", help="a name from the list, or the schema_version of a document")
    check = actions.add_parser("check", help="check files against the schema that each one declares", epilog=EXIT_CODES)
    check.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="JSON documents; .jsonl files are checked line by line"
    )
    add_gate_arguments(check, allow_skip=False)
    write = actions.add_parser("write", help="write every schema into a folder")
    write.add_argument("folder", type=Path, metavar="DIR", help="NAME.schema.json is written there for each")


def run(arguments: argparse.Namespace) -> ExitCode:
    """List, show, check or write."""
    from fewbits.api import schemas
    from fewbits.core.codec import encode_pretty

    if arguments.action == "check":
        return finish(schemas.check_files(arguments.files), arguments)
    if arguments.action == "show":
        sys.stdout.write(encode_pretty(schemas.export_schema(schemas.find(arguments.name))).decode())
    elif arguments.action == "write":
        for path in schemas.write_schemas(arguments.folder):
            print(path)
    else:
        width = max(map(len, schemas.PUBLISHED))
        for published in schemas.PUBLISHED.values():
            print(f"{published.name:<{width}}  {published.title}")
    return ExitCode.OK
