"""`fewbits models`: packaged models that need no account and no hub."""

from __future__ import annotations

import argparse
import json
import sys

from fewbits.core.errors import ExitCode
from fewbits.core.units import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's sub-commands."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON on stdout")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("list", help="what there is, and what is in the cache (the default)")
    fetch = actions.add_parser("fetch", help="fetch one into the cache and check its sha256")
    fetch.add_argument("name", metavar="NAME", help="a name from the list")
    fetch.add_argument("--accept-unlicensed", action="store_true", help="accept a model whose packages carry no licence file")


def run(arguments: argparse.Namespace) -> ExitCode:
    """List, or fetch one."""
    if arguments.action == "fetch":
        return _fetch(arguments.name, accept=arguments.accept_unlicensed)
    return _list(as_json=arguments.json)


def _fetch(name: str, *, accept: bool) -> ExitCode:
    from fewbits.quantizers.llamacpp.models import fetch_model
    from fewbits.store.artifacts import ArtifactCache

    print(fetch_model(name, ArtifactCache(), lambda line: print(line, file=sys.stderr, flush=True), accept_unlicensed=accept))
    return ExitCode.OK


def _list(*, as_json: bool) -> ExitCode:
    from fewbits.quantizers.llamacpp.models import PACKAGED_MODELS
    from fewbits.quantizers.packaged_files import find_fetched
    from fewbits.store.artifacts import ArtifactCache

    cache = ArtifactCache()
    rows = [
        {
            "name": model.name,
            "scheme": model.scheme,
            "bytes": model.bytes,
            "sha256": model.sha256,
            "licence": model.licence or None,
            "about": model.about,
            "path": str(path) if (path := find_fetched(cache, model, cache.digest_of)) else None,
        }
        for model in PACKAGED_MODELS.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return ExitCode.OK
    for model, row in zip(PACKAGED_MODELS.values(), rows, strict=True):
        state = "in the cache" if row["path"] else "not fetched"
        licence = model.licence or "no licence file"
        print(f"{model.name:<20} {model.scheme:<7} {format_bytes(model.bytes):>10}  {licence:<15} {state}")
        print(f"  {model.about}")
    return ExitCode.OK
