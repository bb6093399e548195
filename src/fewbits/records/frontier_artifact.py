"""The frontier explorer artifact: what a sweep recommends and why, small enough to keep one per run for years."""

from __future__ import annotations

from fewbits.records.base import Record, RunQuality
from fewbits.records.estimate import Estimate
from fewbits.records.explorer import ExplorerArtifact
from fewbits.records.plan import PolicyName
from fewbits.records.summary import FrontierReason, ImportedFrom, VerdictCode, VerdictReason


class FrontierQuantRow(Record, frozen=True, kw_only=True):
    """One variant. Every `null` has its reason in `unavailable`, by field name."""

    quant_tag: str
    quant_rank: int
    """0 = fewest measured bits per weight in the session."""
    is_reference: bool
    variant_sha256: str | None
    """Of the weights that ran."""
    variant_bytes: int | None
    bits_per_weight: float | None
    """Read from the file, never from the tag."""
    adherence_score: float | None
    """Share of the tasks' own checks that the answers met, 0..1."""
    adherence: Estimate | None
    """The same with its interval."""
    adherence_difference: Estimate | None
    """Variant minus reference, paired by task; `null` for the reference."""
    verdict: VerdictCode | None
    """Against the reference; `null` for the reference itself."""
    verdict_reasons: tuple[VerdictReason, ...]
    total_latency: float | None
    """Median wall-clock seconds per trial, clean trials."""
    latency_median: Estimate | None
    """The same with its interval."""
    latency_ratio: Estimate | None
    """Variant / reference wall seconds within a block; `null` for the reference."""
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None
    peak_memory_rss: int | None
    """Bytes, of the process that held the weights."""
    peak_memory_gpu_bytes: int | None
    test_runs: int
    """Trials counted."""
    run_quality_status: RunQuality
    valid: bool
    invalid_reasons: tuple[str, ...]
    eligible: bool
    """Valid (or let in by the operator) and within both limits."""
    on_frontier: bool
    dominated_by: tuple[str, ...]
    """Frontier members that beat it on every axis; empty on the frontier, and for rows that do not take part."""
    is_minimum_viable: bool
    is_best_value: bool
    frontier_probability: float | None
    """How often it would be on the frontier if items and blocks were drawn anew, 0..1."""
    minimum_viable_probability: float | None
    best_value_probability: float | None
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class FrontierSession(Record, frozen=True, kw_only=True):
    """One model on one machine: the limits, the picks, and all variants, most bits per weight first."""

    model_id: str
    engine: str
    engine_version: str
    baseline_quant: str
    """The reference variant."""
    selection_policy: PolicyName
    adherence_threshold: float
    adherence_floor: float
    minimum_adherence: float | None
    """What a point estimate was held against; `null` without a scored reference."""
    latency_ceiling: float
    """Seconds."""
    minimum_viable_quant: str | None
    """`null` when nothing qualifies: `frontier_reason` says why."""
    best_value_quant: str | None
    frontier_reason: FrontierReason
    recommendation: str
    objectives: tuple[str, ...]
    """Axes of the Pareto set, `name:max` or `name:min`."""
    pareto_quant_tags: tuple[str, ...]
    quant_rows: tuple[FrontierQuantRow, ...]


class FrontierArtifact(ExplorerArtifact, frozen=True, kw_only=True):
    """`explorer.frontier.v1`."""

    schema_version: str = "explorer.frontier.v1"
    hardware_fingerprint: str
    source_summary: str
    """Path of the summary, as it was given; its digest is in `provenance.sources`."""
    summary_complete: bool
    """False: trials of the plan are missing, the rows may change."""
    plan_digest: str
    first_trial_at: str | None
    last_trial_at: str | None
    imported_from: ImportedFrom | None = None
    """The older document that the summary was converted from, with what means less than its name says."""
    sessions: tuple[FrontierSession, ...]
