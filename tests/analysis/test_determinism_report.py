"""The determinism report: what repeats, what does not and where, and what cannot be told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.determinism_report import check_determinism, determinism_report, differing_trials
from fewbits.analysis.gate_report import build_report
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.base import PollutionReason, TrialStatus
from fewbits.records.determinism import DeterminismNote, DeterminismReport
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.plan import Plan
from fewbits.records.trial import TrialView

Make = Callable[..., TrialView]
MakePlan = Callable[..., Plan]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Runs:
    """Answers of one variant, by task; `None` is a crash."""

    def __init__(self, trial: Make, failure: Make, make_plan: MakePlan) -> None:
        self._trial, self._failure, self._make_plan = trial, failure, make_plan

    def report(self, answers: Mapping[str, Sequence[str | None]], **changes: Any) -> DeterminismReport:
        rows, texts = self.rows(answers, **changes)
        return determinism_report(self.plan(answers), rows, texts)

    def plan(self, answers: Mapping[str, Sequence[str | None]]) -> Plan:
        return self._make_plan(("Q8_0",), tuple(answers), runs=len(next(iter(answers.values()))))

    def rows(self, answers: Mapping[str, Sequence[str | None]], **changes: Any) -> tuple[list[TrialView], dict[str, str]]:
        rows, texts = [], {}
        for task, given_texts in answers.items():
            for n, text in enumerate(given_texts):
                trial_id = f"{task}-{n}"
                if text is None:
                    rows.append(self._failure("Q8_0", task, repetition=n, trial_id=trial_id, output_sha256=sha("")))
                    continue
                texts[trial_id] = text
                fields = {"index": n, "repetition": n, "trial_id": trial_id, "output_sha256": sha(text)}
                rows.append(self._trial("Q8_0", task, **(fields | changes)))
        return rows, texts


@pytest.fixture(scope="module")
def runs(trial: Make, failure: Make, make_plan: MakePlan) -> Runs:
    return Runs(trial, failure, make_plan)


def gate(report: DeterminismReport, *, with_canary: bool = False) -> tuple[GateStatus, tuple[GateCheck, ...]]:
    checks = check_determinism(report, with_canary=with_canary)
    return build_report("determinism", checks, sources=[], thresholds={}).status, checks


def test_what_repeats_passes_and_promises_no_more_than_it_saw(runs: Runs) -> None:
    report = runs.report({"a": ["1"] * 5, "b": ["2"] * 5})
    assert (report.total_tasks, report.determinable_tasks, report.deterministic_tasks) == (2, 2, 2)
    assert (report.runs_per_task, report.failed_runs, len(report.test_runs)) == (5, 0, 10)
    assert report.determinism_rate == 1.0
    # one-sided 95 % limit of two of two: 0.05 ** (1 / 2)
    assert report.agreement_floor == pytest.approx(0.223607, abs=1e-6)
    task = report.tasks[0]
    assert (task.test_id, task.unique_outputs, task.deterministic, task.same_outcome) == ("a", 1, True, True)
    assert (task.adherence_variance, task.latency_variation, task.notes, task.first_divergence) == (0.0, 0.0, (), None)
    status, checks = gate(report)
    assert status is GateStatus.PASS
    assert checks[0].evidence == "5 runs gave the same answer"


def test_a_single_run_shows_nothing(runs: Runs) -> None:
    report = runs.report({"a": ["1"]})
    assert (report.determinable_tasks, report.deterministic_tasks) == (0, 0)
    assert report.determinism_rate is None
    assert report.agreement_floor is None
    task = report.tasks[0]
    assert (task.deterministic, task.same_outcome, task.adherence_variance) == (None, None, None)
    assert task.notes == (DeterminismNote.SINGLE_RUN,)
    status, (check,) = gate(report)
    assert (status, check.code) == (GateStatus.SKIP, "NOT_DETERMINABLE")


@pytest.mark.parametrize("crashes", [2, 3, 5])
def test_identical_crashes_are_no_determinism(runs: Runs, crashes: int) -> None:
    report = runs.report({"a": [None] * crashes})
    task = report.tasks[0]
    assert (task.deterministic, task.unique_outputs, task.answered_runs) == (None, 0, 0)
    assert task.notes == (DeterminismNote.NO_SUCCESSFUL_REPEATS, DeterminismNote.FAILED_RUNS)
    assert (report.determinism_rate, report.failed_runs) == (None, crashes)
    assert {run.outcome for run in report.test_runs} == {"error"}
    status, (check,) = gate(report)
    assert (status, check.code) == (GateStatus.FAIL, "FAILED_RUNS")
    assert f"{crashes} of {crashes} runs" in check.evidence


@pytest.mark.parametrize(
    ("answers", "notes"),
    [
        ([None], (DeterminismNote.SINGLE_RUN, DeterminismNote.FAILED_RUNS)),
        (["1", None], (DeterminismNote.NO_SUCCESSFUL_REPEATS, DeterminismNote.FAILED_RUNS)),
        (["1", None, "1"], (DeterminismNote.FAILED_RUNS,)),
    ],
)
def test_any_failed_run_fails(runs: Runs, answers: list[str | None], notes: tuple[DeterminismNote, ...]) -> None:
    report = runs.report({"a": answers})
    assert report.tasks[0].notes == notes
    status, (check,) = gate(report)
    assert (status, check.code) == (GateStatus.FAIL, "FAILED_RUNS")


@pytest.mark.parametrize("status", [TrialStatus.TIMEOUT, TrialStatus.EMPTY, TrialStatus.PROTOCOL_ERROR])
def test_every_other_end_is_a_failed_run_too(runs: Runs, status: TrialStatus) -> None:
    report = runs.report({"a": ["", ""]}, status=status)
    assert report.failed_runs == 2
    assert gate(report)[1][0].code == "FAILED_RUNS"


def test_differing_answers_fail_and_show_where(runs: Runs) -> None:
    report = runs.report({"a": ["the answer is 4", "the answer is 4", "the answer is 5"], "b": ["x"] * 3})
    assert (report.determinism_rate, report.deterministic_tasks) == (0.5, 1)
    task = report.tasks[0]
    assert (task.deterministic, task.unique_outputs) == (False, 2)
    place = task.first_divergence
    assert place is not None
    assert (place.channel, place.position, place.first, place.second) == ("output_text", 14, "4", "5")
    status, checks = gate(report)
    assert status is GateStatus.FAIL
    assert [check.code for check in checks] == ["OUTPUT_DIFFERS", ""]
    assert checks[0].evidence == "2 different answers in 3 runs; output_text differs first after 14 characters: '4' and '5'"


def test_without_the_texts_digests_stand_in(runs: Runs) -> None:
    rows, _ = runs.rows({"a": ["4", "5"]})
    place = determinism_report(runs.plan({"a": ["4", "5"]}), rows, {}).tasks[0].first_divergence
    assert place is not None
    assert (place.position, place.first) == (None, f"sha256 {sha('4')[:16]}")


@pytest.mark.parametrize(
    ("field", "values"), [("finish_reason", ("stop", "length")), ("output_tokens", (30, 31)), ("adherence_score", (1.0, 0.0))]
)
def test_every_declared_channel_counts(trial: Make, make_plan: MakePlan, field: str, values: tuple[Any, Any]) -> None:
    rows = [trial("Q8_0", "a", repetition=n, trial_id=str(n), **{field: value}) for n, value in enumerate(values)]
    report = determinism_report(make_plan(("Q8_0",), ("a",), runs=2), rows, {})
    place = report.tasks[0].first_divergence
    assert place is not None
    assert (place.channel, place.first, place.second) == (field, *map(str, values))
    assert field in report.channels
    status, (check,) = gate(report)
    assert (status, check.code) == (GateStatus.FAIL, "OUTPUT_DIFFERS")


def test_one_answer_with_two_scores_is_told_as_that(trial: Make, make_plan: MakePlan) -> None:
    rows = [trial("Q8_0", "a", repetition=n, trial_id=str(n), adherence_score=float(n)) for n in (0, 1)]
    report = determinism_report(make_plan(("Q8_0",), ("a",), runs=2), rows, {})
    task = report.tasks[0]
    assert (task.unique_outputs, task.same_outcome, task.adherence_variance) == (1, False, 0.25)
    assert gate(report)[1][0].evidence.startswith("2 runs gave the same answer, but it was scored differently")


def test_timings_and_memory_are_no_channel(trial: Make, make_plan: MakePlan) -> None:
    rows = [trial("Q8_0", "a", repetition=n, total_latency=0.1 + n, internal_model_seconds=0.1 + n / 10) for n in range(4)]
    report = determinism_report(make_plan(("Q8_0",), ("a",), runs=4), rows, {})
    assert report.determinism_rate == 1.0
    # of 0.1, 0.2, 0.3, 0.4: sample standard deviation 0.1291, mean 0.25
    assert report.tasks[0].latency_variation == pytest.approx(0.516398, abs=1e-6)


def test_two_times_are_too_few_for_a_variation(runs: Runs) -> None:
    assert runs.report({"a": ["1", "1"]}).tasks[0].latency_variation is None


def test_answers_that_miss_their_checks_can_still_repeat(runs: Runs) -> None:
    report = runs.report({"a": ["wrong"] * 3}, adherence_score=0.5)
    assert {run.outcome for run in report.test_runs} == {"fail"}
    assert gate(report)[0] is GateStatus.PASS


def test_disturbed_runs_are_counted(runs: Runs) -> None:
    report = runs.report({"a": ["1"] * 3}, run_quality_reasons=(PollutionReason.FOREIGN_CPU_LOAD,))
    assert report.polluted_runs == 3


class TestCanary:
    def steady(self, trial: Make, make_plan: MakePlan, seconds: Sequence[float], **changes: Any) -> DeterminismReport:
        rows = [
            trial("Q8_0", "a", index=n, repetition=n, trial_id=str(n), **({"internal_model_seconds": value} | changes))
            for n, value in enumerate(seconds)
        ]
        return determinism_report(make_plan(("Q8_0",), ("a",), runs=len(seconds)), rows, {})

    def test_one_task_and_ten_runs_give_the_canarys_block(self, trial: Make, make_plan: MakePlan) -> None:
        # the first run is slow, and left out
        report = self.steady(trial, make_plan, [0.9] + [0.400, 0.404, 0.396] * 3)
        canary = report.canary
        assert canary is not None
        assert (canary.enabled, canary.passed, canary.task_id, canary.quant_tag) == (True, True, "a", "Q8_0")
        assert (canary.runs_requested, canary.latency_sample_count_raw, canary.latency_sample_count_used) == (10, 10, 9)
        assert canary.drop_first_run
        assert canary.latency_variation == pytest.approx(0.00866, abs=1e-5)
        status, checks = gate(report, with_canary=True)
        assert status is GateStatus.PASS
        assert (checks[-1].name, checks[-1].limit) == ("canary", 0.03)

    def test_unsteady_times_fail_only_where_the_canary_was_asked(self, trial: Make, make_plan: MakePlan) -> None:
        report = self.steady(trial, make_plan, [0.4, 0.4, 0.8] * 3 + [0.4])
        assert gate(report)[0] is GateStatus.PASS
        status, checks = gate(report, with_canary=True)
        assert (status, checks[-1].code) == (GateStatus.FAIL, "CANARY_FAILED")
        assert "LATENCY_VARIANCE_THRESHOLD_EXCEEDED" in checks[-1].evidence

    @pytest.mark.parametrize(("runs_made", "judged"), [(3, False), (4, True)])
    def test_too_few_runs_are_no_canary(self, trial: Make, make_plan: MakePlan, runs_made: int, judged: bool) -> None:
        report = self.steady(trial, make_plan, [0.4] * runs_made)
        assert (report.canary is not None) is judged
        status, checks = gate(report, with_canary=True)
        assert status is (GateStatus.PASS if judged else GateStatus.SKIP)
        assert checks[-1].code == ("" if judged else "NOT_DETERMINABLE")

    def test_several_tasks_are_no_canary(self, runs: Runs) -> None:
        report = runs.report({"a": ["1"] * 10, "b": ["1"] * 10})
        assert report.canary is None
        assert gate(report, with_canary=True)[0] is GateStatus.SKIP
        assert gate(report)[0] is GateStatus.PASS


ANSWERS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.lists(st.sampled_from(["x", "y", None]), min_size=3, max_size=3), min_size=1
)


@given(answers=ANSWERS, order=st.randoms(use_true_random=False))
def test_the_report_follows_from_the_rows_in_any_order(answers: dict[str, list[str | None]], order: Any, runs: Runs) -> None:
    rows, texts = runs.rows(answers)
    plan = runs.plan(answers)
    report = determinism_report(plan, rows, texts)
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert encode_pretty(determinism_report(plan, shuffled, texts)) == encode_pretty(report)
    assert decode(encode_pretty(report), DeterminismReport, "report") == report
    expected = {
        task: None if len(told := [text for text in given_texts if text is not None]) < 2 else len(set(told)) == 1
        for task, given_texts in answers.items()
    }
    assert {task.test_id: task.deterministic for task in report.tasks} == expected
    wanted = differing_trials(shuffled)
    assert len(wanted) == 2 * sum(answer is False for answer in expected.values())
    # those texts are enough
    assert determinism_report(plan, rows, {key: text for key, text in texts.items() if key in wanted}) == report
    passes = all(expected[task] and None not in answers[task] for task in answers)
    assert (gate(report)[0] is GateStatus.PASS) == passes


def test_the_texts_of_a_report_may_hold_anything(runs: Runs) -> None:
    report = runs.report({"a": ["<script>\x00\u202e", "<b>\x1b[31m"]})
    assert decode(encode_pretty(report), DeterminismReport, "report") == report
    place = report.tasks[0].first_divergence
    assert place is not None
    assert msgspec.structs.astuple(place)[2:] == (1, "script>\x00\u202e", "b>\x1b[31m")
    evidence = gate(report)[1][0].evidence
    assert "\x00" not in evidence
    assert "\x1b" not in evidence
