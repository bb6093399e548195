"""`fewbits task`: one task, once. Also `scripts/live_card_benchmark_runner.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.cli.single import add_single_arguments, single_flags
from fewbits.core.errors import ExitCode
from fewbits.records.plan import BASELINE_ROOT

if TYPE_CHECKING:
    from fewbits.records.task_run import TaskRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--task", required=True, metavar="FILE", help="file of one task, or a bank with --task-id")
    parser.add_argument("--task-id", metavar="ID", help="which task of a bank")
    parser.add_argument("--save-baseline", action="store_true", help="store a clean, passing run as the task's baseline")
    parser.add_argument("--force", action="store_true", help="with --save-baseline: store it in any case, marked")
    parser.add_argument("--test-id", metavar="ID", help="name of the baseline's history (default: the task's id)")
    parser.add_argument("--baseline-ref", metavar="REF", help="compare with this record instead of the newest that matches")
    parser.add_argument(
        "--storage-root", type=Path, default=Path(BASELINE_ROOT), metavar="DIR", help=f"folder of the baselines ({BASELINE_ROOT})"
    )
    parser.add_argument("--runs-root", type=Path, metavar="DIR", help="where run folders go (runs/tasks/<task file>)")
    parser.add_argument("--run-dir", metavar="DIR", help="this run's folder (default: a new one below --runs-root)")
    parser.add_argument("--json", action="store_true", help="print the run as JSON on stdout")
    add_single_arguments(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run, compare, save, print. Exit code 0: the answer passed (and was saved, where asked); 2: it did not."""
    from fewbits.api.task import TaskRequest, default_runs_root, prepare_task, run_task
    from fewbits.cli.progress import create_observer
    from fewbits.core.codec import encode_pretty

    own = {"task_bank": arguments.task, "task_ids": arguments.task_id, "out_dir": arguments.run_dir}
    flags = {**single_flags(arguments), **{key: value for key, value in own.items() if value is not None}}
    if arguments.force and not arguments.save_baseline:
        from fewbits.core.errors import SpecError

        raise SpecError.single("--force", "does nothing without --save-baseline", "add --save-baseline, or leave it out")
    prepared = prepare_task(flags, arguments.runs_root or default_runs_root(Path(arguments.task).stem))
    request = TaskRequest(
        storage_root=arguments.storage_root,
        test_id=arguments.test_id,
        baseline_ref=arguments.baseline_ref,
        save_baseline=arguments.save_baseline,
        force=arguments.force,
    )
    observer = create_observer()
    try:
        result = run_task(prepared, request, observer)
    finally:
        observer.close()
    sys.stdout.write(encode_pretty(result).decode() if arguments.json else _text(result, prepared.directory.root))
    refused = result.saved_baseline is not None and not result.saved_baseline.saved
    return ExitCode.OK if result.outcome == "pass" and not refused else ExitCode.FAILED_CHECK


def _text(result: TaskRun, folder: Path) -> str:
    from fewbits.report.terminal_task import render_task_run

    return render_task_run(result) + f"run  {folder}\n"
