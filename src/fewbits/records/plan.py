"""The resolved plan of a sweep: what will be run, under which controls and policies, writing which files."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Bucket, ExecutionLane, Rate, Record, VramProfile
from fewbits.records.detection import DetectionSettings
from fewbits.records.divergence import DivergencePolicy, EvaluationText
from fewbits.records.extraction import ExtractionSettings
from fewbits.records.variant import ModelSource


class Controls(Record, frozen=True, kw_only=True):
    """What is held fixed. Requested here; what was effective is read back from the engine into every trial."""

    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1337
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Compute threads; `None` resolves to the physical cores that this process may use."""
    affinity_policy: Annotated[str, Meta(pattern=r"^(none|auto|cores:[0-9,\-]+)$")] = "auto"
    """`none`: leave to the OS; `auto`: pin the engine to the first `threads` allowed cores; `cores:0,2-3`: these."""
    warmup_steps: Annotated[int, Meta(ge=0, le=100)] = 1
    """Unrecorded generations after each model load."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    context_size: Annotated[int, Meta(ge=64, le=10_000_000)] = 2048
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 512


class EffectiveControls(Record, frozen=True, kw_only=True):
    """What the engine and the OS report about the controls; `unavailable` says why a field is `null`."""

    seed: int | None = None
    threads: int | None = None
    affinity: tuple[int, ...] | None = None
    """Cores that the serving process may run on, read back from the OS."""
    context_size: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class CanaryPolicy(Record, frozen=True, kw_only=True):
    """The repeated check before the matrix. `runs = 0` switches it off (and the summary says so)."""

    runs: Annotated[int, Meta(ge=0, le=1000)] = 10
    task_id: str | None = None
    """`None`: the first selected task."""
    quant_tag: str | None = None
    """`None`: the reference variant."""
    drop_first_run: bool = True
    max_latency_variation: Annotated[float, Meta(gt=0, le=10)] = 0.03
    """Largest coefficient of variation (sample standard deviation / mean) of model-internal seconds."""
    max_missing_telemetry_rate: Rate = 0.0
    max_polluted_retries: Annotated[int, Meta(ge=0, le=1000)] = 10
    """Repeats that foreign load spoiled are run again, up to this many, so that the gate judges the engine."""


class QualityPolicy(Record, frozen=True, kw_only=True):
    """When a trial is POLLUTED by foreign disturbance, and when a row is. Named, stored in the plan, part of its digest."""

    name: str = "standard-v1"
    max_foreign_cpu_ratio: Rate = 0.10
    """CPU time used by processes that are not ours / (wall time x cores usable)."""
    max_cpu_pressure_ratio: Rate = 0.25
    """Share of wall time in which some task waited for a CPU (Linux PSI `some`), beyond what our own processes cause."""
    max_steal_ratio: Rate = 0.05
    max_memory_pressure_ratio: Rate = 0.05
    max_io_pressure_ratio: Rate = 0.20
    max_throttle_events: Annotated[int, Meta(ge=0)] = 0
    max_orchestration_overhead_ratio: Rate = 0.25
    rerun_budget_ratio: Rate = 0.2
    """Polluted trials are run again, up to this share of the planned trials; both attempts stay in the journal."""
    rerun_max_attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    """Attempts at one cell, the first included."""
    row_max_polluted_rate: Rate = 0.25
    """A row with a larger share of polluted trials is POLLUTED as a whole."""
    row_max_missing_telemetry_rate: Rate = 0.0


class PolicyName(StrEnum):
    """The rule that a recommendation follows."""

    THREE_ZONE = "three-zone-v1"
    """Divergence eliminates, paired task results accept, size, speed and memory choose among the accepted."""
    THRESHOLD = "threshold-v1"
    """Point estimates against two thresholds: adherence relative to the reference, and latency."""


class SelectionPolicy(Record, frozen=True, kw_only=True):
    """The limits that a recommendation must meet. Named, stored in the plan, part of its digest, fixed before any result."""

    name: PolicyName = PolicyName.THREE_ZONE
    adherence_threshold: Rate = 0.95
    """Smallest ratio of mean adherence to the reference variant's. Used by `threshold-v1` only."""
    adherence_floor: Rate = 0.10
    """Smallest absolute mean adherence, for the reference row too."""
    latency_ceiling: Annotated[float, Meta(gt=0)] = 10.0
    """Largest median wall-clock seconds per trial."""
    include_invalid: bool = False
    """Let polluted or otherwise invalid rows take part. KPIs stay strict."""
    equivalence_margin: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    """Largest difference of mean adherence (absolute, 0..1) that still counts as the same."""
    error_level: Annotated[float, Meta(gt=0, le=0.2)] = 0.05
    """Largest probability of any false `WORSE` in a session; likewise of any false `EQUIVALENT`, and of any false `BETTER`."""
    divergence_error_level: Annotated[float, Meta(gt=0, lt=0.2)] = 0.01
    """The part of `error_level` that `WORSE` spends on the divergence test; the paired test gets the rest."""
    divergence_harm_nats: Annotated[float, Meta(gt=0)] = 0.5
    """The harm line: mean KL divergence from the reference, nats per token, that no useful variant reaches."""


class DecidePolicy(Record, frozen=True, kw_only=True):
    """Deciding one item at a time, with tests that stay valid however often they are looked at."""

    enabled: bool = False
    early_stop: bool = True
    """Variants with a verdict get no further items; off: the full matrix, judged by the same anytime-valid tests."""
    minimum_items: Annotated[int, Meta(ge=1, le=10_000)] = 10
    """Items that every variant answers at least, so that each row has a latency and a memory figure."""
    maximum_items: Annotated[int, Meta(ge=1)] | None = None
    """Items that are asked at most, a draw from all of them; whoever is undecided then stays so. `None`: all."""


class GuardPolicy(Record, frozen=True, kw_only=True):
    """The live guard: what must hold before and while a sweep measures. The memory limit is the VRAM profile's."""

    enabled: bool = False
    cooldown_target_c: Annotated[float, Meta(gt=0, lt=150)] = 50.0
    """A block starts only when no sensor reads more than this (degrees Celsius)."""
    cooldown_timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    """Longest wait for it; then the sweep ends cleanly and the same command continues later."""
    max_throttle_events: Annotated[int, Meta(ge=0)] = 0
    """Throttle events of one trial that end the sweep when exceeded."""


class SidecarRequest(Record, frozen=True, kw_only=True):
    """Whether llama-bench runs after the matrix, and how."""

    profile: str | None = None
    """Name of a profile; `None`: no sidecar."""
    profiles_config: str = "benchmarks/configs/sidecar_profiles.json"
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    """Per variant; `None`: the profile's."""


BASELINE_ROOT = "orket_storage/baselines"
"""Where baselines lie unless told otherwise, below the current folder."""


class BaselineRequest(Record, frozen=True, kw_only=True):
    """What rows are compared with: stored baselines of earlier runs."""

    enabled: bool = True
    storage_root: str = BASELINE_ROOT
    ref: str | None = None
    """One record, by its run id, instead of the newest that matches."""


class TaskSelection(Record, frozen=True, kw_only=True):
    """Which tasks of the bank are asked: bucket, then tier, then id bounds, then the first `limit`."""

    buckets: tuple[Bucket, ...] = ()
    tiers: tuple[int, ...] = ()
    id_min: str | None = None
    id_max: str | None = None
    ids: tuple[str, ...] = ()
    limit: Annotated[int, Meta(ge=0)] = 0
    """0 = no limit."""


class SweepSpec(Record, frozen=True, kw_only=True):
    """Everything a sweep was asked for, with every default filled in. The same spec plans the same trials."""

    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    quants: Annotated[tuple[str, ...], Meta(min_length=1)]
    reference_quant: str | None = None
    """`None`: the variant with the most bits per weight."""
    task_bank: str
    selection: TaskSelection = TaskSelection()
    runs_per_quant: Annotated[int, Meta(ge=1, le=10_000)] = 1
    runtime: str = "llamacpp"
    base_url: str | None = None
    runtime_target: str = "local-hardware"
    execution_mode: str = "live-card"
    execution_lane: ExecutionLane = ExecutionLane.LAB
    vram_profile: VramProfile = VramProfile.SAFE
    controls: Controls = Controls()
    trial_timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 120.0
    load_timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 300.0
    canary: CanaryPolicy = CanaryPolicy()
    quality: QualityPolicy = QualityPolicy()
    policy: SelectionPolicy = SelectionPolicy()
    decide: DecidePolicy = DecidePolicy()
    divergence: DivergencePolicy = DivergencePolicy()
    guard: GuardPolicy = GuardPolicy()
    sidecar: SidecarRequest = SidecarRequest()
    baselines: BaselineRequest = BaselineRequest()
    model_policies: dict[str, SelectionPolicy] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    """Model id -> its own limits, where they differ from `policy`."""
    control_profile: str | None = None
    """The named profile that controls and quality policy were taken from; what it says is in those fields."""
    block_tasks: Annotated[int, Meta(ge=1, le=1000)] | None = None
    """Tasks per block; `None`: 1 where all variants fit into memory together, else more, since each block then swaps models."""
    determinism_tasks: Annotated[int, Meta(ge=0, le=1000)] = 3
    """Tasks that every variant answers once more at the end, to see whether it repeats itself; 0 where `runs_per_quant` does."""
    out_dir: str
    summary_out: str
    script: str | None = None
    """For the scripted runtime: the file that holds its replies."""
    detection: DetectionSettings | None = None
    """For sweeps over detectors, else `None`."""
    extraction: ExtractionSettings | None = None
    """For sweeps over pipelines from pages to reports, else `None`."""
    description: str = ""
    """Free text of the preset, shown in the dry run; no part of the plan digest."""

    @property
    def variant_keys(self) -> tuple[tuple[str, str], ...]:
        """Every (model id, quant tag), in the order of the spec."""
        return tuple((model_id, tag) for model_id in self.models for tag in self.quants)

    def policy_of(self, model_id: str) -> SelectionPolicy:
        """Return the limits that a model must meet: its own, else the sweep's."""
        return self.model_policies.get(model_id, self.policy)


class PlannedTask(Record, frozen=True, kw_only=True):
    """A task as the plan pins it."""

    task_id: str
    revision: int
    digest: str
    bucket: Bucket
    tier: int


class Plan(Record, frozen=True, kw_only=True):
    """A spec resolved on a machine. `digest` covers everything that could change a result; it never covers paths or the clock."""

    schema_version: str = "fewbits.plan.v1"
    digest: str
    spec: SweepSpec
    models: tuple[ModelSource, ...]
    tasks: tuple[PlannedTask, ...]
    task_bank_digest: str
    controls: Controls
    """With `threads` resolved."""
    hardware_fingerprint: str
    commit_sha: str | None
    trials_total: int
    """Trials of the full matrix; deciding may need fewer."""
    block_tasks: int = 5
    evaluation_text: EvaluationText | None = None
    """`None`: divergence is switched off, or this runtime has no text model."""
    artifacts: dict[str, str]
    """Role of each file the sweep will write -> its path."""


class PlannedTrial(Record, frozen=True, kw_only=True):
    """One cell of the matrix, in run order. `block` groups the trials that are compared with each other."""

    index: int
    block: int
    model_id: str
    quant_tag: str
    task_id: str
    repetition: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The identity of the cell: model, quant, task, repetition."""
        return (self.model_id, self.quant_tag, self.task_id, self.repetition)
