"""One task, run once: what `fewbits task` reports."""

from __future__ import annotations

from fewbits.records.base import PollutionReason, Record, RunQuality, TrialStatus
from fewbits.records.baseline import BaselineComparison
from fewbits.records.plan import Controls, EffectiveControls
from fewbits.records.task import CheckResult
from fewbits.records.trial import Telemetry

NOT_DETERMINABLE = "NOT_DETERMINABLE"
"""A single run cannot show whether the answer repeats."""


class SavedBaseline(Record, frozen=True, kw_only=True):
    """What became of `--save-baseline`."""

    saved: bool
    storage_root: str
    test_run_id: str | None
    """The new record's reference; `None` when nothing was stored."""
    forced: bool = False
    refused_because: tuple[str, ...] = ()
    """What spoke against it; with `forced` it was stored all the same, and is marked."""


class TaskRun(Record, frozen=True, kw_only=True):
    """`task_run.json` in the run's folder."""

    schema_version: str = "fewbits.task_run.v1"
    test_id: str
    task_revision: str
    """Digest of prompt and checks."""
    model_id: str
    quant_tag: str
    variant_sha256: str | None
    engine: str
    engine_version: str
    hardware_fingerprint: str
    execution_lane: str
    vram_profile: str
    started_at: str
    outcome: str
    """`pass` (every check met), `fail` (an answer that does not), or `error` (no answer)."""
    status: TrialStatus
    failure: str
    determinism: str = NOT_DETERMINABLE
    adherence_score: float | None
    checks: tuple[CheckResult, ...]
    output_text: str
    telemetry: Telemetry
    run_quality_status: RunQuality
    run_quality_reasons: tuple[PollutionReason, ...]
    experimental_controls: Controls
    controls_effective: EffectiveControls
    baseline: BaselineComparison
    vibe_delta: float | None
    """(baseline adherence - adherence) / GiB of peak memory saved against the baseline."""
    vibe_delta_status: str
    """`OK`, or why there is none."""
    saved_baseline: SavedBaseline | None
    """`None` when not asked for."""
