"""`fewbits bank`: check a task bank, or print the JSON Schema that banks follow."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from fewbits.core.errors import ExitCode, SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    validate = actions.add_parser("validate", help="check shape, ids, checks, reference answers and wrong answers")
    validate.add_argument("bank", metavar="BANK", help="tasks.json, or a named bank such as reasoning-gym:leg_counting")
    actions.add_parser("schema", help="print the JSON Schema of task banks")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Validate a bank or print the schema."""
    from fewbits.workloads.text import bank as banks
    from fewbits.workloads.text.named_banks import open_bank

    if arguments.action == "schema":
        print(json.dumps(banks.export_schema(), indent=2, sort_keys=True))
        return ExitCode.OK
    loaded = open_bank(arguments.bank)
    problems = banks.validate_bank(loaded.bank)
    if problems:
        raise SpecError(problems)
    tasks = loaded.bank.tasks
    buckets = Counter(task.bucket.value for task in tasks)
    tiers = Counter(task.tier for task in tasks)
    print(f"PASS: {len(tasks)} tasks, sha256 {loaded.digest[:12]}")
    print("  buckets  " + ", ".join(f"{name} {count}" for name, count in sorted(buckets.items())))
    print("  tiers    " + ", ".join(f"{tier}: {count}" for tier, count in sorted(tiers.items())))
    return ExitCode.OK
