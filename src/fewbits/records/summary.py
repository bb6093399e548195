"""The sweep summary: what downstream readers consume. Keeps the roadmap's key names; grows only by addition."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from fewbits.records.base import PollutionReason, Rate, Record, RunQuality, TokenStatus
from fewbits.records.baseline import BaselineComparison
from fewbits.records.detector_run import RowDetection, SanityCheck
from fewbits.records.estimate import Estimate
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.plan import Controls, GuardPolicy, QualityPolicy, SelectionPolicy
from fewbits.records.sidecar import SidecarBlock
from fewbits.records.variant import VariantWarning

SUMMARY_SCHEMA = "2.4.0"


class InvalidReason(StrEnum):
    """Why a row may not be recommended."""

    NO_TRIALS = "NO_TRIALS"
    NO_CLEAN_TRIALS = "NO_CLEAN_TRIALS"
    """No successful trial was CLEAN, so there is no latency to trust."""
    INCOMPLETE = "INCOMPLETE"
    """Trials of the plan are missing."""
    POLLUTED = "POLLUTED"
    MISSING_TELEMETRY = "MISSING_TELEMETRY"
    NO_SCORES = "NO_SCORES"


class CanaryReason(StrEnum):
    """Why the canary gate said no."""

    ADHERENCE_VARIANCE_NON_ZERO = "ADHERENCE_VARIANCE_NON_ZERO"
    CONTROLS_NOT_APPLIED = "CONTROLS_NOT_APPLIED"
    FAILED_TRIALS = "FAILED_TRIALS"
    FOREIGN_LOAD = "FOREIGN_LOAD"
    """More repeats were disturbed by others than may be run again."""
    LATENCY_VARIANCE_THRESHOLD_EXCEEDED = "LATENCY_VARIANCE_THRESHOLD_EXCEEDED"
    LATENCY_VARIANCE_UNAVAILABLE = "LATENCY_VARIANCE_UNAVAILABLE"
    MISSING_TELEMETRY_RATE_EXCEEDED = "MISSING_TELEMETRY_RATE_EXCEEDED"
    NO_ADHERENCE_SCORES = "NO_ADHERENCE_SCORES"
    TOO_FEW_CLEAN_RUNS = "TOO_FEW_CLEAN_RUNS"
    TOO_FEW_LATENCY_SAMPLES = "TOO_FEW_LATENCY_SAMPLES"


class FrontierReason(StrEnum):
    """Why there are picks, or why there are none."""

    OK = "OK"
    NO_REFERENCE = "NO_REFERENCE"
    REFERENCE_INVALID = "REFERENCE_INVALID"
    REFERENCE_NOT_SCORED = "REFERENCE_NOT_SCORED"
    REFERENCE_BELOW_FLOOR = "REFERENCE_BELOW_FLOOR"
    NO_QUANT_MET_LIMITS = "NO_QUANT_MET_LIMITS"
    NOT_DECIDED = "NOT_DECIDED"
    """No variant is proven yet, and at least one is still undecided: see what is missing."""


class MinimumKind(StrEnum):
    """What `minimum_adherence` is. A closed set: its words go into pictures."""

    LIMIT = "adherence limit"
    """It decides (`threshold-v1`)."""
    MARGIN_EDGE = "margin's edge"
    """It only shows where points lie: tests decide (`three-zone-v1`)."""


class VerdictCode(StrEnum):
    """What can be said about a variant against the reference, with the policy's error control."""

    EQUIVALENT = "EQUIVALENT"
    """Two one-sided tests put the difference inside the margin."""
    WORSE = "WORSE"
    """A paired loss is proven, or the divergence is proven to lie above the harm line."""
    BETTER = "BETTER"
    UNRESOLVED = "UNRESOLVED"
    """Not decidable yet."""


class VerdictReason(StrEnum):
    """What a verdict rests on, or what is missing for one."""

    INSIDE_MARGIN = "INSIDE_MARGIN"
    PAIRED_LOSS = "PAIRED_LOSS"
    PAIRED_GAIN = "PAIRED_GAIN"
    DIVERGENCE_HARM = "DIVERGENCE_HARM"
    TOO_FEW_ITEMS = "TOO_FEW_ITEMS"
    """More items like these would decide."""
    AT_THE_MARGIN = "AT_THE_MARGIN"
    """The difference seems to lie at the margin itself: no number of items like these would decide."""
    NO_PAIRED_ITEMS = "NO_PAIRED_ITEMS"
    """No item was answered by both the variant and the reference."""


class HypothesisEvidence(Record, frozen=True, kw_only=True):
    """One hypothesis test behind a verdict. Rejecting `null_hypothesis` is what the verdict needs."""

    null_hypothesis: str
    """`difference >= 0`, `difference <= 0`, `difference <= -margin`, `difference >= margin`, `divergence <= harm line`."""
    method: str
    p_value: float
    """Valid at any moment where the method is anytime-valid. 0..1."""
    level: float
    """What `p_value` was compared with, after Holm's step-down over the session's variants."""
    rejected: bool


class VerdictDetail(Record, frozen=True, kw_only=True):
    """A verdict with everything that it rests on. Differences are variant minus reference in mean adherence, -1..1."""

    verdict: VerdictCode
    reasons: tuple[VerdictReason, ...]
    difference: Estimate | None
    """Interval of the method that decided, at the session's error level (not adjusted for several variants)."""
    margin: float
    method: str
    items_used: int
    minimum_detectable_effect: float | None
    """Smallest true loss that this many items like these would call `WORSE` with probability 0.8."""
    further_items: int | None
    """Items like those so far that would bring a verdict; `None` when there is one, or when no number would."""
    tests: tuple[HypothesisEvidence, ...]
    stopped_after_items: int | None = None
    """Deciding: items after which the verdict stood and the variant got no more; `None` while it is undecided."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class DivergenceEstimate(Record, frozen=True, kw_only=True):
    """Divergence of a variant from the reference on the evaluation text, intervals by windows. Nats per token."""

    text_name: str
    text_digest: str
    method: str
    """`full_logits`, or `server_top_logprobs` (a lower bound)."""
    engine: str
    engine_version: str
    windows: int
    positions: int
    mean_nats: Estimate | None
    p99_nats: Estimate | None
    top_token_agreement: Estimate | None
    """Share of positions with the same most likely token, 0..1."""
    perplexity_ratio: Estimate | None
    """Perplexity of the variant / of the reference, on the same tokens."""
    reference_perplexity: float | None
    variant_perplexity: float | None
    floor_nats: float | None
    """Mean divergence of the reference from itself, computed another way: what the instrument cannot see below."""
    below_floor: bool | None
    """The mean is not above the floor: too small for this instrument to tell from none."""
    truncation_nats: float | None
    """Exact minus compact mean divergence on audited positions: what keeping only the top K hides."""
    top_k: int
    lower_bound: float | None
    """One-sided lower confidence limit of the mean for the harm test, at the policy's divergence level (not adjusted)."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class FirstDivergence(Record, frozen=True, kw_only=True):
    """Where two runs of one cell first differ, over the declared channels."""

    task_id: str
    channel: str
    """`output_text`, `finish_reason`, `output_tokens` or `adherence_score`."""
    position: int | None
    """Characters before the first difference, for `output_text`."""
    first: str
    """What one run gave there: up to 40 characters from the difference on, or the value."""
    second: str


class DeterminismDetail(Record, frozen=True, kw_only=True):
    """Whether a variant repeats itself under fixed controls. Counts cells that were run more than once, re-runs included."""

    cells: int
    same_output_rate: float | None
    """Share of repeated cells whose runs all gave the same text, finish reason and token count."""
    same_outcome_rate: float | None
    """Share of repeated cells whose runs all scored the same."""
    agreement_floor: float | None
    """Lower confidence limit of `same_output_rate`: what can be promised from so many cells."""
    deterministic: bool | None
    """True when no repeated cell differed; `None` without repeated cells."""
    channels: tuple[str, ...]
    first_divergence: FirstDivergence | None


class RowUncertainty(Record, frozen=True, kw_only=True):
    """How often a variant would come out on top if items and blocks were drawn anew (joint bootstrap)."""

    frontier_probability: float
    best_value_probability: float
    minimum_viable_probability: float
    resamples: int


class StatusCounts(Record, frozen=True, kw_only=True):
    """How the trials of a row ended. They sum to `trials`."""

    ok: int = 0
    empty: int = 0
    timeout: int = 0
    crashed: int = 0
    protocol_error: int = 0


class RowVibe(Record, frozen=True, kw_only=True):
    """Optimisation signals of a row; `status` explains each `null`."""

    latency_variance: float | None
    """Coefficient of variation of wall seconds within tasks (needs repeats)."""
    code_density: float | None
    gen_retries: int | None
    vibe_delta: float | None
    """(reference adherence - adherence) / GiB of peak memory saved; negative when the variant scores higher."""
    status: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class BucketScore(Record, frozen=True, kw_only=True):
    """Mean adherence of a row in one bucket."""

    bucket: str
    tasks: int
    adherence_score: float | None


class DeviceConditions(Record, frozen=True, kw_only=True):
    """What a device (the host with its RAM, or the GPUs) went through during a row's trials. `unavailable` explains `null`s."""

    temperature_start_c: float | None = None
    """Before the first block that the row took part in, any variant's trial of it."""
    temperature_end_c: float | None = None
    """After the row's last trial."""
    temperature_max_c: float | None = None
    """Hottest reading before or after any trial of the row."""
    block_temperature_max_c: float | None = None
    """Hottest reading at the start of any block that the row took part in."""
    memory_total_bytes: int | None = None
    memory_used_ratio: float | None = None
    """Largest share of the memory in use, by anyone, before or after any trial of the row, 0..1."""
    throttle_events: int | None = None
    """During the row's trials, of CPU and GPU together: they stand with the host."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class RowConditions(Record, frozen=True, kw_only=True):
    """The machine around a row's trials: what guards and thermal profiles judge."""

    host: DeviceConditions
    gpu: DeviceConditions


class QuantRow(Record, frozen=True, kw_only=True):
    """One variant of one model. Seconds, bytes, tokens per second; `unavailable` explains each `null`."""

    quant_tag: str
    quant_rank: int
    """0 = fewest measured bits per weight in the session; ties by file size, then tag."""
    is_reference: bool
    variant_sha256: str | None
    variant_bytes: int | None
    bits_per_weight: float | None
    warnings: tuple[VariantWarning, ...]
    test_runs: int
    """Trials counted: the last attempt of each (task, repetition)."""
    tasks: int
    expected_runs: int
    status_counts: StatusCounts
    adherence_score: float | None
    """Mean over tasks of the mean over repetitions; failed trials count 0."""
    adherence: Estimate | None
    adherence_difference: Estimate | None
    """Variant minus reference, paired by task; `None` for the reference itself."""
    adherence_ratio: Estimate | None
    """Variant / reference, paired by task."""
    by_bucket: tuple[BucketScore, ...]
    total_latency: float | None
    """Median wall-clock seconds per trial, clean trials."""
    latency_median: Estimate | None
    latency_p95: Estimate | None
    time_to_first_token_seconds: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    internal_model_seconds: float | None
    init_latency: float | None
    orchestration_overhead_ratio: float | None
    prompt_tokens_per_second: float | None
    """Sum of prompt tokens / sum of prefill seconds over clean trials with status `OK`."""
    generation_tokens_per_second: float | None
    peak_memory_rss: int | None
    peak_memory_gpu_bytes: int | None
    token_metrics_status: TokenStatus
    """The worst status of any trial that gave a reply."""
    missing_telemetry_rate: float
    determinism_rate: float | None
    """Share of tasks whose repetitions (same seed) gave the same text; `None` with fewer than two successful repetitions."""
    polluted_run_rate: float
    clean_runs: int
    run_quality_status: RunQuality
    run_quality_reasons: tuple[PollutionReason, ...]
    vibe_metrics: RowVibe
    valid: bool
    invalid_reasons: tuple[str, ...]
    meets_adherence: bool
    meets_latency: bool
    eligible: bool
    """Valid (or the override is on) and within both limits."""
    on_frontier: bool
    dominated_by: tuple[str, ...]
    verdict: VerdictDetail | None = None
    """Against the reference; `None` for the reference itself."""
    divergence: DivergenceEstimate | None = None
    latency_ratio: Estimate | None = None
    """Variant / reference wall seconds within a block (same task, same repetition): median of the clean pairs."""
    generation_rate_ratio: Estimate | None = None
    """Variant / reference generation tokens per second within a block."""
    prompt_rate_ratio: Estimate | None = None
    determinism: DeterminismDetail | None = None
    uncertainty: RowUncertainty | None = None
    conditions: RowConditions | None = None
    baseline: BaselineComparison | None = None
    """Against a stored baseline, or why there is no comparison; `None` where none was asked for."""
    hardware_sidecar: SidecarBlock | None = None
    """Raw throughput from llama-bench: diagnostics, in no verdict, limit or validity rule."""
    detection: RowDetection | None = None
    """COCO metrics and what is quantized, in no verdict, limit or validity rule; `None` but for detectors."""
    extraction: RowExtraction | None = None
    """How well and how fast pages were read, in no verdict, limit or validity rule; `None` but for pipelines that read pages."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class EfficiencyFrontier(Record, frozen=True, kw_only=True):
    """The Pareto set over (adherence up, latency down, memory down) of the rows that count, and the two picks."""

    adherence_threshold: float
    adherence_floor: float
    minimum_adherence: float | None
    """max(floor, threshold x reference adherence), under `three-zone-v1` max(floor, reference adherence - margin)."""
    minimum_kind: MinimumKind = MinimumKind.LIMIT
    latency_ceiling: float
    objectives: tuple[str, ...]
    pareto_quant_tags: tuple[str, ...]
    minimum_viable_quant_tag: str | None
    best_value_quant_tag: str | None
    optimal_quant_tag: str | None
    """Same as `minimum_viable_quant_tag`: kept for readers of the 1.x shape."""
    reason: FrontierReason


class RecommendationDetail(Record, frozen=True, kw_only=True):
    """The two picks, why, what is uncertain, and what would change the answer. Plain sentences."""

    minimum_viable_quant: str | None
    best_value_quant: str | None
    because: tuple[str, ...]
    uncertain: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """What is missing before undecided variants can be judged, one sentence each."""
    would_change: str = ""
    """What would change the pick, in one sentence."""


class Decision(Record, frozen=True, kw_only=True):
    """When deciding stopped giving items to a variant, recomputed from the journal."""

    quant_tag: str
    verdict: VerdictCode
    after_items: int
    after_block: int
    p_value: float
    """Of the test that decided."""


class DecisionLog(Record, frozen=True, kw_only=True):
    """How deciding went: which variants were decided when, and what that saved."""

    decisions: tuple[Decision, ...]
    undecided: tuple[str, ...]
    items_available: int
    items_asked: int
    trials_run: int
    trials_full_matrix: int


class Session(Record, frozen=True, kw_only=True):
    """One model on one machine."""

    model_id: str
    baseline_quant: str
    """The reference variant."""
    engine: str
    engine_version: str
    per_quant: tuple[QuantRow, ...]
    """Most bits per weight first."""
    efficiency_frontier: EfficiencyFrontier
    recommendation_detail: RecommendationDetail
    recommendation: str
    decision_log: DecisionLog | None = None
    """`None` when the full matrix was asked for."""
    selection_policy: SelectionPolicy | None = None
    """Limits of this model alone; `None` where the sweep's own apply."""
    sanity: tuple[SanityCheck, ...] = ()
    """Of detectors: what 8 bits say about the variants that collapsed."""


class CanaryBlock(Record, frozen=True, kw_only=True):
    """The repeated check before the matrix."""

    enabled: bool
    passed: bool | None
    """`None` when not enabled."""
    model_id: str | None
    quant_tag: str | None
    task_id: str | None
    runs_requested: int
    runs_made: int
    latency_sample_count_raw: int
    latency_sample_count_used: int
    drop_first_run: bool
    polluted_retries: int
    adherence_variance: float | None
    """Population variance of the repeats' scores; must be exactly 0."""
    latency_variation: float | None
    """Coefficient of variation of model-internal seconds."""
    latency_variance_threshold: float
    missing_telemetry_rate: float | None
    max_missing_telemetry_rate: float
    same_output_rate: float | None
    failed_reasons: tuple[str, ...]
    remedies: tuple[str, ...]


class StabilityKpis(Record, frozen=True, kw_only=True):
    """Tracked rates, 0..1, always strict: overrides do not change them."""

    determinism_rate: Rate | None
    """Share of repeated cells that gave the same output, over all rows; `None` where nothing was repeated."""
    missing_telemetry_rate: Rate
    polluted_run_rate: Rate
    frontier_success_rate: Rate
    """Share of sessions with at least one strictly eligible row."""
    quant_rows: int
    sessions: int
    weighted_runs: int


class RunQualityDiagnostics(Record, frozen=True, kw_only=True):
    """How clean the whole run was."""

    trials: int
    clean: int
    polluted: int
    reasons: dict[str, int]
    superseded_attempts: int
    """Journal rows replaced by another attempt of the same cell."""
    clean_share: float | None = None
    """Share of the counted trials that are clean, after re-runs; `None` without trials."""
    first_attempt_clean_share: float | None = None
    """The same before any re-run: how quiet the machine was."""
    reruns: int = 0
    rerun_budget: int = 0


class ImportedFrom(Record, frozen=True, kw_only=True):
    """The foreign or older document that a summary was converted from."""

    schema_version: str
    sha256: str
    notes: tuple[str, ...]
    """What could not be taken over, or means less than its name says, one sentence each."""


class Provenance(Record, frozen=True, kw_only=True):
    """What the summary was made from."""

    plan_digest: str
    journal_digest: str
    """sha256 over the sorted digests of the journal's rows: independent of row order."""
    fewbits_version: str
    first_trial_at: str | None
    last_trial_at: str | None
    imported_from: ImportedFrom | None = None


class SweepSummary(Record, frozen=True, kw_only=True):
    """`sweep_summary.json`. A pure function of plan, manifests and journal: same bytes for any row order."""

    schema_version: str = SUMMARY_SCHEMA
    commit_sha: str | None
    hardware_fingerprint: str
    execution_lane: str
    vram_profile: str
    provenance: Provenance
    matrix: dict[str, Any]
    """models, quants, task_bank, runs_per_quant, latency_ceiling, runtime, runtime_target, execution_mode, tasks."""
    experimental_controls: Controls
    controls_effective: dict[str, Any]
    """Distinct effective values seen over all trials, per control."""
    quality_policy: QualityPolicy
    selection_policy: SelectionPolicy
    guard_policy: GuardPolicy | None = None
    """What the live guard enforced; `None` where it was off."""
    canary: CanaryBlock
    complete: bool
    """False while trials of the plan are missing from the journal."""
    trials_expected: int
    trials_counted: int
    sessions: tuple[Session, ...]
    stability_kpis: StabilityKpis
    run_quality: RunQualityDiagnostics
