"""Each model is judged by its own limits: picks, verdicts, deciding, and the strict KPIs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from fewbits.analysis.canary import judge_canary
from fewbits.analysis.replay import new_race
from fewbits.analysis.summary import summarise
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.plan import CanaryPolicy, DecidePolicy, Plan, PolicyName
from fewbits.records.summary import FrontierReason, Session, SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import ModelKind, ModelSource
from fewbits.report.markdown import render_markdown

Make = Callable[..., TrialView]
TASKS = tuple(f"t{number}" for number in range(30))
QUANTS = ("F16", "Q8_0")


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    """Two models that answer alike; the second has limits of its own."""
    plan = make_plan(QUANTS, TASKS, latency_ceiling=10.0)
    own = msgspec.structs.replace(plan.spec.policy, latency_ceiling=0.1, equivalence_margin=0.4)
    spec = msgspec.structs.replace(plan.spec, models=("m", "n"), model_policies={"n": own})
    models = (*plan.models, ModelSource(model_id="n", kind=ModelKind.GGUF))
    return msgspec.structs.replace(plan, spec=spec, models=models, trials_total=2 * plan.trials_total)


@pytest.fixture
def rows(trial: Make) -> list[TrialView]:
    return [trial(quant, task, model_id=model, adherence_score=1.0) for model in ("m", "n") for quant in QUANTS for task in TASKS]


def summary_of(plan: Plan, rows: list[TrialView]) -> SweepSummary:
    canary = judge_canary([], CanaryPolicy(runs=0), model_id=None, quant_tag=None, task_id=None)
    return summarise(plan, {}, rows, canary=canary, journal_digest="j" * 64, fewbits_version="0")


def sessions_of(plan: Plan, rows: list[TrialView]) -> tuple[Session, Session]:
    first, second = summary_of(plan, rows).sessions
    return first, second


def test_picks_follow_each_models_limits(plan: Plan, rows: list[TrialView]) -> None:
    first, second = sessions_of(plan, rows)
    assert first.efficiency_frontier.latency_ceiling == 10.0
    assert first.recommendation_detail.minimum_viable_quant is not None
    assert second.efficiency_frontier.latency_ceiling == 0.1
    assert second.efficiency_frontier.reason is FrontierReason.NO_QUANT_MET_LIMITS
    assert (first.selection_policy, second.selection_policy) == (None, plan.spec.model_policies["n"])


def test_verdicts_use_each_models_margin(plan: Plan, rows: list[TrialView]) -> None:
    verdicts = [row.verdict for session in sessions_of(plan, rows) for row in session.per_quant if row.verdict is not None]
    assert [verdict.margin for verdict in verdicts] == [0.05, 0.4]


def test_a_race_uses_each_models_margin(plan: Plan, rows: list[TrialView]) -> None:
    """30 equal answers prove equality within 40 points, not within 5."""
    policy = msgspec.structs.replace(plan.spec.policy, name=PolicyName.THREE_ZONE)
    own = {"n": msgspec.structs.replace(plan.spec.model_policies["n"], name=PolicyName.THREE_ZONE)}
    spec = msgspec.structs.replace(plan.spec, policy=policy, model_policies=own, decide=DecidePolicy(enabled=True))
    deciding = msgspec.structs.replace(plan, spec=spec)
    first, second = sessions_of(deciding, rows)
    assert first.decision_log is not None
    assert second.decision_log is not None
    assert (first.decision_log.undecided, second.decision_log.undecided) == (("Q8_0",), ())
    races = [new_race(deciding, model, {}, "F16", {}) for model in ("m", "n")]
    for race in races:
        for number, task in enumerate(TASKS):
            assert task
            race.close_block(number, [{"Q8_0": 0.0}])
    assert [bool(race.finished) for race in races] == [False, True]


def test_strict_kpis_judge_each_session_by_its_own_limits(plan: Plan, rows: list[TrialView]) -> None:
    assert summary_of(plan, rows).stability_kpis.frontier_success_rate == 0.5


def test_the_report_shows_a_sessions_own_limits(plan: Plan, rows: list[TrialView]) -> None:
    summary = decode(encode_pretty(summary_of(plan, rows)), SweepSummary, "summary")
    text = render_markdown(summary)
    assert "| limits of `n` alone | latency ceiling 0.1, equivalence margin 0.4 |" in text
    assert "limits of `m` alone" not in text
    first, second = text.split("\n## `n`\n")
    assert "median latency at most 10.0 s" in first
    assert "median latency at most 0.100 s" in second
    assert "--model-threshold n:latency_ceiling=0.1" in text
    assert "--model-threshold n:equivalence_margin=0.4" in text
