"""`fewbits engine`: which llama.cpp is used, and building the full tool set from source."""

from __future__ import annotations

import argparse
import json
import sys

from fewbits.core.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags and sub-commands."""
    parser.add_argument("--json", action="store_true", help="print as JSON on stdout")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("show", help="list the tools found (the default)")
    build = actions.add_parser(
        "build", help="compile llama.cpp's tools into the cache (about 12 CPU-minutes; cmake and a C++ compiler)"
    )
    build.add_argument("--jobs", type=int, metavar="N", help="compile jobs at once (default: every core this process may use)")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Show, or build and then show."""
    if arguments.action == "build":
        _build(arguments.jobs)
    _show(as_json=arguments.json)
    return ExitCode.OK


def _build(jobs: int | None) -> None:
    from fewbits.core.errors import SpecError
    from fewbits.quantizers.llamacpp.build import build_from_source
    from fewbits.store.artifacts import ArtifactCache

    if jobs is not None and jobs < 1:
        raise SpecError.single("--jobs", f"{jobs} is not a number of jobs", "give 1 or more")
    build_from_source(ArtifactCache(), lambda line: print(line, file=sys.stderr, flush=True), jobs=jobs)


def _show(*, as_json: bool) -> None:
    from fewbits.core.engines import LLAMA_CPP, find_tools

    found = find_tools()
    if as_json:
        rows = {
            name: None
            if tool is None
            else {"kind": tool.kind, "path": str(tool.path), "version": tool.version, "sha256": tool.sha256}
            for name, tool in found.items()
        }
        print(json.dumps(rows, indent=2, sort_keys=True))
        return
    width = max(map(len, found))
    for name, tool in found.items():
        if tool is None:
            print(f"{name:<{width}}  not found")
        else:
            print(
                f"{name:<{width}}  {tool.kind:<6}  {tool.version or 'version not told'}  sha256 {tool.sha256[:12]}  {tool.path}"
            )
    print(f"\nlooked in: {LLAMA_CPP.folder_variable}, tool sets built by `fewbits engine build`, PATH, installed wheels")
    if any(tool is None for tool in found.values()):
        print("A sweep needs llama-server and llama-quantize only; `fewbits engine build` compiles the full set.")
