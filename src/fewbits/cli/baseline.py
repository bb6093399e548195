"""`fewbits baseline`: list, show, resolve, append, pin, unpin, health, prune. Also `scripts/manage_baselines.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.cli.gate_output import add_gate_arguments, exit_code
from fewbits.cli.numbers import at_least_one, finite
from fewbits.core.errors import ExitCode
from fewbits.records.plan import BASELINE_ROOT

if TYPE_CHECKING:
    from fewbits.records.base import Record

"""The same as a sweep's `--baseline-root`."""
DEFAULT_MAX_AGE_DAYS = 90.0
_TEXT_LIMIT = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, (declare, words) in _DECLARED.items():
        action = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
        action.add_argument(
            "--storage-root",
            type=Path,
            default=Path(BASELINE_ROOT),
            metavar="DIR",
            help=f"folder of the baselines ({BASELINE_ROOT})",
        )
        declare(action)
        if name != "health":  # a gate, with its own
            action.add_argument("--json", action="store_true", help="print the answer as JSON on stdout")


def _declare_list(action: argparse.ArgumentParser) -> None:
    action.add_argument("--test-id", type=text, metavar="TEST", help="this test only")


def _declare_test(action: argparse.ArgumentParser) -> None:
    action.add_argument("--test-id", type=text, required=True, metavar="TEST", help="the test, as `list` names it")


def _declare_record(action: argparse.ArgumentParser) -> None:
    _declare_test(action)
    action.add_argument("--baseline-ref", type=text, required=True, metavar="REF", help="the record's reference (its run id)")


def _declare_resolve(action: argparse.ArgumentParser) -> None:
    _declare_test(action)
    action.add_argument("--task-revision", type=text, required=True, metavar="REVISION", help="the tasks' revision")
    action.add_argument("--hardware-fingerprint", type=text, metavar="FINGERPRINT", help="the hardware (default: this machine's)")
    action.add_argument("--baseline-ref", type=text, metavar="REF", help="only the record of this reference")


def _declare_append(action: argparse.ArgumentParser) -> None:
    action.add_argument("source", type=Path, metavar="SOURCE", help="a run's folder, or a sweep_summary.json (no values by task)")
    action.add_argument("--model-id", type=text, metavar="MODEL", help="rows of this model only")
    action.add_argument("--quant-tag", type=text, metavar="TAG", help="rows of this tag only; exit 2 if one is refused")
    action.add_argument("--run-id", type=text, metavar="REF", help="the records' reference (default: from plan and first trial)")
    action.add_argument(
        "--task-revision",
        type=text,
        metavar="REVISION",
        help="the tasks' revision, for a summary without its plan.json beside it",
    )
    action.add_argument("--force", action="store_true", help="store rows that are not good enough too, marked as forced")


def _declare_health(action: argparse.ArgumentParser) -> None:
    action.add_argument("--test-id", type=text, metavar="TEST", help="this test only")
    action.add_argument("--hardware-fingerprint", type=text, metavar="FINGERPRINT", help="records must be from this hardware")
    action.add_argument("--task-revision", type=text, metavar="REVISION", help="records must be of this task revision")
    action.add_argument("--engine-version", type=text, metavar="VERSION", help="records must be made by this engine version")
    _declare_age(action, DEFAULT_MAX_AGE_DAYS, f"a record may be this old ({DEFAULT_MAX_AGE_DAYS:g})")
    add_gate_arguments(action)


def _declare_prune(action: argparse.ArgumentParser) -> None:
    words = "unpinned records that every test keeps, the newest"
    action.add_argument("--keep-last", type=at_least_one, required=True, metavar="N", help=words)
    _declare_age(action, None, "of the others, drop only those older than this")
    action.add_argument("--test-id", type=text, metavar="TEST", help="this test only")
    action.add_argument("--dry-run", action="store_true", help="say what would go, touch nothing")


def _declare_age(action: argparse.ArgumentParser, default: float | None, words: str) -> None:
    action.add_argument("--max-age-days", type=days, default=default, metavar="D", help=words)


def text(words: str) -> str:
    """Read printable text. Raises `ArgumentTypeError`."""
    if words.strip() and words.isprintable() and len(words) <= _TEXT_LIMIT:
        return words
    msg = f"{words[:80]!r} is not 1 to {_TEXT_LIMIT} printable characters"
    raise argparse.ArgumentTypeError(msg)


def days(words: str) -> float:
    """Read a number of days above 0. Raises `ArgumentTypeError`."""
    value = finite(words)
    if value <= 0:
        msg = f"{words} is not a number of days above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what the sub-command says."""
    return _ACTIONS[arguments.action](arguments)


def _print(arguments: argparse.Namespace, answer: Record, words: Callable[[], str]) -> None:
    from fewbits.core.codec import encode_pretty

    sys.stdout.write(encode_pretty(answer).decode() if arguments.json else words())


def _list(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.baselines import list_baselines
    from fewbits.report.terminal_baselines import render_list

    listing = list_baselines(arguments.storage_root, arguments.test_id)
    _print(arguments, listing, lambda: render_list(listing))
    return ExitCode.OK


def _show(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.baselines import show_baseline
    from fewbits.report.terminal_baselines import render_show

    shown = show_baseline(arguments.storage_root, arguments.test_id)
    _print(arguments, shown, lambda: render_show(shown))
    return ExitCode.OK


def _resolve(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.analysis.baselines import BaselineQuery
    from fewbits.api.baseline_matches import resolve_baseline
    from fewbits.probes.machine import hardware_fingerprint
    from fewbits.records.baseline import BaselineStatus
    from fewbits.report.terminal_baselines import render_match

    hardware = arguments.hardware_fingerprint or hardware_fingerprint()
    query = BaselineQuery(arguments.test_id, hardware, arguments.task_revision, arguments.baseline_ref)
    match = resolve_baseline(arguments.storage_root, query)
    _print(arguments, match, lambda: render_match(match))
    return ExitCode.OK if match.status is BaselineStatus.OK else ExitCode.FAILED_CHECK


def _append(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.baselines import AppendRequest, append_baselines
    from fewbits.report.terminal_baselines import render_append

    request = AppendRequest(
        model_id=arguments.model_id,
        quant_tag=arguments.quant_tag,
        run_id=arguments.run_id,
        task_revision=arguments.task_revision,
        force=arguments.force,
    )
    report = append_baselines(arguments.storage_root, arguments.source, request)
    _print(arguments, report, lambda: render_append(report))
    return ExitCode.FAILED_CHECK if report.failed else ExitCode.OK


def _pin(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.baselines import pin_baseline
    from fewbits.report.terminal_baselines import render_pin

    pinned = arguments.action == "pin"
    report = pin_baseline(arguments.storage_root, arguments.test_id, arguments.baseline_ref, pinned=pinned)
    _print(arguments, report, lambda: render_pin(report))
    return ExitCode.OK


def _health(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.baselines import check_baselines, health_scope
    from fewbits.core.codec import encode_pretty
    from fewbits.core.files import atomic_write
    from fewbits.report.junit import render_junit
    from fewbits.report.terminal_baselines import render_health

    scope = health_scope(
        test_id=arguments.test_id,
        hardware_fingerprint=arguments.hardware_fingerprint,
        task_revision=arguments.task_revision,
        engine_version=arguments.engine_version,
        max_age_days=arguments.max_age_days,
    )
    health = check_baselines(arguments.storage_root, scope, allow_skip=arguments.allow_skip)
    if arguments.out is not None:
        atomic_write(arguments.out, encode_pretty(health))
    if arguments.junit is not None:
        atomic_write(arguments.junit, render_junit(health.gate_report))
    _print(arguments, health, lambda: render_health(health))
    return exit_code(health.gate_report)


def _prune(arguments: argparse.Namespace) -> ExitCode:
    from fewbits.api.baselines import prune_baselines, retention
    from fewbits.report.terminal_baselines import render_prune

    rule = retention(arguments.keep_last, arguments.max_age_days)
    report = prune_baselines(arguments.storage_root, rule, test_id=arguments.test_id, dry_run=arguments.dry_run)
    _print(arguments, report, lambda: render_prune(report))
    return ExitCode.OK


_DECLARED: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "list": (_declare_list, "list the tests, how many baselines each has, and the newest"),
    "show": (_declare_test, "show every baseline of a test"),
    "resolve": (_declare_resolve, "find the baseline for a test, hardware and task revision (0 found, 2 not)"),
    "append": (_declare_append, "store a run's good rows as baselines"),
    "pin": (_declare_record, "keep a baseline whatever pruning drops"),
    "unpin": (_declare_record, "let pruning drop a baseline again"),
    "health": (_declare_health, "check whether the newest baselines are still good (0 PASS, 2 FAIL, 3 SKIP)"),
    "prune": (_declare_prune, "drop old baselines: pinned ones and the newest of every test stay"),
}
_ACTIONS: dict[str, Callable[[argparse.Namespace], ExitCode]] = {
    "list": _list,
    "show": _show,
    "resolve": _resolve,
    "append": _append,
    "pin": _pin,
    "unpin": _pin,
    "health": _health,
    "prune": _prune,
}
