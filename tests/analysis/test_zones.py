"""What `three-zone-v1` recommends and says, from scripted journals of many tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fewbits.records.estimate import Estimate
from fewbits.records.plan import Plan, PolicyName
from fewbits.records.summary import DivergenceEstimate, FrontierReason, QuantRow, SweepSummary, VerdictCode
from fewbits.records.trial import TrialView

Make = Callable[..., TrialView]
MakePlan = Callable[..., Plan]
Summarise = Callable[..., SweepSummary]
TASKS = tuple(f"t{n:03d}" for n in range(200))


@pytest.fixture
def summarise_zones(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> Callable[..., SweepSummary]:
    """Summarise variants that fail every n-th task (0: none), at their own speeds. F16 is the reference and fails none."""

    def build(fails: dict[str, int], seconds: dict[str, float] | None = None, **policy: Any) -> SweepSummary:
        tasks = TASKS[: policy.pop("tasks", len(TASKS))]
        plan = make_plan(tuple(fails), tasks, **({"name": PolicyName.THREE_ZONE} | policy))
        rows = [
            trial(
                tag,
                task,
                block=place,
                adherence_score=0.0 if every and place % every == 0 else 1.0,
                total_latency=(seconds or {}).get(tag, 0.5),
            )
            for place, task in enumerate(tasks)
            for tag, every in fails.items()
        ]
        return make_summary(plan, rows)

    return build


def row(summary: SweepSummary, tag: str) -> QuantRow:
    return next(item for item in summary.sessions[0].per_quant if item.quant_tag == tag)


def verdict(summary: SweepSummary, tag: str) -> VerdictCode | None:
    found = row(summary, tag).verdict
    return found.verdict if found is not None else None


def test_the_smallest_and_the_fastest_of_the_proven_are_picked(summarise_zones: Callable[..., SweepSummary]) -> None:
    seconds = {"F16": 1.0, "Q8_0": 0.4, "Q4_K_M": 0.5, "Q2_K": 0.1}
    summary = summarise_zones({"F16": 0, "Q8_0": 0, "Q4_K_M": 0, "Q2_K": 3}, seconds)
    (session,) = summary.sessions
    assert verdict(summary, "F16") is None
    assert [verdict(summary, tag) for tag in ("Q8_0", "Q4_K_M", "Q2_K")] == ["EQUIVALENT", "EQUIVALENT", "WORSE"]
    frontier = session.efficiency_frontier
    assert (frontier.minimum_viable_quant_tag, frontier.best_value_quant_tag) == ("Q4_K_M", "Q8_0")
    assert session.recommendation.startswith("Use Q4_K_M for the fewest bits (5.9 bits per weight, proven equivalent to F16")
    assert "or Q8_0 for speed" in session.recommendation
    because = session.recommendation_detail.because
    assert because[0].startswith("The bar: proven to be within 5 points of F16's 100 % of the checks met, or better")
    assert any(sentence.startswith("Q2_K is WORSE than F16: -33.5 points") for sentence in because)
    assert any("0.40 of F16's time within a block" in sentence for sentence in because)
    ratio = row(summary, "Q8_0").latency_ratio
    assert ratio is not None
    assert ratio.value == 0.4


def test_one_pick_is_said_once(summarise_zones: Callable[..., SweepSummary]) -> None:
    summary = summarise_zones({"F16": 0, "Q8_0": 0}, {"F16": 1.0, "Q8_0": 0.5})
    says = summary.sessions[0].recommendation
    assert says.startswith("Use Q8_0: 8.5 bits per weight, proven equivalent to F16 on 200 tasks.")
    assert says.endswith("Of all that are proven it has the fewest bits and is the fastest.")


def test_when_all_others_lose_the_reference_is_kept(summarise_zones: Callable[..., SweepSummary]) -> None:
    summary = summarise_zones({"F16": 0, "Q8_0": 4, "Q2_K": 2})
    (session,) = summary.sessions
    assert session.efficiency_frontier.reason is FrontierReason.OK
    assert session.recommendation_detail.minimum_viable_quant == "F16"
    assert session.recommendation == "Keep F16: no smaller variant is proven to keep up with it (Q8_0 and Q2_K are proven worse)."


def test_while_nothing_is_proven_nothing_is_recommended(summarise_zones: Callable[..., SweepSummary]) -> None:
    summary = summarise_zones({"F16": 0, "Q8_0": 0, "Q2_K": 2}, tasks=30)
    (session,) = summary.sessions
    assert session.efficiency_frontier.reason is FrontierReason.NOT_DECIDED
    assert session.recommendation_detail.minimum_viable_quant is None
    assert session.recommendation_detail.best_value_quant is None
    assert session.recommendation.startswith(
        "Not decided yet: 30 tasks prove for no smaller variant that it keeps up. Q8_0 is nearest"
    )
    (missing,) = session.recommendation_detail.missing
    assert missing.startswith("Q8_0: 0 points")
    assert "would decide" in missing


def test_a_sorted_bank_proves_nothing_by_its_order(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    """Losses come first and as many gains later: the mean is 0, whatever the first half looked like."""
    plan = make_plan(("F16", "Q8_0"), TASKS, name=PolicyName.THREE_ZONE)
    scores = {"F16": lambda place: float(not 60 <= place < 120), "Q8_0": lambda place: float(place >= 60)}
    rows = [
        trial(tag, task, block=place, adherence_score=scores[tag](place)) for place, task in enumerate(TASKS) for tag in scores
    ]
    summary = make_summary(plan, rows)
    found = row(summary, "Q8_0").verdict
    assert found is not None
    assert (found.verdict, found.difference.value if found.difference else None) == ("UNRESOLVED", 0.0)


def test_an_accepted_variant_over_the_latency_ceiling_is_no_pick(summarise_zones: Callable[..., SweepSummary]) -> None:
    summary = summarise_zones({"F16": 0, "Q8_0": 0}, {"F16": 0.5, "Q8_0": 2.0}, latency_ceiling=1.0)
    assert summary.sessions[0].recommendation_detail.minimum_viable_quant == "F16"
    assert any(
        "but 2.00 s a task is over the limit" in sentence for sentence in summary.sessions[0].recommendation_detail.because
    )


def test_a_single_variant_has_nothing_to_be_compared_with(summarise_zones: Callable[..., SweepSummary]) -> None:
    summary = summarise_zones({"F16": 0}, tasks=5)
    assert summary.sessions[0].recommendation == "F16 is the only variant, so there is nothing to compare it with."


def test_divergence_beyond_the_harm_line_eliminates(trial: Make, make_plan: MakePlan) -> None:
    from fewbits.analysis.canary import judge_canary
    from fewbits.analysis.summary import summarise
    from fewbits.records.plan import CanaryPolicy

    plan = make_plan(("F16", "Q2_K"), TASKS, name=PolicyName.THREE_ZONE)
    rows = [trial(tag, task, block=place) for place, task in enumerate(TASKS) for tag in ("F16", "Q2_K")]
    mean = Estimate(value=0.9, low=0.8, high=1.0, level=0.95, method="by hand", n=16)
    none: dict[str, Any] = dict.fromkeys(
        ("p99_nats", "top_token_agreement", "perplexity_ratio", "reference_perplexity", "variant_perplexity", "floor_nats")
    )
    divergence = DivergenceEstimate(
        text_name="t",
        text_digest="d",
        method="full_logits",
        engine="e",
        engine_version="1",
        windows=16,
        positions=2000,
        mean_nats=mean,
        below_floor=None,
        truncation_nats=None,
        top_k=256,
        lower_bound=0.7,
        **none,
    )
    summary = summarise(
        plan,
        {},
        rows,
        canary=judge_canary([], CanaryPolicy(runs=0), model_id=None, quant_tag=None, task_id=None),
        journal_digest="j",
        fewbits_version="0",
        divergence={("m", "Q2_K"): divergence},
        harm_ps={("m", "Q2_K"): 1e-6},
    )
    found = row(summary, "Q2_K")
    assert found.verdict is not None
    assert (found.verdict.verdict, found.verdict.reasons) == ("WORSE", ("DIVERGENCE_HARM", "INSIDE_MARGIN"))
    assert found.divergence == divergence
    assert found.uncertainty is not None
    assert found.uncertainty.minimum_viable_probability == 0
    because = summary.sessions[0].recommendation_detail.because
    assert any("0.90 nats a token away from the reference, beyond the harm line of 0.5" in sentence for sentence in because)
