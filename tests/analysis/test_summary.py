from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction_row_samples import nothing
from fewbits.core.codec import encode_canonical, encode_pretty
from fewbits.core.errors import IdentityError, StoreError
from fewbits.records.base import PollutionReason, RunQuality, TokenStatus, TrialStatus, Unavailable
from fewbits.records.plan import EffectiveControls, Plan
from fewbits.records.summary import FrontierReason, InvalidReason, QuantRow, Session, SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import Artifact, VariantWarning, WarningCode

Make = Callable[..., TrialView]
MakePlan = Callable[..., Plan]
Summarise = Callable[..., SweepSummary]
GOLDEN = Path(__file__).with_name("golden") / "summary.json"
TASKS = tuple(f"t{i:02d}" for i in range(40))
FOREIGN = (PollutionReason.FOREIGN_CPU_LOAD,)


def row(summary: SweepSummary, tag: str) -> QuantRow:
    return next(item for item in summary.sessions[0].per_quant if item.quant_tag == tag)


def ladder(trial: Make, passes: dict[str, int], seconds: dict[str, float] | None = None, **changes: Any) -> list[TrialView]:
    """For each quant, the first `passes` tasks score 1, the others 0."""
    pace = seconds or {}
    return [
        trial(tag, task, adherence_score=float(i < passes[tag]), total_latency=pace.get(tag, 0.5), **changes)
        for tag in passes
        for i, task in enumerate(TASKS)
    ]


def journal(trial: Make, failure: Make) -> tuple[tuple[str, ...], list[TrialView]]:
    """Two repetitions of four tasks on three quants: a superseded crash, a timeout, a polluted trial, two scores apart."""
    quants = ("F16", "Q8_0", "Q2_K")
    rows = [
        trial(
            quant,
            f"t{task}",
            repetition=repetition,
            index=task,
            bucket="logic" if task < 2 else "extraction",
            adherence_score=score,
            output_sha256=f"{task}" * 64,
            total_latency=0.4 + 0.01 * task + 0.002 * repetition,
            peak_memory_rss=memory * 1024**2,
            started_at=f"2026-02-21T10:00:{10 * task + repetition:02d}Z",
        )
        for quant, memory, scores in (("F16", 300, (1, 1, 1, 0.5)), ("Q8_0", 180, (1, 1, 0.5, 0.5)), ("Q2_K", 110, (1, 0, 0, 0)))
        for task, score in enumerate(scores)
        for repetition in range(2)
    ]
    rows[0] = failure("F16", "t0", started_at="2026-02-21T09:59:00Z")
    rows.append(trial("F16", "t0", attempt=2, adherence_score=1.0, output_sha256="0" * 64, started_at="2026-02-21T10:09:00Z"))
    rows[8] = trial("Q8_0", "t0", total_latency=4.0, output_sha256="f" * 64, run_quality_reasons=FOREIGN)
    rows[-3] = failure("Q2_K", "t3", TrialStatus.TIMEOUT, bucket="extraction", total_latency=30.0)
    return quants, rows


def test_golden_summary(trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    """Every number of a small journal. To accept a deliberate change: delete the file, run once, read the diff."""
    quants, rows = journal(trial, failure)
    found = encode_pretty(make_summary(make_plan(quants, ("t0", "t1", "t2", "t3"), 2), rows))
    if not GOLDEN.exists():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_bytes(found)
        pytest.fail("golden file was missing and has been written: read it, then run again")
    assert found == GOLDEN.read_bytes()


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_any_row_order_gives_the_same_bytes(
    trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise, seed: int
) -> None:
    quants, rows = journal(trial, failure)
    plan = make_plan(quants, ("t0", "t1", "t2", "t3"), 2)
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    assert encode_canonical(make_summary(plan, mixed)) == encode_canonical(make_summary(plan, rows))


def test_scripted_journal_by_hand(trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    quants, rows = journal(trial, failure)
    summary = make_summary(make_plan(quants, ("t0", "t1", "t2", "t3"), 2), rows)
    reference, middle, small = row(summary, "F16"), row(summary, "Q8_0"), row(summary, "Q2_K")
    assert summary.run_quality.superseded_attempts == 1
    assert reference.status_counts.crashed == 0
    assert (reference.adherence_score, middle.adherence_score, small.adherence_score) == (0.875, 0.75, 0.25)
    # the polluted 4 s trial is left out of the timings, not out of the scores
    assert (middle.test_runs, middle.clean_runs, middle.polluted_run_rate) == (8, 7, 0.125)
    assert middle.latency_p95 is not None
    assert middle.latency_p95.value < 0.5
    assert middle.determinism_rate == 0.75
    assert middle.generation_tokens_per_second == 100.0
    assert middle.vibe_metrics.vibe_delta == pytest.approx(0.125 / (120 / 1024), abs=1e-6)
    # one of two repetitions of t3 timed out: one answer left, so three tasks can show determinism
    assert (small.determinism_rate, small.status_counts.timeout) == (1.0, 1)
    assert small.missing_telemetry_rate == 0.0
    assert [bucket.adherence_score for bucket in middle.by_bucket] == [0.5, 1.0]
    assert summary.complete
    assert summary.controls_effective["affinity"] == [[0, 1]]
    assert (summary.provenance.first_trial_at, summary.provenance.last_trial_at) == (
        "2026-02-21T10:00:00Z",
        "2026-02-21T10:09:00Z",
    )


def test_every_null_of_a_row_has_a_reason(trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    quants, rows = journal(trial, failure)
    for summary in (
        make_summary(make_plan(quants, ("t0", "t1"), 2), rows[:2]),
        make_summary(make_plan(("X9", "F16"), TASKS), []),
    ):
        for item in summary.sessions[0].per_quant:
            nulls = {name for name in QuantRow.__struct_fields__ if getattr(item, name) is None}
            assert nulls == set(item.unavailable)
            vibes = {
                name
                for name in ("latency_variance", "code_density", "gen_retries", "vibe_delta")
                if getattr(item.vibe_metrics, name) is None
            }
            assert vibes == set(item.vibe_metrics.status)


def session(summary: SweepSummary) -> Session:
    return summary.sessions[0]


def test_two_picks_and_their_sentences(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = ladder(trial, {"F16": 30, "Q8_0": 30, "Q4_K_M": 29, "Q2_K": 12}, {"F16": 1.0, "Q8_0": 0.4, "Q4_K_M": 0.5, "Q2_K": 0.3})
    found = session(make_summary(make_plan(("Q2_K", "F16", "Q4_K_M", "Q8_0"), TASKS), rows))
    assert [item.quant_tag for item in found.per_quant] == ["F16", "Q8_0", "Q4_K_M", "Q2_K"]
    assert found.baseline_quant == "F16"
    assert (found.efficiency_frontier.minimum_viable_quant_tag, found.efficiency_frontier.best_value_quant_tag) == (
        "Q4_K_M",
        "Q8_0",
    )
    assert found.efficiency_frontier.minimum_adherence == pytest.approx(0.7125)
    assert found.recommendation == (
        "Use Q4_K_M for the fewest bits that hold up (5.9 bits per weight, 72 % of the checks met, 0.500 s a task), "
        "or Q8_0 for the most quality per second (8.5 bits per weight, 75 % of the checks met, 0.400 s a task). "
        "40 tasks cannot prove it yet."
    )
    because, uncertain = "\n".join(found.recommendation_detail.because), "\n".join(found.recommendation_detail.uncertain)
    assert "Q2_K is out: 30 % of the checks met is under the bar of 71 %." in because
    assert "40 tasks cannot tell Q4_K_M from F16: the difference is -2.5 points" in uncertain
    assert "Q4_K_M may miss the bar" in uncertain


def test_failures_count_zero_and_do_not_survive_as_speed(
    trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    rows = ladder(trial, {"F16": 40})
    rows += [trial("Q8_0", task) for task in TASKS[:20]] + [failure("Q8_0", task) for task in TASKS[20:]]
    found = make_summary(make_plan(("F16", "Q8_0"), TASKS), rows)
    assert row(found, "Q8_0").adherence_score == 0.5
    assert row(found, "Q8_0").valid
    assert not row(found, "Q8_0").eligible
    assert session(found).recommendation_detail.minimum_viable_quant == "F16"
    assert "Nothing smaller than the reference F16 met the limits." in session(found).recommendation


def test_failed_trial_with_a_score_still_counts_zero(
    trial: Make, failure: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    rows = [failure("F16", "t0", adherence_score=1.0), failure("F16", "t1", adherence_score=None)]
    assert row(make_summary(make_plan(("F16",), ("t0", "t1")), rows), "F16").adherence_score == 0.0


def test_two_equal_crashes_are_not_determinism(failure: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = [failure("F16", "t0", repetition=i) for i in range(2)]
    found = row(make_summary(make_plan(("F16",), ("t0",), 2), rows), "F16")
    assert (found.determinism_rate, found.unavailable["determinism_rate"]) == (None, "TOO_FEW_SAMPLES")


def test_polluted_row_is_excluded_unless_let_in(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = ladder(trial, {"F16": 40}) + ladder(trial, {"Q8_0": 40}, run_quality_reasons=FOREIGN)
    strict = make_summary(make_plan(("F16", "Q8_0"), TASKS), rows)
    assert row(strict, "Q8_0").invalid_reasons == (InvalidReason.NO_CLEAN_TRIALS, InvalidReason.POLLUTED)
    assert row(strict, "Q8_0").run_quality_reasons == FOREIGN
    assert row(strict, "Q8_0").total_latency is None
    assert row(strict, "Q8_0").unavailable["total_latency"] == "NO_CLEAN_TRIALS"
    assert session(strict).efficiency_frontier.minimum_viable_quant_tag == "F16"
    assert session(strict).efficiency_frontier.pareto_quant_tags == ("F16",)
    loose = make_summary(make_plan(("F16", "Q8_0"), TASKS, include_invalid=True), rows)
    assert row(loose, "Q8_0").total_latency == 0.5
    assert not row(loose, "Q8_0").valid
    assert session(loose).efficiency_frontier.minimum_viable_quant_tag == "Q8_0"
    assert "Invalid rows were let in on request: Q8_0." in session(loose).recommendation_detail.uncertain
    assert loose.stability_kpis == strict.stability_kpis
    assert strict.stability_kpis.polluted_run_rate == 0.5


def test_a_few_polluted_trials_are_tolerated(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = ladder(trial, {"F16": 40})
    rows[:10] = [trial("F16", task, run_quality_reasons=FOREIGN, total_latency=9.0) for task in TASKS[:10]]
    found = row(make_summary(make_plan(("F16",), TASKS), rows), "F16")
    assert (found.valid, found.total_latency, found.run_quality_status) == (True, 0.5, RunQuality.CLEAN)


def test_missing_telemetry_invalidates_and_status_is_the_worst(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = ladder(trial, {"F16": 40})
    why = (PollutionReason.MISSING_TOKEN_TIMINGS,)
    rows[0] = trial("F16", TASKS[0], token_status=TokenStatus.TIMING_UNAVAILABLE, decode_seconds=None, run_quality_reasons=why)
    found = row(make_summary(make_plan(("F16",), TASKS), rows), "F16")
    assert found.invalid_reasons == (InvalidReason.MISSING_TELEMETRY, InvalidReason.POLLUTED)
    assert found.token_metrics_status is TokenStatus.TIMING_UNAVAILABLE
    assert found.missing_telemetry_rate == 0.025
    assert found.generation_tokens_per_second == 100.0


def test_throughput_is_a_ratio_of_sums_over_processed_tokens(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = [
        trial("F16", "t0", output_tokens=1, decode_seconds=0.1, prompt_tokens=100, cached_prompt_tokens=90, prefill_seconds=0.1),
        trial(
            "F16", "t1", output_tokens=99, decode_seconds=0.9, prompt_tokens=10, cached_prompt_tokens=None, prefill_seconds=0.1
        ),
        trial("F16", "t2", output_tokens=0, decode_seconds=0.0, prompt_tokens=0, prefill_seconds=0.0),
    ]
    found = row(make_summary(make_plan(("F16",), ("t0", "t1", "t2")), rows), "F16")
    assert (found.generation_tokens_per_second, found.prompt_tokens_per_second) == (100.0, 100.0)


def test_unfinished_sweep_recommends_nothing_from_unfinished_rows(
    trial: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    rows = ladder(trial, {"F16": 40, "Q8_0": 40})[:-1]
    found = make_summary(make_plan(("F16", "Q8_0"), TASKS), rows)
    assert not found.complete
    assert row(found, "Q8_0").invalid_reasons == (InvalidReason.INCOMPLETE,)
    assert "1 trial of 80 planned are missing." not in session(found).recommendation_detail.uncertain
    assert "1 of the 80 planned trials is missing." in session(found).recommendation_detail.uncertain


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ({"run_quality_reasons": FOREIGN}, FrontierReason.REFERENCE_INVALID),
        ({"adherence_score": 0.05}, FrontierReason.REFERENCE_BELOW_FLOOR),
        ({"adherence_score": 0.0}, FrontierReason.REFERENCE_BELOW_FLOOR),
        ({"adherence_score": None}, FrontierReason.REFERENCE_NOT_SCORED),
    ],
)
def test_a_bad_reference_means_no_recommendation(
    reference: dict[str, Any], reason: FrontierReason, trial: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    rows = ladder(trial, {"Q8_0": 40}) + [trial("F16", task, **reference) for task in TASKS]
    found = session(make_summary(make_plan(("F16", "Q8_0"), TASKS), rows))
    assert found.efficiency_frontier.reason is reason
    assert found.efficiency_frontier.minimum_viable_quant_tag is None
    assert found.recommendation_detail.best_value_quant is None
    assert found.recommendation.startswith("No recommendation. The reference F16")
    assert not any(item.eligible for item in found.per_quant)


def test_floor_of_zero_still_never_recommends_an_all_failing_model(
    trial: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    found = session(make_summary(make_plan(("F16", "Q8_0"), TASKS, adherence_floor=0.0), ladder(trial, {"F16": 0, "Q8_0": 0})))
    assert found.efficiency_frontier.reason is FrontierReason.REFERENCE_BELOW_FLOOR


def test_everything_crashed(failure: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = [failure(tag, task) for tag in ("F16", "Q8_0") for task in TASKS]
    found = make_summary(make_plan(("F16", "Q8_0"), TASKS, include_invalid=True), rows)
    assert session(found).efficiency_frontier.minimum_viable_quant_tag is None
    assert found.stability_kpis.frontier_success_rate == 0.0
    assert found.stability_kpis.missing_telemetry_rate == 1.0
    assert row(found, "F16").unavailable["total_latency"] == "TRIAL_FAILED"


def test_everything_too_slow(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = ladder(trial, {"F16": 40, "Q8_0": 40}, {"F16": 20.0, "Q8_0": 11.0})
    found = session(make_summary(make_plan(("F16", "Q8_0"), TASKS), rows))
    assert found.efficiency_frontier.reason is FrontierReason.NO_QUANT_MET_LIMITS
    assert found.recommendation == "No recommendation. No variant met the limits."
    assert "Q8_0 is out: 11.0 s a task is over the limit." in found.recommendation_detail.because
    inclusive = session(make_summary(make_plan(("F16", "Q8_0"), TASKS, latency_ceiling=11.0), rows))
    assert inclusive.efficiency_frontier.minimum_viable_quant_tag == "Q8_0"


def test_ties_go_to_adherence_then_speed_then_bits(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    plan = make_plan(("F16", "Q8_0", "Q4_K_M"), TASKS)
    same = session(make_summary(plan, ladder(trial, {"F16": 40, "Q8_0": 40, "Q4_K_M": 40})))
    assert same.efficiency_frontier.best_value_quant_tag == "F16"
    better = ladder(trial, {"F16": 39, "Q8_0": 40, "Q4_K_M": 39}, {"F16": 0.39, "Q8_0": 0.4, "Q4_K_M": 0.39})
    assert session(make_summary(plan, better)).efficiency_frontier.best_value_quant_tag == "Q8_0"


def test_lossless_by_construction_is_never_sold_as_cheap_bits(
    trial: Make, make_plan: MakePlan, make_summary: Summarise, make_artifact: Callable[..., Artifact]
) -> None:
    lossless = (VariantWarning(code=WarningCode.LOSSLESS_BY_CONSTRUCTION, message="same grid"),)
    dequantized = (VariantWarning(code=WarningCode.DEQUANTIZED_REFERENCE, message="made from Q4_1"),)
    artifacts = {
        "F16": make_artifact("F16", 16.0, 270, warnings=dequantized),
        "Q8_0": make_artifact("Q8_0", 8.5, 145),
        "Q4_1": make_artifact("Q4_1", 5.0, 98, warnings=lossless),
    }
    rows = ladder(trial, {"F16": 40, "Q8_0": 40, "Q4_1": 40})
    found = session(make_summary(make_plan(("F16", "Q8_0", "Q4_1"), TASKS), rows, artifacts))
    sentence = "its score says nothing about what so few bits cost"
    assert found.recommendation_detail.minimum_viable_quant == "Q4_1"
    assert sentence in found.recommendation
    text = "\n".join((*found.recommendation_detail.because, *found.recommendation_detail.uncertain))
    assert sentence in text
    assert "The smallest that really gave up bits and still clears the bar is Q8_0" in text
    assert "what that first step cost is not measured here" in text


def test_rank_uses_measured_bits_then_nominal_and_never_rewards_ignorance(
    trial: Make, make_plan: MakePlan, make_summary: Summarise, make_artifact: Callable[..., Artifact]
) -> None:
    tags = ("Q4_0", "Q4_K_M", "BF16", "Q8_0", "latest")
    artifacts = {
        "Q4_0": make_artifact("Q4_0", 4.5, 90),
        "Q4_K_M": make_artifact("Q4_K_M", 4.9, 100),
        "BF16": make_artifact("BF16", 16.0, 270),
        "Q8_0": make_artifact("Q8_0", None, None),
    }
    rows = [trial(tag, task) for tag in tags for task in TASKS]
    found = make_summary(make_plan(tags, TASKS), rows, artifacts)
    assert [item.quant_tag for item in session(found).per_quant] == ["latest", "BF16", "Q8_0", "Q4_K_M", "Q4_0"]
    assert session(found).baseline_quant == "BF16"
    assert row(found, "Q8_0").unavailable["bits_per_weight"] == "NOMINAL_BITS"
    assert row(found, "latest").unavailable["bits_per_weight"] == "NOT_REPORTED"
    assert session(found).recommendation_detail.minimum_viable_quant == "Q4_0"


def test_other_weights_stop_the_summary(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    with pytest.raises(IdentityError, match="--fresh"):
        make_summary(make_plan(("F16",), ("t0",)), [trial("F16", "t0", variant_sha256="e" * 64)])


@pytest.mark.parametrize("changes", [{"plan_digest": "e" * 64}, {"quant_tag": "Q5_0"}, {"task_id": "other"}, {"model_id": "n"}])
def test_rows_of_another_plan_are_refused(
    changes: dict[str, Any], trial: Make, make_plan: MakePlan, make_summary: Summarise
) -> None:
    with pytest.raises(StoreError, match="plan"):
        make_summary(make_plan(("F16",), ("t0",)), [trial(**({"quant": "F16", "task": "t0"} | _as_arguments(changes)))])


def _as_arguments(changes: dict[str, Any]) -> dict[str, Any]:
    names = {"quant_tag": "quant", "task_id": "task"}
    return {names.get(name, name): value for name, value in changes.items()}


def test_canary_rows_are_not_matrix_rows(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    found = make_summary(make_plan(("F16",), ("t0",)), [trial("F16", "t0", phase="canary"), trial("F16", "t0")])
    assert (found.trials_counted, found.run_quality.superseded_attempts) == (1, 0)


def test_distinct_controls_show(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    rows = [trial("F16", "t0"), trial("F16", "t1", controls_effective=EffectiveControls(threads=1))]
    assert make_summary(make_plan(("F16",), ("t0", "t1")), rows).controls_effective["threads"] == [1, 2]


def test_rows_of_work_without_tokens_are_complete_and_say_why_rates_are_missing(
    make_plan: Callable[..., Plan], trial: Callable[..., TrialView], make_summary: Callable[..., SweepSummary]
) -> None:
    image: dict[str, Any] = {
        "token_status": TokenStatus.NO_TOKENS,
        "prompt_tokens": None,
        "output_tokens": None,
        "cached_prompt_tokens": None,
        "prefill_seconds": None,
        "decode_seconds": None,
    }
    plan = make_plan(("F16", "Q8_0"), ("t1", "t2"))
    rows = [trial(quant, task, **image) for quant in ("F16", "Q8_0") for task in ("t1", "t2")]
    row = make_summary(plan, rows).sessions[0].per_quant[0]
    assert row.token_metrics_status is TokenStatus.NO_TOKENS
    assert row.missing_telemetry_rate == 0
    assert row.valid
    assert row.prefill_seconds is None
    assert row.unavailable["prefill_seconds"] == row.unavailable["generation_tokens_per_second"] == Unavailable.NO_TOKENS
    assert row.internal_model_seconds == 0.4


def test_extraction_blocks_stand_in_their_rows(trial: Make, make_plan: MakePlan, make_summary: Summarise) -> None:
    plan, rows = make_plan(("F16", "Q8_0"), ("t0",)), [trial("F16", "t0"), trial("Q8_0", "t0")]
    block, plain = nothing(), make_summary(plan, rows)
    found = make_summary(plan, rows, extractions={("m", "Q8_0"): block})
    assert row(found, "Q8_0").extraction == block
    assert "extraction" not in row(found, "Q8_0").unavailable
    assert row(found, "F16") == row(plain, "F16")
    assert row(found, "F16").unavailable["extraction"] == Unavailable.NOT_MEASURED
    assert found.sessions[0].recommendation_detail == plain.sessions[0].recommendation_detail
