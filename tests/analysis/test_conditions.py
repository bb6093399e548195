"""What the machine went through during a row's trials, from samples that may be there only in part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.conditions import judge_conditions
from fewbits.analysis.trial_table import build_table
from fewbits.records.base import PollutionReason
from fewbits.records.plan import Plan
from fewbits.records.summary import DeviceConditions, RowConditions, SweepSummary
from fewbits.records.trial import DeltaView, EnvironmentView, SampleView, TrialView
from fewbits.records.variant import ModelKind, ModelSource

Make = Callable[..., TrialView]
MakePlan = Callable[..., Plan]
GIB = 1024**3
FOREIGN = (PollutionReason.FOREIGN_CPU_LOAD,)
SENSORS = ("temperature_c", "memory_available_bytes", "memory_total_bytes", "gpu_temperature_c")


def environment(
    before: float | None = None, after: float | None = None, *, events: int | None = None, **sample: Any
) -> EnvironmentView:
    """Samples with these CPU temperatures, and whatever else both share."""
    return EnvironmentView(
        before=SampleView(temperature_c=before, **sample),
        during=DeltaView(throttle_events=events),
        after=SampleView(temperature_c=after, **sample),
    )


@pytest.fixture
def judge(make_plan: MakePlan) -> Callable[..., dict[str, RowConditions]]:
    def by_quant(trials: list[TrialView], quants: tuple[str, ...] = ("F16", "Q8_0")) -> dict[str, RowConditions]:
        plan = make_plan(quants, tuple(sorted({trial.task_id for trial in trials})), runs=9)
        return {tag: found for (_, tag), found in judge_conditions(build_table(plan, trials)).items()}

    return by_quant


Judge = Callable[..., dict[str, RowConditions]]


class TestTemperature:
    def test_start_end_and_hottest(self, trial: Make, judge: Judge) -> None:
        warming = [(40.0, 55.0), (54.0, 71.0), (65.0, 62.0)]
        rows = [
            trial("F16", f"t{n}", index=n, block=n, environment=environment(before, after))
            for n, (before, after) in enumerate(warming)
        ]
        host = judge(rows[::-1])["F16"].host
        assert (host.temperature_start_c, host.temperature_end_c, host.temperature_max_c) == (40.0, 62.0, 71.0)
        assert host.block_temperature_max_c == 65.0
        assert "temperature_start_c" not in host.unavailable

    def test_a_block_starts_with_its_first_trial_whoever_runs_it(self, trial: Make, judge: Judge) -> None:
        rows = [
            trial("F16", "t0", index=0, block=0, environment=environment(40.0, 60.0)),
            trial("Q8_0", "t0", index=1, block=0, environment=environment(60.0, 70.0)),
            trial("Q8_0", "t1", index=2, block=1, environment=environment(45.0, 72.0)),
            trial("F16", "t1", index=3, block=1, environment=environment(72.0, 74.0)),
        ]
        found = judge(rows)
        for tag in ("F16", "Q8_0"):
            host = found[tag].host
            assert (host.temperature_start_c, host.block_temperature_max_c) == (40.0, 45.0)
        assert found["F16"].host.temperature_max_c == 74.0
        assert found["Q8_0"].host.temperature_max_c == 72.0

    def test_blocks_that_a_row_took_no_part_in_do_not_count(self, trial: Make, judge: Judge) -> None:
        rows = [
            trial("F16", "t0", index=0, block=0, environment=environment(40.0, 41.0)),
            trial("F16", "t1", index=1, block=1, environment=environment(80.0, 81.0)),
            trial("Q8_0", "t0", index=2, block=0, environment=environment(41.0, 42.0)),
        ]
        assert judge(rows)["Q8_0"].host.block_temperature_max_c == 40.0
        assert judge(rows)["F16"].host.block_temperature_max_c == 80.0

    def test_a_block_of_another_model_is_another_block(self, trial: Make, make_plan: MakePlan) -> None:
        plan = make_plan(("F16",), ("t0",))
        sources = tuple(ModelSource(model_id=model, kind=ModelKind.GGUF) for model in ("m", "n"))
        rows = [
            trial("F16", "t0", model_id=model, environment=environment(hot, hot)) for model, hot in (("m", 40.0), ("n", 70.0))
        ]
        found = judge_conditions(build_table(msgspec.structs.replace(plan, models=sources), rows))
        assert {key: row.host.temperature_start_c for key, row in found.items()} == {("m", "F16"): 40.0, ("n", "F16"): 70.0}

    def test_what_was_run_again_at_the_end_of_a_block_does_not_start_it(self, trial: Make, judge: Judge) -> None:
        rows = [
            trial("F16", "t0", index=0, attempt=1, environment=environment(40.0, 60.0), run_quality_reasons=FOREIGN),
            trial("Q8_0", "t0", index=1, attempt=1, environment=environment(60.0, 70.0)),
            trial("F16", "t0", index=0, attempt=2, environment=environment(70.0, 75.0)),
        ]
        found = judge(rows)
        for tag in ("F16", "Q8_0"):
            assert found[tag].host.block_temperature_max_c == 40.0
            assert found[tag].host.temperature_start_c == 40.0
        # the row's own readings are those of the attempt that counts
        assert found["F16"].host.temperature_max_c == found["F16"].host.temperature_end_c == 75.0

    def test_the_last_trial_is_the_last_one_run(self, trial: Make, judge: Judge) -> None:
        rows = [
            trial("F16", "t0", index=0, attempt=1, environment=environment(40.0, 41.0), run_quality_reasons=FOREIGN),
            trial("F16", "t1", index=1, attempt=1, environment=environment(41.0, 42.0)),
            trial("F16", "t0", index=0, attempt=2, environment=environment(42.0, 43.0)),
        ]
        assert judge(rows)["F16"].host.temperature_end_c == 43.0

    def test_repeats_for_determinism_start_no_block(self, trial: Make, judge: Judge) -> None:
        rows = [
            trial("F16", "t0", environment=environment(40.0, 41.0)),
            trial("F16", "t0", phase="determinism", repetition=9, index=-1, environment=environment(90.0, 90.0)),
        ]
        assert judge(rows)["F16"].host.block_temperature_max_c == 40.0

    def test_the_cpu_and_the_gpu_are_told_apart(self, trial: Make, judge: Judge) -> None:
        row = trial("F16", "t0", environment=environment(40.0, 42.0, gpu_temperature_c=66.0))
        found = judge([row])["F16"]
        assert (found.host.temperature_start_c, found.gpu.temperature_start_c) == (40.0, 66.0)


class TestMemory:
    def test_the_largest_share_before_or_after_any_trial(self, trial: Make, judge: Judge) -> None:
        def sample(available: int) -> SampleView:
            return SampleView(memory_total_bytes=16 * GIB, memory_available_bytes=available * GIB)

        rows = [
            trial("F16", "t0", environment=EnvironmentView(before=sample(12), after=sample(8))),
            trial("F16", "t1", environment=EnvironmentView(before=sample(4), after=sample(12))),
        ]
        host = judge(rows)["F16"].host
        assert (host.memory_total_bytes, host.memory_used_ratio) == (16 * GIB, 0.75)

    def test_the_gpus_memory(self, trial: Make, judge: Judge) -> None:
        row = trial("F16", "t0", environment=environment(gpu_memory_total_bytes=80 * GIB, gpu_memory_used_bytes=20 * GIB))
        found = judge([row])["F16"]
        assert (found.gpu.memory_total_bytes, found.gpu.memory_used_ratio) == (80 * GIB, 0.25)
        assert found.host.memory_used_ratio is None
        assert found.host.unavailable["memory_used_ratio"] == "NO_SENSOR"

    @pytest.mark.parametrize(
        "sample",
        [
            {"memory_total_bytes": 16 * GIB},
            {"memory_available_bytes": 8 * GIB},
            {"memory_total_bytes": 0, "memory_available_bytes": 8 * GIB},
        ],
    )
    def test_half_a_reading_is_none(self, trial: Make, judge: Judge, sample: dict[str, int]) -> None:
        assert judge([trial("F16", "t0", environment=environment(**sample))])["F16"].host.memory_used_ratio is None

    def test_more_available_than_there_is_gives_zero(self, trial: Make, judge: Judge) -> None:
        row = trial("F16", "t0", environment=environment(memory_total_bytes=GIB, memory_available_bytes=2 * GIB))
        assert judge([row])["F16"].host.memory_used_ratio == 0.0


class TestThrottling:
    def test_events_of_a_rows_trials_add_up(self, trial: Make, judge: Judge) -> None:
        rows = [trial(tag, f"t{n}", environment=environment(events=n)) for tag in ("F16", "Q8_0") for n in range(4)]
        assert judge(rows)["F16"].host.throttle_events == 6

    def test_none_seen_is_zero_and_none_known_is_null(self, trial: Make, judge: Judge) -> None:
        assert judge([trial("F16", "t0", environment=environment(events=0))])["F16"].host.throttle_events == 0
        host = judge([trial("F16", "t0", environment=environment(events=None))])["F16"].host
        assert host.throttle_events is None
        assert host.unavailable["throttle_events"] == "NO_SENSOR"

    def test_trials_that_do_not_tell_are_left_out(self, trial: Make, judge: Judge) -> None:
        rows = [trial("F16", "t0", environment=environment(events=None)), trial("F16", "t1", environment=environment(events=2))]
        assert judge(rows)["F16"].host.throttle_events == 2


class TestPartlyMissing:
    def test_trials_without_any_environment(self, trial: Make, judge: Judge) -> None:
        host = judge([trial("F16", "t0")])["F16"].host
        values = {name: getattr(host, name) for name in DeviceConditions.__struct_fields__ if name != "unavailable"}
        assert set(values.values()) == {None}
        assert host.unavailable.keys() == values.keys()

    def test_a_first_trial_without_a_reading_leaves_the_blocks_start_unknown(self, trial: Make, judge: Judge) -> None:
        rows = [
            trial("F16", "t0", index=0, block=0, environment=environment(None, 50.0)),
            trial("Q8_0", "t0", index=1, block=0, environment=environment(50.0, 51.0)),
            trial("F16", "t1", index=2, block=1, environment=environment(44.0, 45.0)),
        ]
        host = judge(rows)["F16"].host
        assert host.temperature_start_c is None
        assert host.unavailable["temperature_start_c"] == "NO_SENSOR"
        assert (host.block_temperature_max_c, host.temperature_max_c) == (44.0, 50.0)

    @pytest.mark.parametrize("count", range(len(SENSORS) + 1))
    def test_every_null_has_a_reason_and_every_number_none(self, trial: Make, judge: Judge, count: int) -> None:
        values = {"temperature_c": 41.0, "memory_available_bytes": GIB, "memory_total_bytes": 4 * GIB, "gpu_temperature_c": 50.0}
        for present in itertools.combinations(SENSORS, count):
            sample = SampleView(**{name: values[name] for name in present})  # type: ignore[arg-type]
            found = judge([trial("F16", "t0", environment=EnvironmentView(before=sample, after=sample))])["F16"]
            for device in (found.host, found.gpu):
                for name in set(DeviceConditions.__struct_fields__) - {"unavailable"}:
                    assert (getattr(device, name) is None) == (name in device.unavailable), (present, name)

    @given(order=st.permutations(range(6)))
    def test_the_order_of_the_journals_rows_does_not_matter(self, order: list[int], trial: Make, make_plan: MakePlan) -> None:
        rows = [
            trial(
                tag,
                f"t{block}",
                index=2 * block + place,
                block=block,
                environment=environment(40.0 + 7 * block - place, 50.0 + block, events=block),
            )
            for block in range(3)
            for place, tag in enumerate(("F16", "Q8_0"))
        ]
        plan = make_plan(("F16", "Q8_0"), ("t0", "t1", "t2"))
        whole = judge_conditions(build_table(plan, rows))
        assert judge_conditions(build_table(plan, [rows[place] for place in order])) == whole


def test_a_summary_carries_them(trial: Make, make_plan: MakePlan, make_summary: Callable[..., SweepSummary]) -> None:
    rows = [trial("F16", "t0", environment=environment(41.0, 47.0, events=0))]
    summary = make_summary(make_plan(("F16", "Q8_0"), ("t0",)), rows)
    rows_by_tag = {row.quant_tag: row for row in summary.sessions[0].per_quant}
    conditions = rows_by_tag["F16"].conditions
    assert conditions is not None
    assert conditions.host.temperature_end_c == 47.0
    assert "conditions" not in rows_by_tag["F16"].unavailable
    assert rows_by_tag["Q8_0"].conditions is None
    assert rows_by_tag["Q8_0"].unavailable["conditions"] == "NO_TRIALS"
