"""`fewbits extract label`: a labelled set started from what an engine reads, for a person to correct."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fewbits.core.errors import ExitCode


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from fewbits.cli.extract import add_engine_arguments

    action.add_argument("folder", type=Path, metavar="DIR", help="folder of pages; labels.json is written there")
    action.add_argument("--name", metavar="NAME", help="of the set (the folder's name)")
    add_engine_arguments(action.add_argument_group("engine"))


def run(arguments: argparse.Namespace) -> ExitCode:
    """Write the labels and say what a person has to do now."""
    from fewbits.api.extract_label import label_folder
    from fewbits.cli.extract import read_request

    request = read_request(arguments, (arguments.folder,))
    path, found = label_folder(
        request, arguments.folder, arguments.name, lambda message: print(message, file=sys.stderr, flush=True)
    )
    empty = sum(not page.truth.tests for page in found.pages)
    print(f"{path}: {len(found.pages)} pages, {empty} of them without a test that could be read.")
    print('Compare each with its page, correct it, and set "verified" to true: until then it is a prediction, not a truth.')
    return ExitCode.OK
