"""The older sweep summary, schema 1.1.x, as another tool wrote it: read only to be converted.

Unknown keys are skipped; known ones must have the right type and range. Keys that only later versions of that shape have are
optional.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fewbits.records.base import OpenRecord, Rate

Amount = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(min_length=1, max_length=500)]
Label = Annotated[str, Meta(max_length=2000)]


class LegacyControls(OpenRecord, frozen=True, kw_only=True):
    """Recorded controls; only the seed ever reached a model."""

    seed: int | None = None
    threads: Count | None = None
    affinity_policy: Label | None = None
    """Free text there."""
    warmup_steps: Count | None = None


class LegacyQualityPolicy(OpenRecord, frozen=True, kw_only=True):
    """Row tolerances (later versions of the shape)."""

    max_missing_telemetry_rate: Rate | None = None
    max_orchestration_overhead_ratio: Rate | None = None


class LegacySidecarRequest(OpenRecord, frozen=True, kw_only=True):
    """Which sidecar was asked for."""

    profile: Label | None = None


class LegacyMatrix(OpenRecord, frozen=True, kw_only=True):
    """What was asked for."""

    models: tuple[Name, ...] = ()
    quants: tuple[Name, ...] = ()
    task_bank: Label | None = None
    runs_per_quant: Count | None = None
    latency_ceiling: Amount | None = None
    experimental_controls: LegacyControls | None = None
    row_quality_policy: LegacyQualityPolicy | None = None
    hardware_sidecar: LegacySidecarRequest | None = None
    runtime_target: Label | None = None
    execution_mode: Label | None = None


class LegacyCanary(OpenRecord, frozen=True, kw_only=True):
    """The repeated check. Sample counts, drop flag and reasons are in later versions of the shape only."""

    model_id: Label | None = None
    quant_tag: Label | None = None
    runs: Count
    adherence_variance: Amount | None = None
    """Largest minus smallest."""
    internal_latency_variance: Amount | None = None
    """Population standard deviation / mean."""
    missing_telemetry_rate: Rate | None = None
    latency_sample_count_raw: Count | None = None
    latency_sample_count_used: Count | None = None
    drop_first_run: bool | None = None
    max_missing_telemetry_rate: Rate | None = None
    latency_variance_threshold: Amount | None = None
    failed_reasons: tuple[Label, ...] = ()
    passed: bool


class LegacySidecar(OpenRecord, frozen=True, kw_only=True):
    """One probe of the first GPU, after a row's runs. Numbers that the probe could not find are 0 there."""

    enabled: bool = False
    sidecar_parse_status: Label = ""
    sidecar_parse_errors: tuple[Label, ...] = ()
    vram_total_mb: Amount | None = None
    vram_used_mb: Amount | None = None
    prefill_tps: Amount | None = None
    decode_tps: Amount | None = None
    thermal_start_c: float | None = None
    thermal_end_c: float | None = None


class LegacyRow(OpenRecord, frozen=True, kw_only=True):
    """One quant tag of one model: means over its runs."""

    quant_tag: Name
    adherence_score: Rate | None
    """0 also where no run had a score."""
    total_latency: Amount | None
    """Mean wall seconds of a run."""
    valid: bool
    test_runs: Count | None = None
    peak_memory_rss: Amount | None = None
    """MiB, of the client's process tree."""
    init_latency: Amount | None = None
    prompt_tokens_per_second: Amount | None = None
    generation_tokens_per_second: Amount | None = None
    orchestration_overhead_ratio: Rate | None = None
    missing_telemetry_rate: Rate | None = None
    polluted_run_rate: Rate | None = None
    token_metrics_status: Label | None = None
    run_quality_status: Label | None = None
    run_quality_reasons: tuple[Label, ...] = ()
    determinism_rate: Rate | None = None
    vibe_delta: float | None = None
    hardware_sidecar: LegacySidecar | None = None


class LegacyFrontier(OpenRecord, frozen=True, kw_only=True):
    """The limits and the picks."""

    adherence_threshold: Rate = 0.95
    latency_ceiling: Annotated[float, Meta(gt=0)] = 10.0
    minimum_viable_quant_tag: Name | None = None
    best_value_quant_tag: Name | None = None


class LegacySession(OpenRecord, frozen=True, kw_only=True):
    """One model."""

    model_id: Name
    baseline_quant: Name
    per_quant: Annotated[tuple[LegacyRow, ...], Meta(min_length=1)]
    efficiency_frontier: LegacyFrontier
    recommendation: Label = ""


class LegacyKpis(OpenRecord, frozen=True, kw_only=True):
    """Tracked rates. Missing telemetry and pollution count rows there, weighted by their runs."""

    determinism_rate: Rate | None = None
    missing_telemetry_rate: Rate | None = None
    polluted_run_rate: Rate | None = None
    frontier_success_rate: Rate | None = None
    weighted_runs: Count | None = None


class LegacySummary(OpenRecord, frozen=True, kw_only=True):
    """`sweep_summary.json` of the older shape."""

    schema_version: str
    generated_at: Label | None = None
    commit_sha: Label | None = None
    hardware_fingerprint: Label = ""
    execution_lane: Label = ""
    vram_profile: Label = ""
    matrix: LegacyMatrix = LegacyMatrix()
    canary: LegacyCanary | None = None
    sessions: Annotated[tuple[LegacySession, ...], Meta(min_length=1)]
    stability_kpis: LegacyKpis | None = None
