"""The determinism report: the same tasks asked several times under fixed controls."""

from __future__ import annotations

from enum import StrEnum

from fewbits.records.base import PollutionReason, Rate, Record, RunQuality, TrialStatus
from fewbits.records.plan import Controls
from fewbits.records.summary import CanaryBlock, FirstDivergence


class DeterminismNote(StrEnum):
    """Why a task's determinism cannot be told, or what stands in its way."""

    SINGLE_RUN = "SINGLE_RUN"
    """One run shows nothing: not determinable."""
    NO_SUCCESSFUL_REPEATS = "NO_SUCCESSFUL_REPEATS"
    """Fewer than two runs gave an answer: two identical crashes are not determinism."""
    FAILED_RUNS = "FAILED_RUNS"
    """Some runs failed; the others were compared."""


class HarnessRun(Record, frozen=True, kw_only=True):
    """One run of one task."""

    test_id: str
    run_index: int
    outcome: str
    """`pass` (every check met), `fail` (an answer that does not), or `error` (no answer)."""
    status: TrialStatus
    adherence_score: float | None
    output_sha256: str
    total_latency: float | None
    internal_model_seconds: float | None
    run_quality_status: RunQuality
    run_quality_reasons: tuple[PollutionReason, ...]


class TaskDeterminism(Record, frozen=True, kw_only=True):
    """Whether one task's answers repeat."""

    test_id: str
    runs: int
    answered_runs: int
    unique_outputs: int
    """Different (text, finish reason, token count) among the answered runs."""
    deterministic: bool | None
    """`None`: not determinable, see `notes`."""
    same_outcome: bool | None
    """Whether the answered runs scored the same, whatever their text."""
    adherence_variance: float | None
    """Population variance of the answered runs' scores."""
    latency_variation: float | None
    """Sample standard deviation / mean of model-internal seconds; `None` with fewer than three."""
    notes: tuple[DeterminismNote, ...]
    first_divergence: FirstDivergence | None


class DeterminismReport(Record, frozen=True, kw_only=True):
    """`determinism_report.json`. A pure function of the run's plan and journal."""

    schema_version: str = "fewbits.determinism_report.v1"
    task_bank: str
    task_bank_digest: str
    model_id: str
    quant_tag: str
    variant_sha256: str | None
    engine: str
    engine_version: str
    hardware_fingerprint: str
    execution_lane: str
    plan_digest: str
    experimental_controls: Controls
    channels: tuple[str, ...]
    """What is compared. Timings are not: they never repeat."""
    runs_per_task: int
    total_tasks: int
    determinable_tasks: int
    deterministic_tasks: int
    determinism_rate: Rate | None
    """Deterministic / determinable tasks; `None` when none is determinable."""
    agreement_floor: float | None
    """One-sided 95 % lower confidence limit of the rate."""
    failed_runs: int
    polluted_runs: int
    canary: CanaryBlock | None
    """For a single task that was repeated often enough: the canary gate's judgement of these repeats."""
    tasks: tuple[TaskDeterminism, ...]
    test_runs: tuple[HarnessRun, ...]
