"""`fewbits verify RUN`: does the summary say what the journal says, to the byte?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder (it holds plan.json and trials.jsonl)")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON on stdout")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Rebuild, compare, say PASS or FAIL."""
    from fewbits import api
    from fewbits.store.run_directory import RunDirectory

    same, evidence = api.verify_run(RunDirectory(arguments.run))
    status = "PASS" if same else "FAIL"
    print(json.dumps({"status": status, "evidence": evidence}) if arguments.json else f"{status}: {evidence}")
    return ExitCode.OK if same else ExitCode.FAILED_CHECK
