"""Profiles over summaries with made-up temperatures and latencies: this machine has no sensor, the rules need none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.rises import longest_rise, rise_probability
from fewbits.analysis.thermal import has_sensor, profile_series, profile_watch
from fewbits.analysis.thermal_series import ThermalLabels, select_series
from fewbits.core.codec import decode
from fewbits.core.errors import SpecError
from fewbits.records.base import Record, RunQuality
from fewbits.records.estimate import Estimate
from fewbits.records.explorer import ArtifactProvenance
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import DeviceConditions, QuantRow, RowConditions, SweepSummary
from fewbits.records.thermal import ThermalArtifact, ThermalDevice, ThermalGap, ThermalReason, ThermalThresholds
from fewbits.records.trial import EnvironmentSample

GOLDEN = Path(__file__).parent / "golden" / "summary.json"
BASE = decode(GOLDEN.read_bytes(), SweepSummary, "golden")
PROVENANCE = ArtifactProvenance(ref="test", sources=(), fewbits_version="0")
SILENT = DeviceConditions(unavailable={"temperature_start_c": "NO_SENSOR"})


def device(start: float | None, end: float | None, hottest: float | None = None, events: int | None = 0) -> DeviceConditions:
    known = [value for value in (start, end, hottest) if value is not None]
    return DeviceConditions(
        temperature_start_c=start, temperature_end_c=end, temperature_max_c=max(known, default=None), throttle_events=events
    )


def run(
    latency: float | None = 0.4,
    host: DeviceConditions = SILENT,
    *,
    gpu: DeviceConditions = SILENT,
    reach: float | None = 0.01,
    began: str | None = None,
    row: dict[str, Any] | None = None,
    **summary: Any,
) -> SweepSummary:
    """The golden summary, with the reference F16 changed."""
    session = summary.pop("session", BASE.sessions[0])
    old = session.per_quant[0]
    interval = None
    if latency is not None and reach is not None:
        interval = Estimate(value=latency, low=latency - reach, high=latency + reach, level=0.95, method="test", n=9)
    new = msgspec.structs.replace(
        old,
        total_latency=latency,
        latency_median=interval,
        conditions=RowConditions(host=host, gpu=gpu),
        **(row or {}),
    )
    rows: tuple[QuantRow, ...] = (new, *session.per_quant[1:])
    provenance = msgspec.structs.replace(BASE.provenance, first_trial_at=began)
    changed = {"sessions": (msgspec.structs.replace(session, per_quant=rows),), "provenance": provenance}
    return msgspec.structs.replace(BASE, **(changed | summary))


def sourced(summaries: Sequence[SweepSummary]) -> list[tuple[SweepSummary, SourceFile]]:
    return [(one, SourceFile(path=f"run{n}.json", sha256=f"{n:064x}")) for n, one in enumerate(summaries, start=1)]


def profile(*summaries: SweepSummary, labels: ThermalLabels | None = None, **limits: Any) -> ThermalArtifact:
    thresholds = {"cooldown_target_c": 50.0, "polluted_thermal_threshold_c": 85.0, "monotonic_window": 2} | limits
    series = select_series(sourced(summaries), labels or ThermalLabels())
    artifact = profile_series(series, ThermalThresholds(**thresholds), provenance=PROVENANCE, generated_at="2026-02-27T10:00:00Z")
    assert_every_null_is_explained(artifact)
    return artifact


def assert_every_null_is_explained(artifact: ThermalArtifact) -> None:
    assert nulls_of(artifact) - {"clock_note"} == set(artifact.unavailable)
    for point in artifact.points:
        assert nulls_of(point) == set(point.unavailable)


def nulls_of(record: Record) -> set[str]:
    return {name for name in record.__struct_fields__ if getattr(record, name) is None}


def of_latencies(*values: float | None) -> list[SweepSummary]:
    return [run(value) for value in values]


class TestHeatSoak:
    @pytest.mark.parametrize(
        ("latencies", "window", "expected"),
        [
            ((1.0, 2.0, 3.0), 2, True),
            ((1.0, 2.0, 3.0), 3, None),
            ((1.0, 2.0, 2.0, 3.0), 2, False),
            ((3.0, 1.0, 2.0, 3.0, 0.5), 2, True),
            ((3.0, 2.0, 1.0), 2, False),
            ((1.0, 2.0), 1, True),
            ((1.0, 1.0), 1, False),
            ((1.0,), 1, None),
            ((1.0, 2.0), 9, None),
        ],
    )
    def test_strict_rises_in_a_row_anywhere(self, latencies: tuple[float, ...], window: int, expected: bool | None) -> None:
        artifact = profile(*of_latencies(*latencies), monotonic_window=window)
        assert artifact.heat_soak_detected is expected
        if expected is None:
            assert artifact.unavailable["heat_soak_detected"] is ThermalGap.TOO_FEW_RUNS
            assert "cannot be judged" in artifact.recommendation

    def test_a_hole_is_neither_a_rise_nor_its_absence(self) -> None:
        artifact = profile(*of_latencies(1.0, 2.0, None, 3.0, 4.0))
        assert artifact.heat_soak_detected is None
        assert artifact.unavailable["heat_soak_detected"] is ThermalGap.NO_LATENCY
        assert artifact.points[2].reasons == (ThermalReason.NO_LATENCY, ThermalReason.NO_SENSOR)
        assert profile(*of_latencies(None, 1.0, 2.0, 3.0)).heat_soak_detected is True
        assert profile(run(None)).longest_latency_rise is None

    def test_where_it_rose_is_told(self) -> None:
        rise = profile(*of_latencies(9.0, 1.0, 2.0, 3.5, 0.1)).longest_latency_rise
        assert rise is not None
        assert (rise.first_run, rise.last_run, rise.first_value, rise.last_value) == (2, 4, 1.0, 3.5)

    def test_intervals_say_how_certain_it_is(self) -> None:
        apart = profile(*(run(value, reach=0.05) for value in (1.0, 1.1, 1.2)))
        assert apart.heat_soak_certain is True
        assert "more than the intervals" in apart.recommendation
        overlapping = profile(*(run(value, reach=0.2) for value in (1.0, 1.1, 1.2)))
        assert overlapping.heat_soak_certain is False
        assert "17 % of the time" in overlapping.recommendation
        unknown = profile(*(run(value, reach=None) for value in (1.0, 1.1, 1.2)))
        assert unknown.heat_soak_certain is None
        assert unknown.unavailable["heat_soak_certain"] is ThermalGap.NO_INTERVAL
        none = profile(*of_latencies(3.0, 2.0, 1.0))
        assert none.unavailable["heat_soak_certain"] is ThermalGap.NOT_DETECTED

    def test_different_work_is_never_certain(self) -> None:
        artifact = profile(run(1.0), run(2.0), run(3.0, row={"tasks": 3}))
        assert artifact.heat_soak_detected is True
        assert artifact.heat_soak_certain is None
        assert [note.code.value for note in artifact.notes if note.code.value.startswith("WORK")] == ["WORK_DIFFERS"]
        assert "runs of one plan" in artifact.recommendation

    @given(st.lists(st.integers(0, 5) | st.none(), min_size=1, max_size=12), st.integers(1, 5))
    def test_the_longest_rise_is_what_a_search_finds(self, values: list[int | None], window: int) -> None:
        numbers = [None if value is None else float(value) for value in values]
        stretches = [
            (start, end)
            for start, end in itertools.combinations_with_replacement(range(len(values)), 2)
            if None not in (part := numbers[start : end + 1]) and all(b > a for a, b in itertools.pairwise(part))  # type: ignore[operator]
        ]
        best = min(stretches, key=lambda stretch: (stretch[0] - stretch[1], stretch[0]), default=None)
        assert longest_rise(numbers) == best
        if None not in values:
            artifact = profile(*of_latencies(*numbers), monotonic_window=window)
            rose = any(end - start >= window for start, end in stretches)
            assert artifact.heat_soak_detected is (rose if rose or len(values) > window else None)

    @pytest.mark.parametrize(("runs", "window"), [(n, w) for n in range(1, 8) for w in range(1, 5)])
    def test_the_chance_is_what_counting_gives(self, runs: int, window: int) -> None:
        orders = list(itertools.permutations(range(runs)))
        rising = sum(
            any(all(order[i + j] < order[i + j + 1] for j in range(window)) for i in range(runs - window)) for order in orders
        )
        assert rise_probability(runs, window) == pytest.approx(rising / math.factorial(runs), abs=1e-12)

    @given(st.integers(1, 300), st.integers(1, 20))
    def test_the_chance_is_a_probability_that_grows_with_the_runs(self, runs: int, window: int) -> None:
        assert 0 <= rise_probability(runs, window) <= rise_probability(runs + 1, window) + 1e-9 <= 1 + 1e-9

    def test_start_temperatures_follow_the_same_rule(self) -> None:
        rising = profile(*(run(1.0, device(start, 60)) for start in (40, 45, 49)))
        assert rising.heat_soak_detected is False
        assert rising.heat_soak_by_temperature is True
        assert rising.longest_temperature_rise is not None
        assert (rising.longest_temperature_rise.first_value, rising.longest_temperature_rise.last_value) == (40, 49)
        steady = profile(*(run(1.0, device(40, 60)) for _ in range(3)))
        assert steady.heat_soak_by_temperature is False
        blind = profile(*of_latencies(1.0, 2.0, 3.0))
        assert blind.heat_soak_by_temperature is None
        assert blind.unavailable["heat_soak_by_temperature"] is ThermalGap.NO_SENSOR


class TestPoints:
    @pytest.mark.parametrize(
        ("changes", "polluted", "cooldown_ok", "reasons"),
        [
            ({"host": device(45, 70)}, False, True, ()),
            ({"host": device(50, 85)}, False, True, ()),
            ({"host": device(50.1, 85.1)}, True, False, ("COOLDOWN_TARGET_NOT_REACHED", "THERMAL_END_ABOVE_THRESHOLD")),
            ({"host": device(60, 70)}, False, False, ("COOLDOWN_TARGET_NOT_REACHED",)),
            ({"host": device(45, 70, events=3)}, True, True, ("THROTTLED",)),
            ({"host": device(45, 70, events=None)}, False, True, ()),
            (
                {"host": device(45, 70), "row": {"run_quality_status": RunQuality.POLLUTED}},
                True,
                True,
                ("RUN_QUALITY_NOT_CLEAN",),
            ),
            ({}, None, None, ("NO_SENSOR",)),
            ({"row": {"run_quality_status": RunQuality.POLLUTED}}, True, None, ("NO_SENSOR", "RUN_QUALITY_NOT_CLEAN")),
            ({"host": device(45, None)}, None, True, ()),
            ({"host": device(None, 70)}, False, None, ()),
            ({"host": device(45, 70), "gpu": device(70, 60)}, False, False, ("COOLDOWN_TARGET_NOT_REACHED",)),
            ({"host": device(45, 70), "gpu": device(45, 90)}, True, True, ("THERMAL_END_ABOVE_THRESHOLD",)),
            ({"host": device(0, 0)}, False, True, ()),
        ],
    )
    def test_rules(
        self, changes: dict[str, Any], polluted: bool | None, cooldown_ok: bool | None, reasons: tuple[str, ...]
    ) -> None:
        (point,) = profile(run(**changes)).points
        assert (point.polluted, point.cooldown_ok, tuple(point.reasons)) == (polluted, cooldown_ok, reasons)

    def test_numbers_are_those_of_the_hottest_device_and_none_is_hidden(self) -> None:
        artifact = profile(run(host=device(45, 61), gpu=device(30, 80)), run(host=device(46, 60), gpu=device(31, 79)))
        assert artifact.device is ThermalDevice.GPU
        assert [point.thermal_end_c for point in artifact.points] == [80, 79]
        assert [point.thermal_delta_c for point in artifact.points] == [50, 48]
        assert {reading.device for reading in artifact.points[0].devices} == {ThermalDevice.CPU_PACKAGE, ThermalDevice.GPU}

    def test_a_row_that_recorded_nothing(self) -> None:
        bare = msgspec.structs.replace(BASE.sessions[0].per_quant[0], conditions=None)
        session = msgspec.structs.replace(BASE.sessions[0], per_quant=(bare,))
        (point,) = profile(msgspec.structs.replace(BASE, sessions=(session,))).points
        assert point.reasons == (ThermalReason.NO_TRIALS,)
        assert point.unavailable["thermal_start_c"] is ThermalGap.NO_TRIALS
        assert point.unavailable["throttle_events"] is ThermalGap.NO_TRIALS

    def test_rates_are_over_what_could_be_judged(self) -> None:
        hot = run(host=device(60, 90))
        artifact = profile(hot, run(host=device(40, 60)), run(), run())
        assert artifact.polluted_run_rate == 0.5
        assert artifact.polluted_run_estimate is not None
        assert artifact.polluted_run_estimate.n == 2
        assert artifact.cooldown_failure_rate == 0.5
        blind = profile(run(), run())
        assert blind.polluted_run_rate is None
        assert blind.unavailable["cooldown_failure_rate"] is ThermalGap.NOTHING_JUDGED
        assert "not judged" in blind.recommendation
        assert "stable" not in blind.recommendation

    def test_stable_is_said_only_where_it_was_seen(self) -> None:
        stable = profile(*(run(1.0, device(45, 60)) for _ in range(3)))
        assert stable.recommendation.endswith("Thermally stable.")
        assert "stability was not shown" in profile(*(run(1.0, device(45, 60)) for _ in range(2))).recommendation
        assert "Let the machine cool down to 50 °C" in profile(*(run(1.0, device(55, 60)) for _ in range(3))).recommendation
        dirty = profile(*(run(1.0, device(45, 60), row={"run_quality_status": RunQuality.POLLUTED}) for _ in range(3)))
        assert "quiet machine" in dirty.recommendation


class TestSelection:
    def test_the_minimum_viable_variant_of_the_only_model(self) -> None:
        artifact = profile(run(), run())
        assert (artifact.model_id, artifact.quant_tag) == ("m", "F16")
        assert "the only one" in artifact.selection
        assert "minimum viable" in artifact.selection

    def test_without_a_recommendation_the_most_precise(self) -> None:
        frontier = msgspec.structs.replace(BASE.sessions[0].efficiency_frontier, minimum_viable_quant_tag=None)
        session = msgspec.structs.replace(BASE.sessions[0], efficiency_frontier=frontier)
        artifact = profile(run(session=session))
        assert artifact.quant_tag == "F16"
        assert "nothing was recommended" in artifact.selection

    def test_by_name(self) -> None:
        artifact = profile(run(), labels=ThermalLabels(model_id="m", quant_tag="Q2_K"))
        assert artifact.quant_tag == "Q2_K"
        assert "--quant-tag" in artifact.selection

    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            (ThermalLabels(model_id="other"), ("--model-id", "'other'", "it has m")),
            (ThermalLabels(quant_tag="Q5_K_M"), ("--quant-tag", "'Q5_K_M'", "F16, Q8_0, Q2_K")),
        ],
    )
    def test_an_unknown_name_says_what_there_is(self, labels: ThermalLabels, words: tuple[str, ...]) -> None:
        with pytest.raises(SpecError) as refused:
            profile(run(), run(), labels=labels)
        assert all(word in str(refused.value) for word in words)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"hardware_fingerprint": "other"}, "another hardware"),
            ({"execution_lane": "ci"}, "another execution lane"),
            ({"vram_profile": "stress"}, "another VRAM profile"),
            ({"row": {"variant_sha256": "e" * 64}}, "another weights"),
            ({"row": {"quant_tag": "Q6_K"}}, "no variant 'F16'"),
            ({"session": msgspec.structs.replace(BASE.sessions[0], model_id="n")}, "no model 'm'"),
            ({"sessions": ()}, "no model 'm'"),
        ],
    )
    def test_runs_that_do_not_belong_together(self, change: dict[str, Any], words: str) -> None:
        with pytest.raises(SpecError, match=words) as refused:
            profile(run(), run(**change))
        assert "run2.json" in str(refused.value)

    def test_every_problem_is_told_at_once(self) -> None:
        strange = run(hardware_fingerprint="other", vram_profile="stress")
        with pytest.raises(SpecError) as refused:
            select_series([*sourced([run(), strange]), *sourced([run()])], ThermalLabels())
        assert len(refused.value.problems) == 3
        assert "the same summary as run1.json" in str(refused.value)

    def test_a_summary_without_sessions(self) -> None:
        with pytest.raises(SpecError, match="no session"):
            profile(run(sessions=()))

    def test_a_label_that_was_not_measured_is_noted_and_not_taken(self) -> None:
        artifact = profile(run(), labels=ThermalLabels(execution_lane="ci", vram_profile="stress"))
        assert (artifact.execution_lane, artifact.vram_profile) == ("lab", "safe")
        assert {"LANE_MISMATCH", "PROFILE_MISMATCH"} <= {note.code.value for note in artifact.notes}

    @pytest.mark.parametrize(
        ("began", "note"),
        [
            (("2026-02-27T10:00:00Z", "2026-02-27T10:00:01Z"), None),
            (("2026-02-27T10:00:00.5+00:00", "2026-02-27T12:00:00+01:00"), None),
            (("2026-02-27T10:00:00Z", "2026-02-27T09:00:00Z"), "run 2 did not begin after run 1"),
            (("2026-02-27T10:00:00Z", "2026-02-27T10:00:00Z"), "a clock was set back"),
            (("2026-02-27T10:00:00", "2026-02-27T11:00:00Z"), None),
            (("2026-02-27T10:00:00Z", None), "run 2 does not say"),
            (("yesterday", "2026-02-27T10:00:00Z"), "run 1 does not say"),
        ],
    )
    def test_dates_check_the_order_and_never_change_it(self, began: tuple[str | None, str | None], note: str | None) -> None:
        artifact = profile(run(1.0, began=began[0]), run(2.0, began=began[1]))
        assert [point.total_latency for point in artifact.points] == [1.0, 2.0]
        assert [point.run_index for point in artifact.points] == [1, 2]
        assert (artifact.clock_note is None) == (note is None)
        assert note is None or note in (artifact.clock_note or "")

    def test_what_a_reader_should_know(self) -> None:
        engine = msgspec.structs.replace(BASE.sessions[0], engine_version="2")
        artifact = profile(run(), run(session=engine, complete=False))
        assert {"ENGINE_DIFFERS", "INCOMPLETE_RUN"} <= {note.code.value for note in artifact.notes}


def sample(seconds: float, cpu: float | None = None, gpu: float | None = None, **changes: Any) -> EnvironmentSample:
    names = [name for name in EnvironmentSample.__struct_fields__ if name not in EnvironmentSample.__struct_defaults__]
    nothing: dict[str, Any] = dict.fromkeys(names)
    fields = {"monotonic_seconds": 1000 + seconds, "temperature_c": cpu, "gpu_temperature_c": gpu} | changes
    return EnvironmentSample(**(nothing | fields))


def watch(*samples: EnvironmentSample, labels: ThermalLabels | None = None, interrupted: bool = False) -> ThermalArtifact:
    artifact = profile_watch(
        samples,
        ThermalThresholds(cooldown_target_c=50, polluted_thermal_threshold_c=85, monotonic_window=2),
        labels=labels or ThermalLabels(),
        hardware_fingerprint="here",
        provenance=PROVENANCE,
        generated_at="2026-02-27T10:00:00Z",
        interrupted=interrupted,
    )
    assert_every_null_is_explained(artifact)
    return artifact


class TestWatch:
    def test_cooling_down(self) -> None:
        artifact = watch(sample(0, 70, 40), sample(1, 55, 39), sample(2.5, 50, 38), sample(3, 48, 38))
        (point,) = artifact.points
        assert (point.thermal_start_c, point.thermal_end_c, point.thermal_max_c, point.thermal_delta_c) == (70, 48, 70, -22)
        assert (point.polluted, point.cooldown_ok) == (False, False)
        assert artifact.cooled_down_after_seconds == 2.5
        assert artifact.device is ThermalDevice.CPU_PACKAGE
        assert [reading.elapsed_seconds for reading in artifact.samples] == [0, 1, 2.5, 3]
        assert artifact.recommendation.endswith("a run may start.")
        assert artifact.heat_soak_detected is None
        assert artifact.unavailable["heat_soak_detected"] is ThermalGap.NO_RUNS
        assert (artifact.execution_lane, artifact.vram_profile, artifact.model_id) == ("lab", "safe", None)

    @pytest.mark.parametrize(
        ("samples", "words"),
        [
            ((sample(0, 40), sample(1, 60)), "wait before the next run"),
            ((sample(0, 40), sample(1, 60), sample(2, 86)), "is polluted"),
            ((sample(0, 40), sample(1)), "nothing can be said"),
        ],
    )
    def test_what_to_do(self, samples: tuple[EnvironmentSample, ...], words: str) -> None:
        assert words in watch(*samples).recommendation

    @pytest.mark.parametrize(
        ("samples", "events"),
        [
            ((sample(0, 40, throttle_events=5), sample(1, 41, throttle_events=7)), 2),
            ((sample(0, 40, throttle_events=5), sample(1, 41, throttle_events=1)), 0),
            ((sample(0, 40, throttle_events=5), sample(1, 41)), None),
            ((sample(0, 40, gpu_throttled=True), sample(1, 41, gpu_throttled=False)), 0),
            ((sample(0, 40), sample(1, 41, gpu_throttled=True), sample(2, 41, gpu_throttled=False)), 1),
            ((sample(0, 40),), None),
        ],
    )
    def test_throttling(self, samples: tuple[EnvironmentSample, ...], events: int | None) -> None:
        (point,) = watch(*samples).points
        assert point.throttle_events == events
        assert (ThermalReason.THROTTLED in point.reasons) == bool(events)

    def test_labels_and_an_early_end(self) -> None:
        labels = ThermalLabels(model_id="m", quant_tag="Q8_0", execution_lane="ci", vram_profile="stress")
        artifact = watch(sample(0, 60), labels=labels, interrupted=True)
        assert (artifact.model_id, artifact.quant_tag, artifact.execution_lane, artifact.vram_profile) == (
            "m",
            "Q8_0",
            "ci",
            "stress",
        )
        assert [note.code.value for note in artifact.notes] == ["WATCH_INTERRUPTED"]
        assert artifact.unavailable["cooled_down_after_seconds"] is ThermalGap.NOT_REACHED

    def test_no_sensor(self) -> None:
        assert not has_sensor(sample(0))
        assert has_sensor(sample(0, gpu=0.0))
