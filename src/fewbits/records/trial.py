"""One trial as it reaches the journal: everything needed to judge it again later, nothing computed across trials."""

from __future__ import annotations

from typing import Any

from fewbits.records.base import OpenRecord, PollutionReason, Record, RunQuality, TokenStatus, TrialStatus
from fewbits.records.plan import Controls, EffectiveControls
from fewbits.records.task import CheckResult
from fewbits.records.variant import ServedIdentity

TRIAL_SCHEMA = "fewbits.trial.v1"


class RawReply(Record, frozen=True, kw_only=True):
    """A runtime's answer, normalised at its boundary. Nothing is computed here; what was not reported is `None`.

    Wall-clock values come from one monotonic clock around the request; `*_ms` are the engine's own clock.
    """

    text: str
    finish_reason: str | None = None
    served_name: str | None = None
    streamed: bool = False
    wall_seconds: float
    first_output_seconds: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    decode_steps: int | None = None
    """Decode passes that `predicted_ms` covers. llama.cpp's clock starts when the first token is out of the prompt pass, so one
    less than its output tokens; `None` where the engine's clock covers every output token, or nobody knows."""
    retries: int = 0
    has_tokens: bool = True
    """False where the work has no tokens (an image for a detector): `predicted_ms` is then all the time inside the model."""
    raw_usage: dict[str, Any] | None = None
    raw_timings: dict[str, Any] | None = None


class TokenMetrics(Record, frozen=True, kw_only=True):
    """Counts and rates; rates are numbers only when `status` is `OK`."""

    status: TokenStatus
    prompt_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cached_prompt_tokens: int | None
    decode_steps: int | None
    """Tokens that `decode_seconds` was spent on."""
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None
    raw_usage: dict[str, Any] | None = None
    raw_timings: dict[str, Any] | None = None


class Telemetry(Record, frozen=True, kw_only=True):
    """Times and memory of one trial. Wall clock (`total_latency`) and model-internal time are never mixed.

    Seconds, except `peak_memory_rss` and `peak_memory_gpu_bytes` (bytes). `unavailable` maps each `null` field to a reason.
    """

    total_latency: float | None
    init_latency: float | None
    """Seconds to load the model and answer the first health check; the same for every trial of one load."""
    time_to_first_token_seconds: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    internal_model_seconds: float | None
    orchestration_overhead_ratio: float | None
    """(wall - internal) / wall."""
    peak_memory_rss: int | None
    """Bytes: peak resident set of the process that holds the weights, during this trial where the kernel can reset it."""
    peak_memory_gpu_bytes: int | None
    token_metrics: TokenMetrics
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class EnvironmentSample(Record, frozen=True, kw_only=True):
    """The machine at one moment. Counters are cumulative since boot; `None` where this machine has no such sensor."""

    monotonic_seconds: float
    cpu_busy_seconds: float | None
    """All cores, all processes: user + nice + system + irq + softirq."""
    cpu_steal_seconds: float | None
    own_cpu_seconds: float | None
    """fewbits and its children, live ones included."""
    cpu_pressure_seconds: float | None
    memory_pressure_seconds: float | None
    io_pressure_seconds: float | None
    load_1m: float | None
    throttle_events: int | None
    cpu_mhz: float | None
    temperature_c: float | None
    """Hottest CPU package sensor, degrees Celsius."""
    memory_available_bytes: int | None
    memory_total_bytes: int | None = None
    gpu_temperature_c: float | None = None
    """Hottest GPU."""
    gpu_memory_used_bytes: int | None = None
    """Of the GPU with the largest share in use; `gpu_memory_total_bytes` is the same GPU's."""
    gpu_memory_total_bytes: int | None = None
    gpu_throttled: bool | None = None
    """Whether a GPU says that heat or power holds its clock down right now."""


class EnvironmentDelta(Record, frozen=True, kw_only=True):
    """What happened around a trial, from two samples: ratios are shares of the wall time between them, 0..1."""

    wall_seconds: float
    foreign_cpu_ratio: float | None
    """(busy - own) / (wall x cores), never below 0."""
    own_cpu_ratio: float | None
    cpu_pressure_ratio: float | None
    steal_ratio: float | None
    memory_pressure_ratio: float | None
    io_pressure_ratio: float | None
    throttle_events: int | None
    """CPU throttle events of all cores, and one for a GPU that reports throttling after the trial."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class Environment(Record, frozen=True, kw_only=True):
    """Samples before and after a trial and what happened in between."""

    before: EnvironmentSample
    during: EnvironmentDelta
    after: EnvironmentSample
    cores: int


class VibeMetrics(Record, frozen=True, kw_only=True):
    """The roadmap's optimisation signals: they rank after the gate, they never open it. `status` explains each `null`."""

    latency_variance: float | None
    code_density: float | None
    """Characters inside code fences / all characters of the answer, for answers of code tasks."""
    gen_retries: int | None
    vibe_delta: float | None
    """Quality lost per GiB of memory saved against the reference; known only across trials, so `null` in the journal."""
    status: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class Trial(Record, frozen=True, kw_only=True):
    """A row of `trials.jsonl` (or `canary.jsonl`). Explains itself: every row repeats its controls and its variant."""

    schema_version: str = TRIAL_SCHEMA
    plan_digest: str
    phase: str
    """`matrix` or `canary`."""
    trial_id: str
    """Digest of plan, phase, model, quant, task, repetition and attempt."""
    index: int
    block: int
    attempt: int
    started_at: str
    """UTC, ISO 8601. The only clock reading with a date; nothing is computed from it."""
    model_id: str
    quant_tag: str
    variant_sha256: str | None
    variant_bytes: int | None
    bits_per_weight: float | None
    task_id: str
    task_revision: int
    task_digest: str
    bucket: str
    tier: int
    repetition: int
    status: TrialStatus
    failure: str
    """Empty when `status` is `OK`; else one sentence."""
    served: ServedIdentity | None
    controls_requested: Controls
    controls_effective: EffectiveControls
    output_text: str
    output_sha256: str
    finish_reason: str | None
    checks: tuple[CheckResult, ...]
    adherence_score: float | None
    """0..1; `None` only where the task has no checks."""
    telemetry: Telemetry
    environment: Environment | None
    run_quality_status: RunQuality
    run_quality_reasons: tuple[PollutionReason, ...]
    vibe_metrics: VibeMetrics
    engine: str
    engine_version: str


class TokenMetricsView(OpenRecord, frozen=True, kw_only=True):
    """The part of `TokenMetrics` that summaries read."""

    status: TokenStatus
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    decode_steps: int | None = None
    prompt_tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None


class TelemetryView(OpenRecord, frozen=True, kw_only=True):
    """The part of `Telemetry` that summaries read."""

    total_latency: float | None
    init_latency: float | None = None
    time_to_first_token_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    internal_model_seconds: float | None = None
    orchestration_overhead_ratio: float | None = None
    peak_memory_rss: int | None = None
    peak_memory_gpu_bytes: int | None = None
    token_metrics: TokenMetricsView


class VibeView(OpenRecord, frozen=True, kw_only=True):
    """The part of `VibeMetrics` that summaries read."""

    code_density: float | None = None
    gen_retries: int | None = None


class SampleView(OpenRecord, frozen=True, kw_only=True):
    """The part of `EnvironmentSample` that summaries read."""

    temperature_c: float | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    gpu_temperature_c: float | None = None
    gpu_memory_used_bytes: int | None = None
    gpu_memory_total_bytes: int | None = None


class DeltaView(OpenRecord, frozen=True, kw_only=True):
    """The part of `EnvironmentDelta` that summaries read."""

    wall_seconds: float | None = None
    foreign_cpu_ratio: float | None = None
    throttle_events: int | None = None


class EnvironmentView(OpenRecord, frozen=True, kw_only=True):
    """The part of `Environment` that summaries read."""

    before: SampleView = SampleView()
    during: DeltaView = DeltaView()
    after: SampleView = SampleView()


class TrialView(OpenRecord, frozen=True, kw_only=True):
    """The part of `Trial` that summaries read: decoding skips the rest, so that 100,000 rows take well under 2 s."""

    plan_digest: str
    phase: str
    index: int
    block: int
    attempt: int
    model_id: str
    quant_tag: str
    variant_sha256: str | None
    task_id: str
    task_revision: int
    bucket: str
    tier: int
    repetition: int
    status: TrialStatus
    output_sha256: str
    adherence_score: float | None
    telemetry: TelemetryView
    run_quality_status: RunQuality
    run_quality_reasons: tuple[PollutionReason, ...]
    vibe_metrics: VibeView
    controls_effective: EffectiveControls
    started_at: str
    environment: EnvironmentView | None = None
    trial_id: str = ""
    finish_reason: str | None = None
    engine: str = ""
    engine_version: str = ""


class RawTimingsView(OpenRecord, frozen=True, kw_only=True):
    """What an engine measured besides, as it reported it."""

    raw_timings: dict[str, Any] | None = None


class MeasuredView(OpenRecord, frozen=True, kw_only=True):
    """The part of `Telemetry` that holds an engine's own measurements."""

    token_metrics: RawTimingsView


class TrialAnswer(OpenRecord, frozen=True, kw_only=True):
    """What an engine answered in one trial, and what it measured besides."""

    trial_id: str
    output_text: str
    telemetry: MeasuredView


class TrialText(OpenRecord, frozen=True, kw_only=True):
    """What a model wrote in one trial."""

    trial_id: str
    output_text: str
