"""`fewbits extract samples`: lab reports drawn from a seed, with their labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from fewbits.core.errors import ExitCode, SpecError

SAMPLES = "data/samples"
_LEVELS = "clean,scan,fax,photo"


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    action.add_argument("--output", type=Path, default=Path(SAMPLES), metavar="DIR", help=f"a new or empty folder ({SAMPLES})")
    action.add_argument("--count", type=int, default=8, metavar="N", help="pages in all, the levels in turn (8)")
    action.add_argument("--levels", default=_LEVELS, metavar="LIST", help=f"how hard the pages are ({_LEVELS})")
    action.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same pages (0)")
    action.add_argument(
        "--split", default="samples", metavar="NAME", help="what the pages are for; no two splits share a page (samples)"
    )


def run(arguments: argparse.Namespace) -> ExitCode:
    """Draw the pages and say where they lie."""
    from fewbits.records.extraction import Level
    from fewbits.workloads.extraction.generator.samples import generate_pages

    words = [word.strip().lower() for word in arguments.levels.split(",") if word.strip()]
    known = {level.value: level for level in Level}
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        hint = f"choose from {', '.join(known)}"
        raise SpecError.single("--levels", f"there is no level {unknown[0]!r}" if unknown else "names no level", hint)
    levels = tuple(dict.fromkeys(known[word] for word in words))
    if arguments.count < 1:
        raise SpecError.single("--count", f"{arguments.count} is not a number of pages", "at least 1")
    made = generate_pages(
        arguments.output, seed=arguments.seed, count=arguments.count, levels=levels, split=arguments.split, name="lab reports"
    )
    print(f"{len(made.pages)} pages with labels.json in {arguments.output}")
    return ExitCode.OK
