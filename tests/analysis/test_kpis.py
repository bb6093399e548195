"""KPIs against limits and over nights: inclusive, strict, and never better than what the rows show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.analysis.gate_report import build_report
from fewbits.analysis.kpis import KpiLimits, check_kpis, check_trend, kpi_report
from fewbits.records.base import PollutionReason, TokenStatus, TrialStatus
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.kpis import KpiReport
from fewbits.records.plan import Plan, PolicyName
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import ModelKind, ModelSource

Make = Callable[..., TrialView]
MakePlan = Callable[..., Plan]
Summarise = Callable[..., SweepSummary]
SOURCE = SourceFile(path="sweep_summary.json", sha256="a" * 64, schema_version="2.2.0")
TASKS = ("t0", "t1")
FOREIGN = (PollutionReason.FOREIGN_CPU_LOAD,)
replace = msgspec.structs.replace


def named(checks: Sequence[GateCheck], name: str) -> GateCheck:
    (found,) = [check for check in checks if check.name == name]
    return found


def status_of(checks: Sequence[GateCheck], *, allow_skip: bool = False) -> GateStatus:
    return build_report("kpis", checks, sources=[], thresholds={}, allow_skip=allow_skip).status


def check(report: KpiReport, **limits: float) -> tuple[GateCheck, ...]:
    return check_kpis(report, KpiLimits(**limits))


def with_kpis(report: KpiReport, **kpis: Any) -> KpiReport:
    return replace(report, stability_kpis=replace(report.stability_kpis, **kpis))


@pytest.fixture
def report(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> KpiReport:
    """Two variants, two tasks, two runs of each: nothing is wrong with it."""
    rows = [trial(tag, task, repetition=n, output_sha256=task * 32) for tag in ("F16", "Q8_0") for task in TASKS for n in (0, 1)]
    return kpi_report(make_summary(make_plan(("F16", "Q8_0"), TASKS, runs=2), rows), SOURCE)


class TestExtraction:
    def test_a_report_repeats_the_summary_and_names_every_row(self, report: KpiReport) -> None:
        assert report.source == SOURCE
        assert (report.models, report.complete) == (("m",), True)
        assert [(row.quant_tag, row.test_runs, row.determinism_cells, row.eligible) for row in report.rows] == [
            ("F16", 4, 2, True),
            ("Q8_0", 4, 2, True),
        ]
        assert report.stability_kpis.determinism_rate == 1.0
        assert report.stability_kpis.weighted_runs == 8

    def test_without_repeats_determinism_is_null_in_every_row(
        self, trial: Make, make_plan: MakePlan, make_summary: Summarise
    ) -> None:
        made = kpi_report(make_summary(make_plan(("F16",), TASKS), [trial("F16", task) for task in TASKS]), SOURCE)
        assert made.stability_kpis.determinism_rate is None
        assert [(row.determinism_rate, row.determinism_cells) for row in made.rows] == [(None, 0)]

    @pytest.mark.parametrize("include_invalid", [False, True])
    def test_an_override_of_the_operator_changes_no_kpi(
        self, trial: Make, make_plan: MakePlan, make_summary: Summarise, include_invalid: bool
    ) -> None:
        plan = make_plan(("F16", "Q8_0"), TASKS, include_invalid=include_invalid)
        rows = [trial(tag, task, run_quality_reasons=FOREIGN) for tag in ("F16", "Q8_0") for task in TASKS]
        summary = make_summary(plan, rows)
        let_in = [row.eligible for session in summary.sessions for row in session.per_quant]
        assert let_in == [include_invalid] * 2
        made = kpi_report(summary, SOURCE)
        assert [row.eligible for row in made.rows] == [False, False]
        checks = check(made)
        assert named(checks, "consistency").status is GateStatus.PASS
        assert named(checks, "frontier_success_rate").code == "BELOW_LIMIT"
        assert named(checks, "frontier_success_rate").measured == 0.0
        assert named(checks, "polluted_run_rate").measured == 1.0

    def test_limits_of_a_model_of_its_own_count_strictly_too(
        self, trial: Make, make_plan: MakePlan, make_summary: Summarise
    ) -> None:
        plan = make_plan(("F16", "Q8_0"), TASKS)
        strict = replace(plan.spec.policy, latency_ceiling=0.1, include_invalid=True)
        plan = replace(plan, spec=replace(plan.spec, model_policies={"m": strict}))
        rows = [trial(tag, task) for tag in ("F16", "Q8_0") for task in TASKS]
        checks = check(kpi_report(make_summary(plan, rows), SOURCE))
        assert named(checks, "frontier_success_rate").measured == 0.0
        assert named(checks, "consistency").status is GateStatus.PASS


class TestLimits:
    def test_everything_within_its_limit_passes(self, report: KpiReport) -> None:
        checks = check(report)
        assert [item.status for item in checks] == [GateStatus.PASS] * 6
        assert all(item.evidence and not item.code for item in checks)
        assert status_of(checks) is GateStatus.PASS

    @pytest.mark.parametrize("limit", [0.0, 0.01, 0.1, 0.333333, 1.0])
    @pytest.mark.parametrize("name", ["missing_telemetry_rate", "polluted_run_rate"])
    def test_upper_limits_are_inclusive(self, report: KpiReport, name: str, limit: float) -> None:
        at = named(check(with_kpis(report, **{name: limit}), **{f"max_{name}": limit}), name)
        assert (at.status, at.measured, at.limit) == (GateStatus.PASS, limit, limit)
        above = named(check(with_kpis(report, **{name: limit + 1e-6}), **{f"max_{name}": limit}), name)
        assert (above.status, above.code) == (GateStatus.FAIL, "ABOVE_LIMIT")

    @pytest.mark.parametrize("limit", [0.01, 0.5, 0.8, 1.0])
    @pytest.mark.parametrize("name", ["frontier_success_rate", "determinism_rate"])
    def test_lower_limits_are_inclusive(self, report: KpiReport, name: str, limit: float) -> None:
        at = named(check(with_kpis(report, **{name: limit}), **{f"min_{name}": limit}), name)
        assert (at.status, at.measured, at.limit) == (GateStatus.PASS, limit, limit)
        below = named(check(with_kpis(report, **{name: limit - 1e-6}), **{f"min_{name}": limit}), name)
        assert (below.status, below.code) == (GateStatus.FAIL, "BELOW_LIMIT")

    def test_the_defaults_are_the_roadmaps(self) -> None:
        limits = KpiLimits()
        assert (limits.max_missing_telemetry_rate, limits.max_polluted_run_rate) == (0.01, 0.1)
        assert (limits.min_frontier_success_rate, limits.min_determinism_rate) == (0.8, 1.0)

    def test_culprits_are_named_worst_first_and_not_without_end(self, report: KpiReport) -> None:
        rows = tuple(replace(report.rows[0], quant_tag=f"Q{n}", polluted_run_rate=n / 10) for n in range(9))
        evidence = named(check(replace(with_kpis(report, polluted_run_rate=0.4), rows=rows)), "polluted_run_rate").evidence
        assert evidence.endswith("40 % is above 10 %: m Q8 80 %, m Q7 70 %, m Q6 60 %, m Q5 50 %, m Q4 40 % and 3 more")

    @pytest.mark.parametrize("rate", [0.0, 0.5])
    def test_a_row_that_does_not_repeat_itself_is_named(self, report: KpiReport, rate: float) -> None:
        first, second = report.rows
        made = replace(with_kpis(report, determinism_rate=rate), rows=(first, replace(second, determinism_rate=rate)))
        found = named(check(made), "determinism_rate")
        assert found.status is GateStatus.FAIL
        assert found.evidence.endswith(": outputs differed in m Q8_0")


class TestWhatCannotBeJudged:
    def test_a_single_run_is_skipped_not_passed(self, trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
        made = kpi_report(make_summary(make_plan(("F16",), TASKS), [trial("F16", task) for task in TASKS]), SOURCE)
        for limit in (1.0, 0.0):
            checks = check(made, min_determinism_rate=limit)
            found = named(checks, "determinism_rate")
            assert (found.status, found.code, found.measured) == (GateStatus.SKIP, "NOT_DETERMINABLE", None)
            assert status_of(checks) is status_of(checks, allow_skip=True) is GateStatus.SKIP

    def test_a_summary_without_trials_fails(self, make_plan: MakePlan, make_summary: Summarise) -> None:
        made = kpi_report(make_summary(make_plan(("F16", "Q8_0"), TASKS), []), SOURCE)
        checks = check(
            made, max_missing_telemetry_rate=1, max_polluted_run_rate=1, min_frontier_success_rate=0, min_determinism_rate=0
        )
        assert named(checks, "trials").code == "NO_TRIALS"
        assert named(checks, "consistency").status is GateStatus.PASS
        assert status_of(checks) is GateStatus.FAIL

    def test_a_failure_outweighs_a_skip(self, trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
        made = kpi_report(make_summary(make_plan(("F16",), TASKS), [trial("F16", "t0")]), SOURCE)
        checks = check(made)
        assert named(checks, "trials").code == "INCOMPLETE"
        assert named(checks, "determinism_rate").status is GateStatus.SKIP
        assert status_of(checks) is GateStatus.FAIL

    def test_no_check_at_all_is_no_pass(self) -> None:
        assert status_of(()) is GateStatus.SKIP


class TestEdited:
    @pytest.mark.parametrize(
        ("kpis", "says"),
        [
            ({"polluted_run_rate": 0.0}, "polluted_run_rate says 0, the rows say 0.25"),
            ({"polluted_run_rate": 0.249997}, "polluted_run_rate says 0.249997, the rows say 0.25"),
            ({"determinism_rate": 1.0}, "determinism_rate says 1, the rows say 0.75"),
            ({"determinism_rate": None}, "determinism_rate says null, the rows say 0.75"),
            ({"frontier_success_rate": 1.0}, "frontier_success_rate says 1, the rows say 0"),
            ({"weighted_runs": 80}, "weighted_runs says 80, the rows say 8"),
            ({"missing_telemetry_rate": 0.0}, "missing_telemetry_rate says 0, the rows say 0.25 to 0.25"),
        ],
    )
    def test_kpis_that_the_rows_deny_fail_whatever_the_limits(
        self, trial: Make, make_plan: MakePlan, make_summary: Summarise, kpis: dict[str, Any], says: str
    ) -> None:
        rows = []
        for tag in ("F16", "Q8_0"):
            rows += [trial(tag, task, repetition=n) for task in TASKS for n in (0, 1)]
            rows[-1] = trial(tag, "t1", repetition=1, run_quality_reasons=FOREIGN, token_status=TokenStatus.TIMING_UNAVAILABLE)
        rows[0] = replace(rows[0], output_sha256="x" * 64)
        honest = kpi_report(make_summary(make_plan(("F16", "Q8_0"), TASKS, runs=2), rows), SOURCE)
        assert named(check(honest), "consistency").status is GateStatus.PASS
        edited = with_kpis(honest, **kpis)
        lax = {"max_missing_telemetry_rate": 1, "max_polluted_run_rate": 1, "min_frontier_success_rate": 0}
        checks = check(edited, **lax, min_determinism_rate=0)
        found = named(checks, "consistency")
        assert (found.status, found.code) == (GateStatus.FAIL, "KPIS_DISAGREE_WITH_ROWS")
        assert says in found.evidence
        assert status_of(checks, allow_skip=True) is GateStatus.FAIL

    def test_the_tolerance_does_not_grow_with_the_rows(self, report: KpiReport) -> None:
        rows = tuple(replace(report.rows[0], quant_tag=f"Q{n}") for n in range(1000))
        whole = replace(with_kpis(report, weighted_runs=4000), rows=rows)
        assert named(check(whole), "consistency").status is GateStatus.PASS
        assert named(check(with_kpis(whole, polluted_run_rate=1e-5)), "consistency").status is GateStatus.FAIL

    def test_a_row_that_was_declared_eligible_by_hand(self, trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
        rows = [trial(tag, task, adherence_score=0.0) for tag in ("F16", "Q8_0") for task in TASKS]
        summary = make_summary(make_plan(("F16", "Q8_0"), TASKS), rows)
        (session,) = summary.sessions
        claimed = tuple(replace(row, eligible=True) for row in session.per_quant)
        edited = replace(
            summary,
            sessions=(replace(session, per_quant=claimed),),
            stability_kpis=replace(summary.stability_kpis, frontier_success_rate=1.0),
        )
        assert named(check(kpi_report(edited, SOURCE)), "consistency").code == "KPIS_DISAGREE_WITH_ROWS"

    @pytest.mark.parametrize("version", ["2.0.0", "2.1.0"])
    def test_an_older_summary_that_weighs_determinism_otherwise_is_not_accused(self, report: KpiReport, version: str) -> None:
        older = replace(with_kpis(report, determinism_rate=0.9), source=replace(SOURCE, schema_version=version))
        found = named(check(older), "consistency")
        assert found.status is GateStatus.PASS
        assert version in found.evidence
        assert named(check(older), "determinism_rate").status is GateStatus.FAIL
        still_judged = with_kpis(older, polluted_run_rate=0.5)
        assert named(check(still_judged), "consistency").status is GateStatus.FAIL


CELL = st.fixed_dictionaries(
    {
        "status": st.sampled_from([TrialStatus.OK, TrialStatus.OK, TrialStatus.EMPTY, TrialStatus.CRASHED]),
        "attempts": st.sampled_from([0, 1, 1, 1, 2]),
        "score": st.sampled_from([0.0, 0.5, 1.0]),
        "output": st.sampled_from("ab"),
        "disturbed": st.booleans(),
        "silent": st.booleans(),
    }
)


@st.composite
def journals(draw: st.DrawFn) -> dict[str, Any]:
    quants = draw(st.sampled_from([("F16",), ("F16", "Q8_0"), ("F16", "Q8_0", "Q2_K")]))
    tasks, runs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    models = draw(st.sampled_from([("m",), ("m", "n")]))
    cells = [(model, tag, f"t{task}", run) for model in models for tag in quants for task in range(tasks) for run in range(runs)]
    return {
        "models": models,
        "quants": quants,
        "tasks": tuple(f"t{task}" for task in range(tasks)),
        "runs": runs,
        "cells": [(cell, draw(CELL)) for cell in cells],
        "policy": draw(st.sampled_from(list(PolicyName))),
        "include_invalid": draw(st.booleans()),
    }


def rows_of(journal: dict[str, Any], trial: Make, failure: Make) -> list[TrialView]:
    rows = []
    for (model, tag, task, run), drawn in journal["cells"]:
        for attempt in range(1, drawn["attempts"] + 1):
            changes: dict[str, Any] = {"model_id": model, "repetition": run, "attempt": attempt}
            if drawn["disturbed"] and attempt == 1:
                changes["run_quality_reasons"] = FOREIGN
            if drawn["status"] is TrialStatus.CRASHED:
                rows.append(failure(tag, task, **changes))
                continue
            if drawn["silent"]:
                changes |= {"token_status": TokenStatus.TOKEN_COUNT_UNAVAILABLE, "output_tokens": None}
            changes |= {"status": drawn["status"], "adherence_score": drawn["score"], "output_sha256": drawn["output"] * 64}
            rows.append(trial(tag, task, **changes))
    return rows


@settings(max_examples=60, deadline=None)
@given(journal=journals())
def test_the_kpis_of_a_summary_always_follow_from_its_rows(
    journal: dict[str, Any], trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    plan = make_plan(
        journal["quants"],
        journal["tasks"],
        journal["runs"],
        name=journal["policy"],
        include_invalid=journal["include_invalid"],
    )
    sources = tuple(ModelSource(model_id=model, kind=ModelKind.GGUF) for model in journal["models"])
    plan = replace(plan, models=sources, spec=replace(plan.spec, models=journal["models"]))
    rows = rows_of(journal, trial, failure)
    made = kpi_report(make_summary(plan, rows, {}), SOURCE)
    checks = check(made)
    found = named(checks, "consistency")
    assert found.status is GateStatus.PASS, found.evidence
    assert named(checks, "trials").status is (GateStatus.PASS if made.complete and rows else GateStatus.FAIL)
    assert made == msgspec.json.decode(msgspec.json.encode(made), type=KpiReport)


def nights(report: KpiReport, rates: Sequence[float], name: str = "polluted_run_rate", **changes: Any) -> list[KpiReport]:
    return [
        replace(with_kpis(report, **{name: rate}), source=replace(SOURCE, sha256=f"{n:064x}"), **({"plan_digest": "p"} | changes))
        for n, rate in enumerate(rates)
    ]


def trend(latest: KpiReport, earlier: Sequence[KpiReport], name: str, **settings_: Any) -> GateCheck:
    return named(check_trend(latest, earlier, **({"window": 7, "max_worsening": 0.05} | settings_)), f"{name}_trend")


class TestTrend:
    @pytest.mark.parametrize("known", [0, 1, 2])
    def test_fewer_than_three_nights_are_no_trend(self, report: KpiReport, known: int) -> None:
        checks = check_trend(report, nights(report, [0.0] * known), window=7, max_worsening=0.05)
        assert {item.code for item in checks} == {"TOO_FEW_NIGHTS"}
        assert status_of(checks) is GateStatus.SKIP
        assert f"{known} comparable earlier night" in checks[0].evidence

    def test_as_good_as_the_nights_before_passes(self, report: KpiReport) -> None:
        checks = check_trend(report, nights(report, [0.0, 0.1, 0.2]), window=7, max_worsening=0.05)
        assert status_of(checks) is GateStatus.PASS
        assert named(checks, "polluted_run_rate_trend").limit == 0.1

    @pytest.mark.parametrize(
        ("name", "usual", "at_the_limit", "beyond"),
        [
            ("polluted_run_rate", 0.1, 0.15, 0.150002),
            ("polluted_run_rate", 0.5, 0.55, 0.550002),
            ("missing_telemetry_rate", 0.0, 0.05, 0.050002),
            ("determinism_rate", 1.0, 0.95, 0.949998),
            ("frontier_success_rate", 0.35, 0.3, 0.299998),
        ],
    )
    def test_worse_than_the_median_fails_and_the_limit_is_inclusive(
        self, report: KpiReport, name: str, usual: float, at_the_limit: float, beyond: float
    ) -> None:
        # the median: one night far off does not move what is usual
        earlier = nights(report, [usual, 0.0, usual, 1.0, usual], name)
        assert trend(with_kpis(report, **{name: at_the_limit}), earlier, name).status is GateStatus.PASS
        failed = trend(with_kpis(report, **{name: beyond}), earlier, name)
        assert (failed.status, failed.code, failed.limit) == (GateStatus.FAIL, "WORSE_THAN_TREND", usual)

    def test_better_never_fails(self, report: KpiReport) -> None:
        assert trend(report, nights(report, [0.9] * 3), "polluted_run_rate", max_worsening=0.0).status is GateStatus.PASS
        assert trend(report, nights(report, [0.1] * 3, "determinism_rate"), "determinism_rate").status is GateStatus.PASS

    def test_only_the_last_nights_of_the_window_count(self, report: KpiReport) -> None:
        earlier = nights(report, [0.9] * 10 + [0.0] * 3)
        latest = with_kpis(report, polluted_run_rate=0.5)
        assert trend(latest, earlier, "polluted_run_rate", window=3).status is GateStatus.FAIL
        assert trend(latest, earlier, "polluted_run_rate", window=13).status is GateStatus.PASS
        assert trend(latest, earlier, "polluted_run_rate", window=2).code == "TOO_FEW_NIGHTS"

    @pytest.mark.parametrize(
        "other",
        [
            {"hardware_fingerprint": "linux|other|64c|1tb|h100"},
            {"execution_lane": "ci"},
            {"vram_profile": "stress"},
            {"models": ("m", "n")},
        ],
    )
    def test_nights_on_other_terms_do_not_count(self, report: KpiReport, other: dict[str, Any]) -> None:
        earlier = nights(report, [0.0] * 2) + nights(report, [0.0] * 5, **other)
        assert trend(report, earlier, "polluted_run_rate").code == "TOO_FEW_NIGHTS"
        mixed = nights(report, [0.0] * 3) + nights(report, [1.0] * 7, **other)
        latest = with_kpis(report, polluted_run_rate=0.3)
        assert trend(latest, mixed, "polluted_run_rate", window=3).status is GateStatus.FAIL

    def test_what_was_not_determined_is_skipped(self, report: KpiReport) -> None:
        unknown = with_kpis(report, determinism_rate=None)
        assert trend(unknown, nights(report, [0.0] * 3), "determinism_rate").code == "NOT_DETERMINABLE"
        silent = nights(unknown, [0.0] * 5)
        assert trend(report, silent, "determinism_rate").code == "TOO_FEW_NIGHTS"
