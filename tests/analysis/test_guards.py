"""Lab guards over a summary: what no sensor showed is never a PASS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from fewbits.analysis.gate_report import build_report
from fewbits.analysis.guards import MEMORY_LIMITS, check_guards
from fewbits.analysis.run_quality import environment_delta
from fewbits.records.base import VramProfile
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.plan import GuardPolicy, Plan
from fewbits.records.summary import DeviceConditions, QuantRow, RowConditions, SweepSummary
from fewbits.records.trial import EnvironmentSample, TrialView

GIB = 1024**3
replace = msgspec.structs.replace
COOL = DeviceConditions(
    temperature_start_c=41.0,
    temperature_end_c=60.0,
    temperature_max_c=62.0,
    block_temperature_max_c=45.0,
    memory_total_bytes=16 * GIB,
    memory_used_ratio=0.4,
    throttle_events=0,
)
NOTHING = DeviceConditions()
Judge = Callable[..., tuple[GateCheck, ...]]


@pytest.fixture(scope="module")
def summary(
    trial: Callable[..., TrialView], make_plan: Callable[..., Plan], make_summary: Callable[..., SweepSummary]
) -> SweepSummary:
    rows = [trial(tag, "t0") for tag in ("F16", "Q8_0")]
    return make_summary(make_plan(("F16", "Q8_0"), ("t0",)), rows)


def changed(summary: SweepSummary, tag: str = "F16", **changes: Any) -> SweepSummary:
    """The summary with one row changed and everything else in good condition."""
    (session,) = summary.sessions
    good = RowConditions(host=COOL, gpu=NOTHING)

    def row(present: QuantRow) -> QuantRow:
        return replace(present, **({"conditions": good} | (changes if present.quant_tag == tag else {})))

    return replace(summary, sessions=(replace(session, per_quant=tuple(map(row, session.per_quant))),))


@pytest.fixture
def judge(summary: SweepSummary) -> Judge:
    def checks_of(
        *,
        host: DeviceConditions = COOL,
        gpu: DeviceConditions = NOTHING,
        row: dict[str, Any] | None = None,
        target: float = 50.0,
        profile: VramProfile = VramProfile.SAFE,
        **whole: Any,
    ) -> tuple[GateCheck, ...]:
        made = changed(summary, **({"conditions": RowConditions(host=host, gpu=gpu)} | (row or {})))
        return check_guards(replace(made, **({"vram_profile": profile.value} | whole)), cooldown_target_c=target, profile=profile)

    return checks_of


def of_row(checks: Sequence[GateCheck], name: str, subject: str = "m F16") -> GateCheck:
    (found,) = [check for check in checks if (check.name, check.subject) == (name, subject)]
    return found


def status(checks: Sequence[GateCheck]) -> GateStatus:
    return build_report("lab_guards", checks, sources=[], thresholds={}).status


def test_a_cool_lab_passes_with_evidence(judge: Judge) -> None:
    checks = judge()
    assert status(checks) is GateStatus.PASS
    assert [(check.name, check.subject) for check in checks] == [
        ("vram_profile", "summary"),
        *((name, f"m {tag}") for tag in ("F16", "Q8_0") for name in ("cooldown", "memory", "throttling")),
    ]
    assert of_row(checks, "cooldown").evidence == "CPU package 41.0 °C at the start, target 50 °C"
    assert of_row(checks, "memory").evidence == "at most 40 % of 16.0 GiB RAM in use, limit 50 %"
    assert of_row(checks, "throttling").evidence == "0 throttle events during the row's trials"


class TestCooldown:
    @pytest.mark.parametrize(("start", "passes"), [(49.9, True), (50.0, True), (50.1, False), (95.0, False)])
    def test_a_hot_start_fails_with_both_numbers(self, judge: Judge, start: float, passes: bool) -> None:
        found = of_row(judge(host=replace(COOL, temperature_start_c=start)), "cooldown")
        assert found.status is (GateStatus.PASS if passes else GateStatus.FAIL)
        assert found.code == ("" if passes else "COOLDOWN_TARGET_NOT_MET")
        assert (found.measured, found.limit) == (start, 50.0)
        assert f"{start:.1f} °C" in found.evidence

    def test_the_target_is_the_askers(self, judge: Judge) -> None:
        hot = replace(COOL, temperature_start_c=60.0)
        assert of_row(judge(host=hot, target=60.0), "cooldown").status is GateStatus.PASS
        assert of_row(judge(host=hot, target=59.9), "cooldown").status is GateStatus.FAIL

    def test_under_the_live_guard_every_block_had_to_start_cool(self, judge: Judge) -> None:
        hot_block = replace(COOL, block_temperature_max_c=58.0)
        assert of_row(judge(host=hot_block), "cooldown").status is GateStatus.PASS
        assert of_row(judge(host=hot_block, guard_policy=GuardPolicy(enabled=False)), "cooldown").status is GateStatus.PASS
        found = of_row(judge(host=hot_block, guard_policy=GuardPolicy(enabled=True)), "cooldown")
        assert (found.status, found.measured) == (GateStatus.FAIL, 58.0)
        assert "hottest start of a block" in found.evidence

    def test_the_hotter_device_counts(self, judge: Judge) -> None:
        found = of_row(judge(gpu=DeviceConditions(temperature_start_c=71.0)), "cooldown")
        assert (found.status, found.measured) == (GateStatus.FAIL, 71.0)
        assert found.evidence.startswith("GPU 71.0 °C")
        cool_gpu = of_row(judge(gpu=DeviceConditions(temperature_start_c=30.0)), "cooldown")
        assert (cool_gpu.status, cool_gpu.measured) == (GateStatus.PASS, 41.0)

    @pytest.mark.parametrize("guarded", [False, True])
    def test_no_sensor_is_a_skip_with_its_reason(self, judge: Judge, guarded: bool) -> None:
        policy = GuardPolicy(enabled=True) if guarded else None
        blind = replace(COOL, temperature_start_c=None, block_temperature_max_c=None)
        checks = judge(host=blind, guard_policy=policy)
        found = of_row(checks, "cooldown")
        assert (found.status, found.code, found.measured) == (GateStatus.SKIP, "COOLDOWN_NO_SENSOR", None)
        assert status(checks) is GateStatus.SKIP

    def test_the_hottest_reading_of_a_row_is_no_start(self, judge: Judge) -> None:
        assert of_row(judge(host=replace(COOL, temperature_max_c=99.0)), "cooldown").status is GateStatus.PASS


class TestMemory:
    def test_the_limits_are_the_profiles(self) -> None:
        assert {profile.value: limit for profile, limit in MEMORY_LIMITS.items()} == {
            "safe": 0.50,
            "balanced": 0.80,
            "stress": 0.95,
        }

    @pytest.mark.parametrize("profile", VramProfile)
    def test_the_limit_itself_passes(self, judge: Judge, profile: VramProfile) -> None:
        limit = MEMORY_LIMITS[profile]
        for ratio, expected, code in (
            (limit, GateStatus.PASS, ""),
            (limit + 1e-6, GateStatus.FAIL, "MEMORY_RATIO_EXCEEDED"),
            (1.0, GateStatus.FAIL, "MEMORY_RATIO_EXCEEDED"),
        ):
            found = of_row(judge(host=replace(COOL, memory_used_ratio=ratio), profile=profile), "memory")
            assert (found.status, found.code, found.measured, found.limit) == (expected, code, ratio, limit)

    @pytest.mark.parametrize(
        ("on_gpu", "gpu_ratio", "ram_ratio", "device", "expected"),
        [
            (2 * GIB, 0.9, 0.1, "GPU memory", GateStatus.FAIL),
            (2 * GIB, 0.1, 0.9, "GPU memory", GateStatus.PASS),
            (0, 0.9, 0.1, "RAM", GateStatus.PASS),
            (None, 0.9, 0.1, "RAM", GateStatus.PASS),
            (None, 0.1, 0.9, "RAM", GateStatus.FAIL),
            (2 * GIB, None, 0.1, "RAM", GateStatus.PASS),
            (None, 0.9, None, "GPU memory", GateStatus.FAIL),
        ],
    )
    def test_the_device_that_holds_the_model_is_judged(
        self,
        judge: Judge,
        on_gpu: int | None,
        gpu_ratio: float | None,
        ram_ratio: float | None,
        device: str,
        expected: GateStatus,
    ) -> None:
        gpu = DeviceConditions(memory_total_bytes=80 * GIB, memory_used_ratio=gpu_ratio)
        host = replace(COOL, memory_used_ratio=ram_ratio)
        found = of_row(judge(host=host, gpu=gpu, row={"peak_memory_gpu_bytes": on_gpu}), "memory")
        assert found.status is expected
        assert device in found.evidence
        assert ("80.0 GiB" if device == "GPU memory" else "16.0 GiB") in found.evidence

    def test_no_reading_at_all_is_a_skip(self, judge: Judge) -> None:
        found = of_row(judge(host=replace(COOL, memory_used_ratio=None)), "memory")
        assert (found.status, found.code, found.limit) == (GateStatus.SKIP, "MEMORY_NO_SENSOR", 0.5)

    @pytest.mark.parametrize("gpu", [NOTHING, DeviceConditions(memory_used_ratio=0.1)])
    @pytest.mark.parametrize("runtime", ["ollama", "openai"])
    def test_the_memory_of_a_server_may_be_another_machines(
        self, judge: Judge, summary: SweepSummary, runtime: str, gpu: DeviceConditions
    ) -> None:
        checks = judge(gpu=gpu, matrix=summary.matrix | {"runtime": runtime})
        found = of_row(checks, "memory")
        assert (found.status, found.code, found.measured) == (GateStatus.SKIP, "MEMORY_REMOTE_PROCESS", None)
        assert status(checks) is GateStatus.SKIP

    def test_a_row_that_names_a_remote_process_is_skipped(self, judge: Judge) -> None:
        row = {"peak_memory_rss": None, "unavailable": {"peak_memory_rss": "REMOTE_PROCESS"}}
        assert of_row(judge(row=row), "memory").code == "MEMORY_REMOTE_PROCESS"
        assert of_row(judge(row=row), "memory", "m Q8_0").status is GateStatus.PASS

    @pytest.mark.parametrize("runtime", [None, 7, ["ollama"], {"ollama": 1}])
    def test_a_strange_runtime_in_the_file_does_no_harm(self, judge: Judge, runtime: object) -> None:
        assert of_row(judge(matrix={"runtime": runtime}), "memory").status is GateStatus.PASS


class TestThrottling:
    @pytest.mark.parametrize(
        ("host", "gpu", "expected", "code"),
        [
            (0, None, GateStatus.PASS, ""),
            (1, None, GateStatus.FAIL, "THROTTLED"),
            (0, 3, GateStatus.FAIL, "THROTTLED"),
            (None, 0, GateStatus.PASS, ""),
            (None, None, GateStatus.SKIP, "THROTTLING_NO_SENSOR"),
        ],
    )
    def test_any_event_fails(self, judge: Judge, host: int | None, gpu: int | None, expected: GateStatus, code: str) -> None:
        found = of_row(judge(host=replace(COOL, throttle_events=host), gpu=DeviceConditions(throttle_events=gpu)), "throttling")
        assert (found.status, found.code) == (expected, code)
        assert found.measured == (None if expected is GateStatus.SKIP else (host or 0) + (gpu or 0))

    def test_the_number_is_told(self, judge: Judge) -> None:
        assert "1 throttle event during" in of_row(judge(host=replace(COOL, throttle_events=1)), "throttling").evidence


class TestProfile:
    @pytest.mark.parametrize("measured", VramProfile)
    @pytest.mark.parametrize("judged", VramProfile)
    def test_a_summary_is_judged_under_its_own_profile(self, judge: Judge, measured: VramProfile, judged: VramProfile) -> None:
        checks = judge(profile=judged, vram_profile=measured.value)
        found = of_row(checks, "vram_profile", "summary")
        assert (found.status is GateStatus.PASS) == (measured is judged)
        assert (found.code == "VRAM_PROFILE_MISMATCH") == (measured is not judged)
        assert status(checks) is (GateStatus.PASS if measured is judged else GateStatus.FAIL)


def test_a_row_without_readings_is_skipped_in_all_three(judge: Judge) -> None:
    """Made by an older fewbits, or a row without trials."""
    checks = judge(row={"conditions": None})
    codes = [check.code for check in checks if check.subject == "m F16"]
    assert codes == ["COOLDOWN_NOT_MEASURED", "MEMORY_NOT_MEASURED", "THROTTLING_NOT_MEASURED"]
    assert {check.status for check in checks if check.subject == "m Q8_0"} == {GateStatus.PASS}
    assert status(checks) is GateStatus.SKIP


def test_a_summary_without_rows_passes_nothing_about_them(summary: SweepSummary) -> None:
    checks = check_guards(replace(summary, sessions=()), cooldown_target_c=50, profile=VramProfile.SAFE)
    assert [check.name for check in checks] == ["vram_profile", "rows"]
    assert status(checks) is GateStatus.SKIP


def sample(events: int | None, gpu: bool | None = None) -> EnvironmentSample:
    names = ("cpu_busy", "cpu_steal", "own_cpu", "cpu_pressure", "memory_pressure", "io_pressure")
    counters: dict[str, Any] = dict.fromkeys((f"{name}_seconds" for name in names), 0.0)
    rest: dict[str, Any] = dict.fromkeys(("load_1m", "cpu_mhz", "temperature_c", "memory_available_bytes"))
    return EnvironmentSample(monotonic_seconds=0.0, throttle_events=events, gpu_throttled=gpu, **counters, **rest)


@pytest.mark.parametrize(
    ("before", "after", "gpu", "events", "reason"),
    [
        (5, 5, None, 0, None),
        (5, 8, None, 3, None),
        (5, 8, True, 4, None),
        (5, 5, False, 0, None),
        (None, None, True, 1, None),
        (None, None, False, 0, None),
        (None, None, None, None, "NO_SENSOR"),
        (None, 3, None, None, "NO_SENSOR"),
        (8, 5, None, None, "CLOCKS_DISAGREE"),
    ],
)
def test_throttle_events_of_one_trial(
    before: int | None, after: int | None, gpu: bool | None, events: int | None, reason: str | None
) -> None:
    delta = environment_delta(sample(before, gpu=True), sample(after, gpu), 2)
    assert delta.throttle_events == events
    assert delta.unavailable.get("throttle_events") == reason
