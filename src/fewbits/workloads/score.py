"""From an answer to one number, whatever kind of work was asked: check results and adherence."""

from __future__ import annotations

from fewbits.records.base import TrialStatus
from fewbits.records.task import CheckResult, DetectionCheck, ExtractionCheck, Task
from fewbits.workloads.text.checks import failed_results, run_checks
from fewbits.workloads.text.score import adherence_score


def score_trial(task: Task, status: TrialStatus, answer: str) -> tuple[tuple[CheckResult, ...], float | None]:
    """Score one trial: its check results and adherence (0..1, `None` only for a task without checks).

    A trial that did not end `OK` fails every check and scores 0, whatever it left behind. Raises `PrerequisiteError` where a
    check needs something that this machine lacks.
    """
    if status is not TrialStatus.OK:
        results = failed_results(task, f"the trial ended with status {status.value}")
    elif all(isinstance(check, DetectionCheck | ExtractionCheck) for check in task.checks):
        results = _results_on_pictures(task, answer)
    else:
        results = run_checks(task, answer)
    return results, adherence_score(results)


def _results_on_pictures(task: Task, answer: str) -> tuple[CheckResult, ...]:
    """Score what was found in a picture: objects, or the report on a page."""
    from fewbits.workloads.detection.score import detection_result
    from fewbits.workloads.extraction.score import extraction_result

    return tuple(
        detection_result(check, answer) if isinstance(check, DetectionCheck) else extraction_result(check, answer)
        for check in task.checks
        if isinstance(check, DetectionCheck | ExtractionCheck)
    )
