"""`fewbits recipe`: a type for every tensor of a GGUF under a size budget, searched, built, and proved."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import ExitCode

if TYPE_CHECKING:
    from fewbits.api.recipe_request import RecipeRequest
    from fewbits.records.recipe import RecipeManifest

_EPILOG = """\
exit codes:
  0    the file was made and a recommendation given, for the recipe or for the stock file
  1    an engine failed, or an unexpected error
  2    the input is unusable, or the budget is too small for any recipe
  3    a prerequisite is missing (an engine, an extra, llama.cpp's own tools for importance matrices)
  130  interrupted; the same command goes on where it stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="a GGUF file (best: F16, BF16 or F32), or a packaged model")
    _add_budget(parser)
    _add_search(parser)
    _add_proof(parser)
    group = parser.add_argument_group("running")
    group.add_argument("--out-dir", type=Path, metavar="DIR", help="folder of the results (recipes/<model>/<budget>)")
    group.add_argument("--fresh", action="store_true", help="start over; an earlier recipe is kept in superseded/")
    group.add_argument("--threads", type=int, metavar="N", help="compute threads (default: all cores of this process)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of resampling and of the tasks (0)")
    group.add_argument("--dry-run", action="store_true", help="print groups, candidates, budgets and sizes; touch nothing")
    group.add_argument("--json", action="store_true", help="print the manifest (several: a list) as JSON on stdout")


def _add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("budget")
    group.add_argument(
        "--like", type=_words, default=(), metavar="TAG[,TAG]", help="no larger than this stock file, and better than it"
    )
    group.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="SIZE",
        help="5.0bpw (bits per weight over all weights), or a file size: 700MB, 1.2GiB; may be repeated",
    )
    group.add_argument(
        "--from", dest="recipe", type=Path, metavar="FILE", help="build and prove this recipe.json, search nothing"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--bands", type=int, default=5, metavar="N", help="bands of depth that share a type (5); 0: every layer alone"
    )
    group.add_argument("--types", type=_types, default=(), metavar="LIST", help="candidate ggml types, such as Q4_0,Q5_1,Q8_0")
    group.add_argument(
        "--source-grid",
        choices=("exclude", "allow"),
        default="exclude",
        help="types on the grid of an already quantized source: lossless by construction, so no candidates (exclude)",
    )
    group.add_argument(
        "--off-grid",
        type=int,
        metavar="SEED",
        help="take a quantized source off its grid first: to compare types, not to use the file",
    )
    group.add_argument("--probe-text", metavar="FILE", help="text that types are chosen on (python-topics/probe)")
    group.add_argument("--probe-windows", type=int, default=16, metavar="N", help="windows of it that a probe reads at most (16)")
    group.add_argument(
        "--window-tokens", type=int, default=256, metavar="N", help="tokens per window; the second half is scored (256)"
    )
    group.add_argument(
        "--scores", type=Path, nargs="+", default=[], metavar="MANIFEST", help="sensitivity manifests instead of probes"
    )
    group.add_argument("--imatrix", type=Path, metavar="FILE", help="importance matrix for recipe and stock file")
    group.add_argument(
        "--calibrate", metavar="TEXT", help="make the importance matrix from this text (python-topics/calibration)"
    )


def _add_proof(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("proof")
    group.add_argument("--held-out-text", metavar="FILE", help="text that files are judged on (python-topics/held-out)")
    group.add_argument("--held-out-windows", type=int, default=48, metavar="N", help="windows of it (48)")
    group.add_argument("--tasks", metavar="BANK", help="task bank that recipe and stock file are compared on; none: no tasks")
    group.add_argument("--task-limit", type=int, default=60, metavar="N", help="the first N of its tasks (60); 0: all")


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _types(text: str) -> tuple[str, ...]:
    return tuple(word.upper().replace("-", "_") for word in _words(text))


def run(arguments: argparse.Namespace) -> ExitCode:
    """Make the recipes and print the result."""
    from fewbits.api.recipe import make_recipe
    from fewbits.api.recipe_plan import dry_run_recipe
    from fewbits.cli.progress import create_observer

    request = request_of(arguments)
    if arguments.dry_run:
        _print_dry_run(dry_run_recipe(request), as_json=arguments.json)
        return ExitCode.OK
    observer = create_observer()
    try:
        manifests = make_recipe(request, observer)
    finally:
        observer.close()
    _print(request, manifests, as_json=arguments.json)
    return ExitCode.OK


def request_of(arguments: argparse.Namespace) -> RecipeRequest:
    """Read the flags into a request."""
    from fewbits.api.recipe_request import RecipeRequest, SourceGrid

    given = {name: value for name in ("probe_text", "held_out_text", "tasks") if (value := getattr(arguments, name)) is not None}
    return RecipeRequest(
        model=arguments.model,
        like=arguments.like,
        budgets=tuple(arguments.budget),
        out_dir=arguments.out_dir,
        fresh=arguments.fresh,
        bands=arguments.bands,
        types=arguments.types,
        source_grid=SourceGrid(arguments.source_grid),
        off_grid_seed=arguments.off_grid,
        imatrix=arguments.imatrix,
        calibration_text=arguments.calibrate,
        probe_windows=arguments.probe_windows,
        held_out_windows=arguments.held_out_windows,
        window_tokens=arguments.window_tokens,
        scores=tuple(arguments.scores),
        recipe=arguments.recipe,
        task_limit=arguments.task_limit,
        threads=arguments.threads,
        seed=arguments.seed,
        **given,
    )


def _print(request: RecipeRequest, manifests: tuple[RecipeManifest, ...], *, as_json: bool) -> None:
    if as_json:
        from fewbits.core.codec import encode_pretty

        sys.stdout.write(encode_pretty(manifests[0] if len(manifests) == 1 else list(manifests)).decode())
        return
    from fewbits.api.recipe_request import check_request
    from fewbits.report.recipe import render_recipe_text

    checked = check_request(request)
    for budget, manifest in zip(checked.budgets, manifests, strict=True):
        sys.stdout.write(render_recipe_text(manifest, str(checked.folder_of(budget))))


def _print_dry_run(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"dry_run": document}, indent=2, sort_keys=True))
        return
    from fewbits.report.recipe import render_dry_run_text

    sys.stdout.write(render_dry_run_text(document))
