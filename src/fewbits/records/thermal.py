"""The thermal stability profile: whether runs, one after another, got slower and hotter, and whether the machine cooled down."""

from __future__ import annotations

from enum import StrEnum

from fewbits.records.base import Record
from fewbits.records.estimate import Estimate
from fewbits.records.explorer import ExplorerArtifact


class ThermalMode(StrEnum):
    """Where the readings come from."""

    SUMMARIES = "summaries"
    """Recorded runs, in the order in which they were given."""
    LIVE = "live"
    """This machine's sensors, watched for a while. Nothing was run, so there are no latencies."""


class ThermalDevice(StrEnum):
    """Which sensor a temperature belongs to."""

    CPU_PACKAGE = "cpu_package"
    GPU = "gpu"


class ThermalReason(StrEnum):
    """What is to be said about a point. The first four are violations, the others say what could not be judged."""

    COOLDOWN_TARGET_NOT_REACHED = "COOLDOWN_TARGET_NOT_REACHED"
    RUN_QUALITY_NOT_CLEAN = "RUN_QUALITY_NOT_CLEAN"
    THERMAL_END_ABOVE_THRESHOLD = "THERMAL_END_ABOVE_THRESHOLD"
    THROTTLED = "THROTTLED"
    NO_LATENCY = "NO_LATENCY"
    NO_SENSOR = "NO_SENSOR"
    NO_TRIALS = "NO_TRIALS"
    """No trial recorded the machine's state."""


class ThermalGap(StrEnum):
    """Why a field of a thermal artifact is `null`. Closed set."""

    NO_SENSOR = "NO_SENSOR"
    NO_TRIALS = "NO_TRIALS"
    NO_LATENCY = "NO_LATENCY"
    NO_INTERVAL = "NO_INTERVAL"
    """A latency has no interval on the side that matters."""
    NOT_DETECTED = "NOT_DETECTED"
    """There is no heat soak to be certain of."""
    NOT_REACHED = "NOT_REACHED"
    NOT_REPORTED = "NOT_REPORTED"
    """The summary does not say."""
    NOT_TOLD = "NOT_TOLD"
    """A live watch knows a model only by its flags."""
    NOTHING_JUDGED = "NOTHING_JUDGED"
    NO_RUNS = "NO_RUNS"
    """Watched live: nothing was run."""
    NOT_WATCHED = "NOT_WATCHED"
    """Recorded runs: only a live watch can show it."""
    TOO_FEW_RUNS = "TOO_FEW_RUNS"
    WORK_DIFFERS = "WORK_DIFFERS"


class ThermalNoteCode(StrEnum):
    """What a reader should know before comparing the runs. None of them fails anything."""

    LANE_MISMATCH = "LANE_MISMATCH"
    """The lane asked for is not the one that was measured in; the artifact carries the measured one."""
    PROFILE_MISMATCH = "PROFILE_MISMATCH"
    CLOCK_UNKNOWN = "CLOCK_UNKNOWN"
    """A summary does not say when its first trial began, so the order given cannot be checked."""
    CLOCK_NOT_INCREASING = "CLOCK_NOT_INCREASING"
    """By their own dates the runs began in another order. The order given is kept: clocks can run backwards."""
    WORK_DIFFERS = "WORK_DIFFERS"
    """The runs followed different plans or asked different numbers of tasks: seconds are not of the same work."""
    ENGINE_DIFFERS = "ENGINE_DIFFERS"
    INCOMPLETE_RUN = "INCOMPLETE_RUN"
    WATCH_INTERRUPTED = "WATCH_INTERRUPTED"


class ThermalNote(Record, frozen=True, kw_only=True):
    """A code and its sentence."""

    code: ThermalNoteCode
    text: str


class ThermalThresholds(Record, frozen=True, kw_only=True):
    """What points are held against. Degrees Celsius; both limits are inclusive."""

    cooldown_target_c: float
    polluted_thermal_threshold_c: float
    monotonic_window: int
    """Rises in a row that make a heat soak."""


class DeviceReading(Record, frozen=True, kw_only=True):
    """One device during one run (or watch). Degrees Celsius; `null` where this sensor was not read."""

    device: ThermalDevice
    thermal_start_c: float | None
    thermal_end_c: float | None
    thermal_max_c: float | None
    thermal_delta_c: float | None
    """End minus start."""


class ThermalPoint(Record, frozen=True, kw_only=True):
    """One run. `thermal_*` are those of the artifact's `device`; limits are held against every device in `devices`."""

    run_index: int
    """1 = first."""
    summary_path: str | None
    """As given; `null` for a live watch."""
    summary_sha256: str | None
    first_trial_at: str | None
    total_latency: float | None
    """Median wall-clock seconds per trial."""
    latency_median: Estimate | None
    """The same with its interval, which spans tasks: it is wide where tasks differ."""
    tasks: int | None
    test_runs: int | None
    thermal_start_c: float | None
    thermal_end_c: float | None
    thermal_max_c: float | None
    thermal_delta_c: float | None
    devices: tuple[DeviceReading, ...]
    """Devices that gave at least one temperature."""
    throttle_events: int | None
    polluted: bool | None
    """True: a violation was seen. False: none was, and an end temperature shows that it was not too hot. `null`: neither."""
    cooldown_ok: bool | None
    """Every device that gives start temperatures began at or below the target; `null` without any."""
    reasons: tuple[ThermalReason, ...]
    """Sorted."""
    unavailable: dict[str, ThermalGap] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class ThermalSample(Record, frozen=True, kw_only=True):
    """One live reading. Degrees Celsius."""

    elapsed_seconds: float
    """Since the first reading, on the monotonic clock."""
    cpu_package_c: float | None
    gpu_c: float | None
    load_1m: float | None


class RisingRuns(Record, frozen=True, kw_only=True):
    """The longest stretch in which every run was above the one before it; the earliest where several are as long."""

    first_run: int
    last_run: int
    """The same as `first_run` where nothing ever rose."""
    first_value: float
    last_value: float


class ThermalArtifact(ExplorerArtifact, frozen=True, kw_only=True):
    """`explorer.thermal_stability.v1`. Every `null` has its reason in `unavailable`, by field name."""

    schema_version: str = "explorer.thermal_stability.v1"
    mode: ThermalMode
    hardware_fingerprint: str
    model_id: str | None
    """`null` only for a live watch that was not told."""
    quant_tag: str | None
    variant_sha256: str | None
    selection: str
    """Which row of each summary was profiled and why, in one sentence."""
    thresholds: ThermalThresholds
    device: ThermalDevice | None
    """The device with the hottest reading of all runs: the points' `thermal_*` are its."""
    heat_soak_detected: bool | None
    """Latency rose strictly `monotonic_window` times in a row, anywhere. `null`: too few runs, or a latency is missing."""
    longest_latency_rise: RisingRuns | None
    """Seconds. A heat soak where it has at least `monotonic_window` rises."""
    heat_soak_certain: bool | None
    """The latency intervals of that rise's first and last run do not overlap. `null` where one has none, or the work differs."""
    heat_soak_chance: float | None
    """Probability that as many runs in random order show such a rise, 0..1: how much a detection means."""
    heat_soak_by_temperature: bool | None
    """The same rule on start temperatures of `device`."""
    longest_temperature_rise: RisingRuns | None
    """Degrees Celsius at the start of the runs."""
    polluted_run_rate: float | None
    """Polluted / judged runs."""
    polluted_run_estimate: Estimate | None
    cooldown_failure_rate: float | None
    """Runs that began above the target / runs with a start temperature."""
    cooldown_failure_estimate: Estimate | None
    cooled_down_after_seconds: float | None
    """Live: when every device was first at or below the target."""
    clock_note: str | None
    """Why the order of the runs could not be confirmed by their dates; `null` when it was."""
    notes: tuple[ThermalNote, ...]
    recommendation: str
    points: tuple[ThermalPoint, ...]
    samples: tuple[ThermalSample, ...] = ()
    """Live readings, in order."""
    unavailable: dict[str, ThermalGap] = {}  # noqa: RUF012 - msgspec copies mutable defaults
