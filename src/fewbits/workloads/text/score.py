"""From check results to one number: adherence, and the code density of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.records.task import CheckResult, PythonExamplesCheck, PythonTestCheck, Task
from fewbits.workloads.text.answers import fenced_blocks


def adherence_score(results: Sequence[CheckResult]) -> float | None:
    """Return the share of machine checks that passed, 0..1; `None` (never 1.0) when there are no checks."""
    total = sum(result.total for result in results)
    if total == 0:
        return None
    return sum(result.passed for result in results) / total


def code_density(answer: str, task: Task) -> float | None:
    """Return characters inside code fences / all characters of the answer, 0..1, for tasks that ask for Python code.

    Fence lines themselves count as characters outside. `None` for tasks without Python checks and for an empty answer.
    """
    if not answer or not any(isinstance(check, PythonExamplesCheck | PythonTestCheck) for check in task.checks):
        return None
    return sum(len(block.body) for block in fenced_blocks(answer)) / len(answer)
