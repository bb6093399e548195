"""From check results to one number: adherence, and the code density of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.records.base import TrialStatus
from fewbits.records.task import CheckResult, PythonExamplesCheck, PythonTestCheck, Task
from fewbits.workloads.text.answers import fenced_blocks
from fewbits.workloads.text.checks import failed_results, run_checks


def adherence_score(results: Sequence[CheckResult]) -> float | None:
    """Return the share of machine checks that passed, 0..1; `None` (never 1.0) when there are no checks."""
    total = sum(result.total for result in results)
    if total == 0:
        return None
    return sum(result.passed for result in results) / total


def score_trial(task: Task, status: TrialStatus, answer: str) -> tuple[tuple[CheckResult, ...], float | None]:
    """Score one trial: its check results and adherence (0..1, `None` only for a task without checks).

    A trial that did not end `OK` fails every check and scores 0, whatever text it left behind. Raises
    `PrerequisiteError` where a check needs something that this machine lacks.
    """
    if status is not TrialStatus.OK:
        results = failed_results(task, f"the trial ended with status {status.value}")
    else:
        results = run_checks(task, answer)
    return results, adherence_score(results)


def code_density(answer: str, task: Task) -> float | None:
    """Return characters inside code fences / all characters of the answer, 0..1, for tasks that ask for Python code.

    Fence lines themselves count as characters outside. `None` for tasks without Python checks and for an empty answer.
    """
    if not answer or not any(isinstance(check, PythonExamplesCheck | PythonTestCheck) for check in task.checks):
        return None
    return sum(len(block.body) for block in fenced_blocks(answer)) / len(answer)
