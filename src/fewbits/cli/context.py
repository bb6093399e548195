"""`fewbits context`: how much context is safe. Also `scripts/run_context_sweep.py` (`fewbits context sweep`)."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.cli.frontier import add_history_arguments
from fewbits.cli.gate_output import EXIT_CODES, add_gate_arguments, finish
from fewbits.cli.numbers import at_least_one, finite
from fewbits.core.errors import ExitCode, SpecError

if TYPE_CHECKING:
    from fewbits.api.context_artifacts import CeilingRequest
    from fewbits.records.context import ContextThresholds

OUT_DIR = "benchmarks/results/context_sweep"
STORAGE_ROOT = ".orket/durable/diagnostics/context_ceilings"
PROFILES = "benchmarks/configs/context_profiles.json"
SUMMARY_TEMPLATE = f"{OUT_DIR}/context_{{context}}_summary.json"
MAX_CONTEXTS = 32
_OFF = "none"
_UNSET = object()
_SWEEP_SETTINGS = (
    "models",
    "quants",
    "task_bank",
    "runs_per_quant",
    "runtime",
    "base_url",
    "script",
    "runtime_target",
    "execution_mode",
    "execution_lane",
    "vram_profile",
    "trial_timeout_seconds",
    "load_timeout_seconds",
    "control_profile",
    "seed",
    "threads",
    "affinity_policy",
    "warmup_steps",
    "temperature",
    "max_tokens",
    "batch_size",
    "canary_runs",
    "include_invalid",
    "rerun_budget_ratio",
    "rerun_max_attempts",
    "row_max_polluted_rate",
    "row_max_missing_telemetry_rate",
    "row_max_orchestration_overhead_ratio",
    "guard",
    "cooldown_target_c",
    "cooldown_timeout_seconds",
    "max_throttle_events",
)
"""Settings of an ordinary sweep that each context's sweep takes over. The others are the context sweep's own business."""
_SWEEP_EXIT_CODES = """\
exit codes:
  0    the artifacts were written, whatever the ceiling is
  1    no context could be run at all (the artifacts say why), or an unexpected error
  2    the input is unusable, or the live guard stopped the sweep
  3    a prerequisite is missing (an engine, a server, an extra)
  130  interrupted; the same command continues"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{sweep,ceiling,rollup,check}")
    _add_sweep(_sub_command(actions, "sweep", "measure each context and find the largest safe one", _SWEEP_EXIT_CODES))
    _add_ceiling(_sub_command(actions, "ceiling", "find the ceiling in recorded summaries; needs no engine", ""))
    _add_rollup(_sub_command(actions, "rollup", "count what passed", ""))
    _add_check(_sub_command(actions, "check", "check ceiling, rollup, summaries and profiles against each other", EXIT_CODES))


def _sub_command(actions: Any, name: str, line: str, epilog: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = actions.add_parser(
        name,
        help=line,
        description=f"{line[0].upper()}{line[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return made


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_contexts(parser)
    _add_limits(parser)
    parser.add_argument(
        "--depths", type=_depths, default=(0.1, 0.5, 0.9), metavar="LIST", help="where facts stand, 0 to 1 (0.1,0.5,0.9)"
    )
    parser.add_argument(
        "--tasks-per-depth", type=at_least_one, default=4, metavar="N", help="recall and extraction tasks per depth (4)"
    )
    parser.add_argument("--out-dir", type=Path, default=Path(OUT_DIR), metavar="DIR", help=f"folder of the sweep ({OUT_DIR})")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run and touch nothing")
    parser.add_argument("--fresh", action="store_true", help="start over; earlier runs are kept in superseded/")
    add_history_arguments(parser, STORAGE_ROOT)
    _add_sweep_settings(parser)


def _add_sweep_settings(parser: argparse.ArgumentParser) -> None:
    """Declare the chosen flags of an ordinary sweep, as `fewbits sweep` has them."""
    from fewbits.spec.flags import add_chosen_arguments

    group = parser.add_argument_group("settings of each context's sweep", "as for fewbits sweep")
    add_chosen_arguments(group, _SWEEP_SETTINGS)


def _add_contexts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contexts", type=_contexts, metavar="LIST", help="context sizes in tokens (default: the profile's)")
    parser.add_argument("--context-profile", metavar="NAME", help="named contexts and limits (default: the VRAM profile's name)")
    parser.add_argument("--context-profiles-config", default=PROFILES, metavar="FILE", help=f"the profiles ({PROFILES})")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits", f"each replaces the profile's; '{_OFF}' switches one off")
    for flag, words in (
        ("--adherence-min", "smallest mean adherence, 0 to 1"),
        ("--adherence-retention-min", "smallest adherence as a share of the smallest context's"),
        ("--ttft-ceiling-ms", "largest median time to first token, milliseconds"),
        ("--decode-floor-tps", "smallest decode rate, tokens per second"),
    ):
        group.add_argument(flag, type=_limit, default=_UNSET, metavar="VALUE", help=words)


def _add_ceiling(parser: argparse.ArgumentParser) -> None:
    _add_contexts(parser)
    _add_limits(parser)
    parser.add_argument(
        "--summary-template", default=SUMMARY_TEMPLATE, metavar="PATH", help=f"where the summaries lie ({SUMMARY_TEMPLATE})"
    )
    parser.add_argument(
        "--run-template",
        metavar="PATH",
        help="also read the trials: the run folders, such as out/context_{context} (else depths and fill stay unknown)",
    )
    parser.add_argument("--model-id", metavar="MODEL", help="only this model of the summaries")
    parser.add_argument("--quant-tags", type=_words, default=(), metavar="LIST", help="only these variants")
    parser.add_argument("--include-invalid", action="store_true", help="let points pass whose row is not valid")
    parser.add_argument("--provenance-ref", default="", metavar="REF", help="free text naming the run, like local-run:manual")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the artifact, such as context_ceiling.json")
    parser.add_argument("--json", action="store_true", help="print the artifact as JSON on stdout")


def _add_rollup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context-ceiling", type=Path, required=True, metavar="FILE", help="context_ceiling.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the rollup, such as context_sweep_rollup.json")
    parser.add_argument("--json", action="store_true", help="print the rollup as JSON on stdout")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context-ceiling", type=Path, required=True, metavar="FILE", help="context_ceiling.json")
    parser.add_argument("--rollup", type=Path, required=True, metavar="FILE", help="context_sweep_rollup.json")
    parser.add_argument(
        "--contexts", type=_contexts, metavar="LIST", help="contexts that must be there (default: the artifact's)"
    )
    parser.add_argument(
        "--summary-template", metavar="PATH", help="where the summaries lie now, with {context} (default: as recorded)"
    )
    parser.add_argument("--context-profiles-config", default=PROFILES, metavar="FILE", help=f"the profiles ({PROFILES})")
    add_gate_arguments(parser, allow_skip=False)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what the sub-command says."""
    return {"sweep": _sweep, "ceiling": _ceiling, "rollup": _rollup, "check": _check}[arguments.action](arguments)


def _sweep(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api import context as contexts
    from fewbits.api.explorer import Destination
    from fewbits.cli.progress import create_observer
    from fewbits.core.codec import encode_pretty

    flags = {key: getattr(arguments, key) for key in _SWEEP_SETTINGS if hasattr(arguments, key)}
    by_memory = ("--vram-profile", str(flags.get("vram_profile", "safe")))
    ceiling = _ceiling_request(arguments, by_memory, arguments.out_dir, include_invalid=bool(flags.get("include_invalid", False)))
    root = None if arguments.no_history else arguments.storage_root
    request = contexts.ContextRequest(
        flags=flags,
        ceiling=ceiling,
        depths=arguments.depths,
        tasks_per_depth=arguments.tasks_per_depth,
        out_dir=arguments.out_dir,
        history=Destination(ceiling.out, root, arguments.keep_last or None),
    )
    prepared = contexts.prepare_context_sweep(request)
    if arguments.dry_run:
        _print_dry_run(contexts.dry_run_context(prepared), as_json=arguments.json)
        return ExitCode.OK
    observer = create_observer()
    try:
        written, histories = contexts.run_context_sweep(prepared, observer, fresh=arguments.fresh)
    finally:
        observer.close()
    if arguments.json:
        sys.stdout.write(encode_pretty(written.ceiling).decode())
    else:
        from fewbits.report.context import render_context_text

        sys.stdout.write(render_context_text(written.ceiling))
        for path in (*written.paths, *histories):
            print(path)
    if contexts.anything_ran(written):
        return ExitCode.OK
    print("fewbits context: no context could be run; context_ceiling.json says why", file=sys.stderr)
    return ExitCode.UNEXPECTED


def _ceiling_request(
    arguments: argparse.Namespace, default_profile: tuple[str, str], folder: Path, *, include_invalid: bool
) -> CeilingRequest:
    from fewbits.api.context_artifacts import CeilingRequest, profile_named, read_profiles

    profiles, _ = read_profiles(arguments.context_profiles_config)
    flag, name = ("--context-profile", arguments.context_profile) if arguments.context_profile else default_profile
    profile = profile_named(profiles, name, flag)
    limits = {
        limit: getattr(profile, limit) if getattr(arguments, limit) is _UNSET else getattr(arguments, limit)
        for limit in ("adherence_min", "adherence_retention_min", "ttft_ceiling_ms", "decode_floor_tps")
    }
    thresholds = _thresholds({**limits, "profile": name, "include_invalid": include_invalid})
    contexts = arguments.contexts or tuple(sorted(set(profile.contexts)))
    return CeilingRequest(contexts, thresholds, arguments.provenance_ref, folder / "context_ceiling.json")


def _thresholds(values: dict[str, object]) -> ContextThresholds:
    """Check the ranges of the limits. Raises `SpecError`."""
    from fewbits.core.codec import convert
    from fewbits.core.errors import StoreError
    from fewbits.records.context import ContextThresholds

    try:
        return convert(values, ContextThresholds, "limits")
    except StoreError as error:
        raise SpecError.single("limits", str(error), "adherence is a share; the others are above 0") from error


def _ceiling(arguments: argparse.Namespace) -> ExitCode:
    import dataclasses

    from fewbits.api.context_artifacts import ceiling_from_summaries
    from fewbits.core.codec import encode_pretty

    by_default = ("--context-profile", "safe")
    request = _ceiling_request(arguments, by_default, arguments.out.parent, include_invalid=arguments.include_invalid)
    artifact = ceiling_from_summaries(
        dataclasses.replace(request, out=arguments.out),
        arguments.summary_template,
        arguments.run_template,
        model_id=arguments.model_id,
        quant_tags=arguments.quant_tags,
    )
    if arguments.json:
        sys.stdout.write(encode_pretty(artifact).decode())
        return ExitCode.OK
    from fewbits.report.context import render_context_text

    sys.stdout.write(render_context_text(artifact))
    print(arguments.out)
    return ExitCode.OK


def _rollup(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.context_artifacts import build_rollup
    from fewbits.core.codec import encode_pretty

    rollup = build_rollup(arguments.context_ceiling, arguments.out)
    if arguments.json:
        sys.stdout.write(encode_pretty(rollup).decode())
        return ExitCode.OK
    from fewbits.report.context import render_rollup_text

    sys.stdout.write(render_rollup_text(rollup))
    print(arguments.out)
    return ExitCode.OK


def _check(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.context_artifacts import check_context

    report = check_context(
        arguments.context_ceiling,
        arguments.rollup,
        contexts=arguments.contexts,
        summary_template=arguments.summary_template,
        profiles_path=arguments.context_profiles_config,
    )
    return finish(report, arguments)


def _print_dry_run(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"dry_run": document}, indent=2, sort_keys=True))
        return
    from fewbits.report.context import render_dry_run_text

    sys.stdout.write(render_dry_run_text(document))


# --- reading flags ---------------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _contexts(text: str) -> tuple[int, ...]:
    """Read context sizes: each once, ascending. Raises `ArgumentTypeError`."""
    found = set()
    for word in _words(text):
        if not (word.isascii() and word.isdecimal() and len(word) <= 8 and 64 <= int(word) <= 10_000_000):
            msg = f"{word!r} is no context size: a whole number of tokens from 64 to 10000000"
            raise argparse.ArgumentTypeError(msg)
        found.add(int(word))
    if not 1 <= len(found) <= MAX_CONTEXTS:
        msg = f"give 1 to {MAX_CONTEXTS} context sizes, such as 4096,8192"
        raise argparse.ArgumentTypeError(msg)
    return tuple(sorted(found))


def _depths(text: str) -> tuple[float, ...]:
    """Read depths: each once, ascending. Raises `ArgumentTypeError`."""
    try:
        found = sorted({float(word) for word in _words(text)})
    except ValueError as error:
        msg = f"{text!r} is no list of numbers such as 0.1,0.5,0.9"
        raise argparse.ArgumentTypeError(msg) from error
    if not found or not all(math.isfinite(depth) for depth in found):
        msg = f"{text!r} holds no depth"
        raise argparse.ArgumentTypeError(msg)
    return tuple(found)


def _limit(text: str) -> float | None:
    """Read a limit, or `none`. Raises `ArgumentTypeError`."""
    if text.strip().lower() == _OFF:
        return None
    return finite(text)
