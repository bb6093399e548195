"""Every shipped task: its reference answer passes, each wrong answer fails, and so do answers that know nothing."""

from collections import Counter
from pathlib import Path

import pytest
from benchmarks.task_bank.short import make

from fewbits.records.base import Bucket, TrialStatus
from fewbits.records.task import Task
from fewbits.workloads.score import score_trial
from fewbits.workloads.text.bank import load_bank, task_problems
from fewbits.workloads.text.sandbox import needs_sandbox

SHORT = make.BANK
BANK = Path(__file__).resolve().parents[2] / "benchmarks" / "task_bank" / "v2_realworld" / "tasks.json"
TASKS = load_bank(BANK).bank.tasks


def test_the_bank_is_large_graded_and_balanced() -> None:
    assert len(TASKS) >= 160
    buckets = Counter(task.bucket for task in TASKS)
    assert all(buckets[bucket] >= 40 for bucket in Bucket if bucket is not Bucket.DETECTION)
    tiers = Counter(task.tier for task in TASKS)
    assert all(tiers[tier] >= 3 for tier in range(1, 7))
    assert len({task.prompt for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_reference_passes_and_wrong_answers_fail(task: Task) -> None:
    assert task.reference_answer
    assert len(task.wrong_answers) >= 2
    assert task_problems(task, task.id) == []


@pytest.mark.parametrize("task", [task for task in TASKS if not needs_sandbox(task)], ids=lambda task: task.id)
def test_empty_echoed_and_ignorant_answers_never_pass(task: Task) -> None:
    for answer in ("", task.prompt, "I don't know", "yes", "{}", "[]", "0"):
        _, score = score_trial(task, TrialStatus.OK, answer)
        assert score is not None
        assert score < 1 or answer == task.reference_answer, answer


class TestShortBank:
    """The bank of short tasks: made by its script, and every task decided by its one check."""

    def test_it_is_what_its_script_makes(self) -> None:
        assert SHORT.read_text(encoding="utf-8") == make.render()

    def test_it_is_large_and_each_outcome_is_0_or_1(self) -> None:
        tasks = load_bank(SHORT).bank.tasks
        assert len(tasks) >= 250
        assert all(len(task.checks) == 1 for task in tasks)
        assert len({task.prompt for task in tasks}) == len(tasks)

    def test_reference_passes_and_wrong_and_ignorant_answers_fail(self) -> None:
        for task in load_bank(SHORT).bank.tasks:
            assert task_problems(task, task.id) == []
            for answer in ("", task.prompt, "I don't know", "yes", "{}", "[]", "0"):
                assert score_trial(task, TrialStatus.OK, answer)[1] == 0, (task.id, answer)
