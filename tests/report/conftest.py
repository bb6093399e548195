"""A realistic summary: five quants of SmolLM2, one row polluted, one lossless by construction, one without rates.

Every verdict occurs but BETTER; one divergence lies below the floor, one is missing; one variant does not repeat itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fewbits.records.base import PollutionReason, RunQuality, TokenStatus
from fewbits.records.estimate import Estimate
from fewbits.records.plan import Controls, PolicyName, QualityPolicy, SelectionPolicy
from fewbits.records.summary import (
    BucketScore,
    CanaryBlock,
    Decision,
    DecisionLog,
    DeterminismDetail,
    DivergenceEstimate,
    EfficiencyFrontier,
    FirstDivergence,
    FrontierReason,
    HypothesisEvidence,
    Provenance,
    QuantRow,
    RecommendationDetail,
    RowUncertainty,
    RowVibe,
    RunQualityDiagnostics,
    Session,
    StabilityKpis,
    StatusCounts,
    SweepSummary,
    VerdictCode,
    VerdictDetail,
    VerdictReason,
)
from fewbits.records.variant import VariantWarning, WarningCode

MIB = 1024**2
BY_TASK = "bootstrap by task, expanded percentile"
PAIRED = "paired bootstrap by task, expanded percentile"
ORDER = "exact binomial order statistics"
REFERENCE = VariantWarning(
    code=WarningCode.DEQUANTIZED_REFERENCE,
    message="Made from Q4_1 weights: this ladder starts from a dequantized reference, not from the original F16 weights.",
)
LOSSLESS = VariantWarning(
    code=WarningCode.LOSSLESS_BY_CONSTRUCTION,
    message="Same number format as the source (Q4_1): equal to the reference by construction, not because 4 bits cost nothing.",
)


def estimate(value: float, low: float | None, high: float | None, method: str, n: int = 48, reason: str = "") -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.95, method=method, n=n, reason=reason)


def make_row(quant_tag: str, **changes: Any) -> QuantRow:
    row = QuantRow(
        quant_tag=quant_tag,
        quant_rank=0,
        is_reference=False,
        variant_sha256="ab" * 32,
        variant_bytes=98 * MIB,
        bits_per_weight=5.85,
        warnings=(),
        test_runs=144,
        tasks=48,
        expected_runs=144,
        status_counts=StatusCounts(ok=143, empty=1),
        adherence_score=0.5,
        adherence=estimate(0.5, 0.4, 0.6, BY_TASK),
        adherence_difference=estimate(-0.01, -0.04, 0.02, PAIRED),
        adherence_ratio=estimate(0.98, 0.9, 1.05, PAIRED),
        by_bucket=(
            BucketScore(bucket="logic", tasks=16, adherence_score=0.375),
            BucketScore(bucket="structured_output", tasks=16, adherence_score=0.625),
            BucketScore(bucket="extraction", tasks=16, adherence_score=0.5),
        ),
        total_latency=0.5,
        latency_median=estimate(0.5, 0.48, 0.53, ORDER, 144),
        latency_p95=estimate(1.1, 1.0, 1.3, ORDER, 144),
        time_to_first_token_seconds=0.081,
        prefill_seconds=0.078,
        decode_seconds=0.41,
        internal_model_seconds=0.49,
        init_latency=0.62,
        orchestration_overhead_ratio=0.012,
        prompt_tokens_per_second=912.4,
        generation_tokens_per_second=143.2,
        peak_memory_rss=210 * MIB,
        peak_memory_gpu_bytes=None,
        token_metrics_status=TokenStatus.OK,
        missing_telemetry_rate=0.0,
        determinism_rate=1.0,
        polluted_run_rate=0.02,
        clean_runs=141,
        run_quality_status=RunQuality.CLEAN,
        run_quality_reasons=(),
        vibe_metrics=RowVibe(latency_variance=0.011, code_density=None, gen_retries=0, vibe_delta=0.05),
        valid=True,
        invalid_reasons=(),
        meets_adherence=True,
        meets_latency=True,
        eligible=True,
        on_frontier=False,
        dominated_by=(),
        unavailable={"peak_memory_gpu_bytes": "NO_SENSOR"},
    )
    return msgspec.structs.replace(row, **changes)


ANYTIME = "betting confidence sequence on paired items"
WINDOWS = "t interval by windows"


def make_verdict(
    code: VerdictCode, difference: tuple[float, float, float], reason: VerdictReason, **changes: Any
) -> VerdictDetail:
    value, low, high = difference
    test = HypothesisEvidence(
        null_hypothesis="difference >= 0",
        method=ANYTIME,
        p_value=0.00041 if code is VerdictCode.WORSE else 0.31,
        level=0.04,
        rejected=code is VerdictCode.WORSE,
    )
    detail = VerdictDetail(
        verdict=code,
        reasons=(reason,),
        difference=Estimate(value=value, low=low, high=high, level=0.9, method=ANYTIME, n=48),
        margin=0.05,
        method=ANYTIME,
        items_used=48,
        minimum_detectable_effect=0.083,
        further_items=None,
        tests=(test,),
    )
    return msgspec.structs.replace(detail, **changes)


def make_divergence(mean: float, below_floor: bool = False, **changes: Any) -> DivergenceEstimate:
    def by_window(value: float, reach: float) -> Estimate:
        return estimate(value, value * (1 - reach), value * (1 + reach), WINDOWS, 16)

    found = DivergenceEstimate(
        text_name="python-topics",
        text_digest="7e" * 32,
        method="full_logits",
        engine="xllamacpp",
        engine_version="2026.10.11549",
        windows=16,
        positions=2048,
        mean_nats=by_window(mean, 0.1),
        p99_nats=by_window(mean * 9, 0.2),
        top_token_agreement=estimate(0.942, 0.931, 0.951, WINDOWS, 16),
        perplexity_ratio=by_window(1 + mean, 0.01),
        reference_perplexity=14.27,
        variant_perplexity=14.27 * (1 + mean),
        floor_nats=0.00012,
        below_floor=below_floor,
        truncation_nats=0.000031,
        top_k=256,
        lower_bound=mean * 0.88,
    )
    return msgspec.structs.replace(found, **changes)


def make_repeats(first_divergence: FirstDivergence | None = None) -> DeterminismDetail:
    same = first_divergence is None
    return DeterminismDetail(
        cells=14,
        same_output_rate=1.0 if same else 0.928571,
        same_outcome_rate=1.0,
        agreement_floor=0.807 if same else 0.703,
        deterministic=same,
        channels=("output_text", "finish_reason", "output_tokens", "adherence_score"),
        first_divergence=first_divergence,
    )


def make_chances(frontier: float, best: float, smallest: float) -> RowUncertainty:
    return RowUncertainty(
        frontier_probability=frontier, best_value_probability=best, minimum_viable_probability=smallest, resamples=1000
    )


def evidence() -> dict[str, dict[str, Any]]:
    """What the summaries of this version hold beside the older fields, by quant tag."""
    differs = FirstDivergence(
        task_id="logic-007", channel="output_text", position=37, first="\n| **<b>42</b>** |", second=" 42 ``` [x](y)"
    )
    return {
        "F16": {
            "determinism": make_repeats(),
            "uncertainty": make_chances(0.712, 0.0, 0.04),
            "unavailable": {"peak_memory_gpu_bytes": "NO_SENSOR", "verdict": "NO_REFERENCE", "latency_ratio": "NO_REFERENCE"},
        },
        "Q8_0": {
            "verdict": make_verdict(
                VerdictCode.EQUIVALENT, (-0.004, -0.031, 0.024), VerdictReason.INSIDE_MARGIN, stopped_after_items=37
            ),
            "divergence": make_divergence(
                0.00009, below_floor=True, lower_bound=None, unavailable={"lower_bound": "TOO_FEW_SAMPLES"}
            ),
            "latency_ratio": estimate(0.692, 0.671, 0.718, ORDER, 48),
            "generation_rate_ratio": estimate(1.527, 1.498, 1.561, ORDER, 48),
            "prompt_rate_ratio": estimate(1.312, 1.244, 1.39, ORDER, 48),
            "determinism": make_repeats(),
            "uncertainty": make_chances(0.981, 0.964, 0.31),
        },
        "Q4_K_M": {
            "verdict": make_verdict(
                VerdictCode.UNRESOLVED, (-0.021, -0.081, 0.039), VerdictReason.TOO_FEW_ITEMS, further_items=130
            ),
            "divergence": make_divergence(0.0412),
            "determinism": make_repeats(differs),
            "unavailable": {
                "generation_tokens_per_second": "TOKEN_STATUS_NOT_OK",
                "determinism_rate": "TOO_FEW_SAMPLES",
                "latency_ratio": "NO_CLEAN_TRIALS",
                "generation_rate_ratio": "TOKEN_STATUS_NOT_OK",
                "prompt_rate_ratio": "TOKEN_STATUS_NOT_OK",
            },
        },
        "Q4_1": {
            "verdict": make_verdict(VerdictCode.EQUIVALENT, (0.0, -0.029, 0.029), VerdictReason.INSIDE_MARGIN),
            "latency_ratio": estimate(0.533, 0.52, 0.549, ORDER, 48),
            "generation_rate_ratio": estimate(2.008, 1.97, 2.051, ORDER, 48),
            "prompt_rate_ratio": estimate(1.01, 0.99, 1.03, ORDER, 48),
            "uncertainty": make_chances(1.0, 0.036, 0.65),
            "unavailable": {"peak_memory_gpu_bytes": "NO_SENSOR", "divergence": "CALIBRATION_TEXT", "determinism": "NO_TRIALS"},
        },
        "Q2_K": {
            "verdict": make_verdict(
                VerdictCode.WORSE, (-0.25, -0.381, -0.119), VerdictReason.PAIRED_LOSS, items_used=12, stopped_after_items=12
            ),
            "divergence": make_divergence(0.614),
            "latency_ratio": estimate(0.582, None, None, ORDER, 3, "too few tasks: it takes 6 tasks for a lower limit"),
            "determinism": make_repeats(),
            "uncertainty": make_chances(0.02, 0.0, 0.0),
        },
    }


def as_before_verdicts(summary: SweepSummary) -> SweepSummary:
    """The same summary as earlier versions wrote it: none of the new fields, the older policy."""
    replace = msgspec.structs.replace
    rows = {row.quant_tag: row for row in older_rows()}
    sessions = tuple(
        replace(
            session,
            per_quant=tuple(rows[row.quant_tag] for row in session.per_quant),
            decision_log=None,
            recommendation_detail=replace(session.recommendation_detail, missing=(), would_change=""),
        )
        for session in summary.sessions
    )
    quality = replace(summary.run_quality, clean_share=None, first_attempt_clean_share=None, reruns=0, rerun_budget=0)
    policy = SelectionPolicy(name=PolicyName.THRESHOLD)
    return replace(summary, schema_version="2.0.0", sessions=sessions, run_quality=quality, selection_policy=policy)


def five_rows() -> tuple[QuantRow, ...]:
    new = evidence()
    return tuple(msgspec.structs.replace(row, **new[row.quant_tag]) for row in older_rows())


def older_rows() -> tuple[QuantRow, ...]:
    return (
        make_row(
            "F16",
            quant_rank=4,
            is_reference=True,
            variant_sha256="1f" * 32,
            variant_bytes=258 * MIB,
            bits_per_weight=16.0,
            warnings=(REFERENCE,),
            adherence_score=0.542,
            adherence=estimate(0.542, 0.437, 0.646, BY_TASK),
            adherence_difference=None,
            adherence_ratio=None,
            total_latency=0.913,
            latency_median=estimate(0.913, 0.874, 0.958, ORDER, 144),
            latency_p95=estimate(2.04, 1.88, 2.31, ORDER, 144),
            generation_tokens_per_second=71.3,
            peak_memory_rss=412 * MIB,
            on_frontier=True,
        ),
        make_row(
            "Q8_0",
            quant_rank=3,
            variant_sha256="8a" * 32,
            variant_bytes=138 * MIB,
            bits_per_weight=8.5,
            adherence_score=0.538,
            adherence=estimate(0.538, 0.434, 0.641, BY_TASK),
            adherence_difference=estimate(-0.004, -0.021, 0.013, PAIRED),
            total_latency=0.634,
            latency_median=estimate(0.634, 0.601, 0.668, ORDER, 144),
            latency_p95=estimate(1.42, 1.31, 1.66, ORDER, 144),
            generation_tokens_per_second=108.9,
            peak_memory_rss=268 * MIB,
            on_frontier=True,
        ),
        make_row(
            "Q4_K_M",
            quant_rank=2,
            variant_sha256="4c" * 32,
            variant_bytes=100 * MIB,
            bits_per_weight=6.12,
            adherence_score=0.521,
            adherence=estimate(0.521, 0.416, 0.625, BY_TASK),
            adherence_difference=estimate(-0.021, -0.063, 0.021, PAIRED),
            total_latency=0.702,
            latency_median=estimate(0.702, 0.655, 0.781, ORDER, 96),
            latency_p95=None,
            generation_tokens_per_second=None,
            prompt_tokens_per_second=None,
            determinism_rate=None,
            peak_memory_rss=231 * MIB,
            run_quality_status=RunQuality.POLLUTED,
            run_quality_reasons=(PollutionReason.CPU_PRESSURE, PollutionReason.FOREIGN_CPU_LOAD),
            polluted_run_rate=0.333,
            clean_runs=96,
            valid=False,
            invalid_reasons=("POLLUTED", "MISSING_TELEMETRY"),
            eligible=False,
            token_metrics_status=TokenStatus.TIMING_UNAVAILABLE,
            missing_telemetry_rate=0.01,
            unavailable={"generation_tokens_per_second": "TOKEN_STATUS_NOT_OK", "determinism_rate": "TOO_FEW_SAMPLES"},
        ),
        make_row(
            "Q4_1",
            quant_rank=1,
            variant_sha256="b1" * 32,
            variant_bytes=93 * MIB,
            bits_per_weight=5.76,
            warnings=(LOSSLESS,),
            adherence_score=0.542,
            adherence=estimate(0.542, 0.437, 0.646, BY_TASK),
            adherence_difference=estimate(0.0, -0.061, 0.061, "exact bound on an unseen difference"),
            total_latency=0.487,
            latency_median=estimate(0.487, 0.461, 0.509, ORDER, 144),
            latency_p95=estimate(1.12, 1.02, 1.29, ORDER, 144),
            on_frontier=True,
        ),
        make_row(
            "Q2_K",
            quant_rank=0,
            variant_sha256="2d" * 32,
            variant_bytes=84 * MIB,
            bits_per_weight=5.13,
            status_counts=StatusCounts(ok=137, empty=4, timeout=2, crashed=1),
            adherence_score=0.292,
            adherence=estimate(0.292, None, None, BY_TASK, 1, "one task alone has no spread: at least 2 are needed"),
            adherence_difference=estimate(-0.25, -0.365, -0.146, PAIRED),
            total_latency=0.531,
            latency_median=estimate(0.531, 0.502, 0.566, ORDER, 144),
            latency_p95=estimate(1.31, 1.18, 1.62, ORDER, 144),
            generation_tokens_per_second=129.0,
            peak_memory_rss=213 * MIB,
            meets_adherence=False,
            eligible=False,
            dominated_by=("Q4_1",),
        ),
    )


def make_session(model_id: str = "smollm2-135m", rows: tuple[QuantRow, ...] | None = None, **frontier: Any) -> Session:
    shown = five_rows() if rows is None else rows
    block = EfficiencyFrontier(
        adherence_threshold=0.95,
        adherence_floor=0.10,
        minimum_adherence=0.515,
        latency_ceiling=10.0,
        objectives=("adherence_score:max", "total_latency:min", "peak_memory_rss:min"),
        pareto_quant_tags=tuple(sorted(row.quant_tag for row in shown if row.on_frontier)),
        minimum_viable_quant_tag="Q4_1",
        best_value_quant_tag="Q8_0",
        optimal_quant_tag="Q4_1",
        reason=FrontierReason.OK,
    )
    return Session(
        model_id=model_id,
        baseline_quant="F16",
        engine="xllamacpp",
        engine_version="2026.10.11549 (llama.cpp b11549)",
        per_quant=shown,
        efficiency_frontier=msgspec.structs.replace(block, **frontier),
        recommendation_detail=RecommendationDetail(
            minimum_viable_quant="Q4_1",
            best_value_quant="Q8_0",
            because=(
                "Q4_1 keeps 100 % of the reference's adherence; at least 95 % are asked for.",
                "It needs 202 MiB less memory than F16 and answers in 53 % of its time.",
            ),
            uncertain=(
                "With 48 tasks, differences under 6 points cannot be told from zero.",
                "Q4_1 is the source's own format: it says nothing about what 4 bits cost.",
            ),
            missing=("Q4_K_M needs about 130 more tasks like these, or a wider margin.",),
            would_change=(
                "Drawn anew, 31 % of the samples of items pick Q8_0 instead of Q4_1 for the fewest bits: "
                "Q4_1 lies only 5 points inside the margin's edge."
            ),
        ),
        recommendation="On this machine use Q4_1; take Q8_0 where the source was not quantized before.",
        decision_log=DecisionLog(
            decisions=(
                Decision(quant_tag="Q2_K", verdict=VerdictCode.WORSE, after_items=12, after_block=11, p_value=0.00041),
                Decision(quant_tag="Q8_0", verdict=VerdictCode.EQUIVALENT, after_items=37, after_block=36, p_value=0.0121),
                Decision(quant_tag="Q4_1", verdict=VerdictCode.EQUIVALENT, after_items=48, after_block=47, p_value=0.0213),
            ),
            undecided=("Q4_K_M",),
            items_available=48,
            items_asked=48,
            trials_run=615,
            trials_full_matrix=720,
        ),
    )


def make_summary(sessions: tuple[Session, ...] | None = None, **changes: Any) -> SweepSummary:
    summary = SweepSummary(
        commit_sha="4be1" * 10,
        hardware_fingerprint="linux-6.8|amd_epyc_9b14|2c|24gib|no_gpu",
        execution_lane="lab",
        vram_profile="safe",
        provenance=Provenance(
            plan_digest="0f" * 32,
            journal_digest="e7" * 32,
            fewbits_version="0.1.0",
            first_trial_at="2026-10-11T09:12:03Z",
            last_trial_at="2026-10-11T09:21:47Z",
        ),
        matrix={
            "models": ["smollm2-135m"],
            "quants": ["F16", "Q8_0", "Q4_K_M", "Q4_1", "Q2_K"],
            "task_bank": "benchmarks/task_bank/v2_realworld/tasks.json",
            "runs_per_quant": 3,
            "latency_ceiling": 10.0,
            "runtime": "llamacpp",
            "runtime_target": "local-hardware",
            "execution_mode": "live-card",
            "tasks": [f"logic-{number:03}" for number in range(1, 49)],
        },
        experimental_controls=Controls(threads=2),
        controls_effective={
            "seed": [1337],
            "threads": [2],
            "affinity": [[0, 1]],
            "context_size": [2048, 4096],
            "temperature": [0.0],
            "max_tokens": [],
        },
        quality_policy=QualityPolicy(),
        selection_policy=SelectionPolicy(),
        canary=CanaryBlock(
            enabled=True,
            passed=True,
            model_id="smollm2-135m",
            quant_tag="F16",
            task_id="logic-001",
            runs_requested=10,
            runs_made=11,
            latency_sample_count_raw=10,
            latency_sample_count_used=9,
            drop_first_run=True,
            polluted_retries=1,
            adherence_variance=0.0,
            latency_variation=0.0117,
            latency_variance_threshold=0.03,
            missing_telemetry_rate=0.0,
            max_missing_telemetry_rate=0.0,
            same_output_rate=1.0,
            failed_reasons=(),
            remedies=(),
        ),
        complete=True,
        trials_expected=720,
        trials_counted=720,
        sessions=(make_session(),) if sessions is None else sessions,
        stability_kpis=StabilityKpis(
            determinism_rate=1.0,
            missing_telemetry_rate=0.002,
            polluted_run_rate=0.083,
            frontier_success_rate=1.0,
            quant_rows=5,
            sessions=1,
            weighted_runs=720,
        ),
        run_quality=RunQualityDiagnostics(
            trials=720,
            clean=660,
            polluted=60,
            reasons={"FOREIGN_CPU_LOAD": 48, "CPU_PRESSURE": 29},
            superseded_attempts=2,
            clean_share=0.916667,
            first_attempt_clean_share=0.893056,
            reruns=17,
            rerun_budget=144,
        ),
    )
    return msgspec.structs.replace(summary, **changes)


@pytest.fixture
def summary() -> SweepSummary:
    return make_summary()


@pytest.fixture
def old_summary() -> SweepSummary:
    return as_before_verdicts(make_summary())


@pytest.fixture
def new_summary() -> Callable[..., SweepSummary]:
    return make_summary


@pytest.fixture
def new_session() -> Callable[..., Session]:
    return make_session


@pytest.fixture
def new_row() -> Callable[..., QuantRow]:
    return make_row
