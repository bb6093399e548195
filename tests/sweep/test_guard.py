"""The live guard: it waits, refuses and stops between trials, and what was measured stays; switched off it is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.api import PreparedSweep, prepare_sweep, run_sweep, verify_run
from fewbits.cli.main import main
from fewbits.core.errors import ExitCode, GuardStopError, SpecError
from fewbits.probes.environment import EnvironmentProbe
from fewbits.records.plan import Plan
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import EnvironmentSample, RawReply, Trial
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.scripted.runtime import ScriptedRuntime, ScriptedSession
from fewbits.sweep.guard import Guard
from fewbits.sweep.plan import planned_trials
from fewbits.sweep.pool import ModelPool
from fewbits.sweep.progress import SilentObserver

GIB = 1024**3
QUANTS = ("Q8_0", "Q4_0", "Q2_K")
TASKS = ("alpha", "beta")
REPLY = {
    "text": "1",
    "prompt_tokens": 3,
    "output_tokens": 1,
    "prompt_ms": 5,
    "predicted_ms": 10,
    "wall_seconds": 0.016,
    "first_output_seconds": 0.006,
}
CALM = EnvironmentSample(
    monotonic_seconds=0.0,
    cpu_busy_seconds=0.0,
    cpu_steal_seconds=0.0,
    own_cpu_seconds=0.0,
    cpu_pressure_seconds=0.0,
    memory_pressure_seconds=0.0,
    io_pressure_seconds=0.0,
    load_1m=0.0,
    throttle_events=0,
    cpu_mhz=3000.0,
    temperature_c=40.0,
    memory_available_bytes=12 * GIB,
    memory_total_bytes=16 * GIB,
)
SMOLLM2: dict[str, int | str] = {"n_layers": 30, "n_embd": 576, "n_head": 9, "n_head_kv": 3}
replace = msgspec.structs.replace
Prepare = Callable[..., PreparedSweep]


@pytest.fixture
def flags(tmp_path: Path) -> Callable[..., dict[str, object]]:
    """A scripted sweep: two tasks, each a block of its own, three variants, one run of each."""

    def with_script(variant_bytes: int | None = None, **changes: object) -> dict[str, object]:
        checks = [{"kind": "exact", "accepted": ["1"]}]
        tasks = [{"id": name, "bucket": "logic", "tier": 1, "prompt": f"Say {name}.", "checks": checks} for name in TASKS]
        (tmp_path / "bank.json").write_text(json.dumps({"name": "tiny", "version": "1", "tasks": tasks}))
        sizes = {tag: {"bytes": variant_bytes} for tag in QUANTS}
        script = {"schema_version": "fewbits.script.v1", "default": REPLY, "variants": sizes}
        (tmp_path / "script.json").write_text(json.dumps(script))
        return {
            "models": ["tiny"],
            "quants": list(QUANTS),
            "runtime": "scripted",
            "script": str(tmp_path / "script.json"),
            "task_bank": str(tmp_path / "bank.json"),
            "canary_runs": "0",
            "determinism_tasks": "0",
            "selection_policy": "threshold-v1",
            "rerun_budget_ratio": "0",
            "baselines": False,
            "out_dir": str(tmp_path / "out"),
        } | changes

    return with_script


@pytest.fixture
def prepare(flags: Callable[..., dict[str, object]]) -> Prepare:
    return lambda variant_bytes=None, **changes: prepare_sweep(flags(variant_bytes, **changes), None)


@pytest.fixture
def plan(prepare: Prepare) -> Plan:
    return prepare(guard=True, cooldown_timeout_seconds="30").plan


class World:
    """A machine whose samples are told, with clocks that only sleeping moves."""

    def __init__(self, plan: Plan, *samples: EnvironmentSample) -> None:
        self.samples = list(samples) or [CALM]
        self.notices: list[str] = []
        self.slept: list[float] = []
        self.guard = Guard(plan, self.sample, self.notices.append, self.slept.append)

    def sample(self) -> EnvironmentSample:
        return self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]


def degrees(cpu: float | None, gpu: float | None = None) -> EnvironmentSample:
    return replace(CALM, temperature_c=cpu, gpu_temperature_c=gpu)


def in_use(used_gib: float, **changes: Any) -> EnvironmentSample:
    return replace(CALM, memory_available_bytes=int((16 - used_gib) * GIB), **changes)


def variant(gib: float | None, tag: str = "Q8_0", parameters: dict[str, int | str] | None = None) -> Variant:
    size = None if gib is None else int(gib * GIB)
    artifact = Artifact(
        model_id="m", scheme=tag, sha256=None, bytes=size, weights=None, bits_per_weight=None, parameters=parameters or {}
    )
    return Variant(artifact, None)


class TestCooldown:
    def test_a_cool_machine_is_not_held_up(self, plan: Plan) -> None:
        world = World(plan, degrees(50.0))
        world.guard.before_block(0)
        assert (world.slept, world.notices) == ([], [])

    def test_it_waits_until_the_target_is_reached_and_says_so_once(self, plan: Plan) -> None:
        world = World(plan, degrees(71.0), degrees(64.0), degrees(50.1), degrees(50.0), degrees(99.0))
        world.guard.before_block(3)
        assert world.slept == [1.0] * 3
        assert world.notices == ["guard: 71.0 °C before block 3, waiting for 50 °C"]

    def test_every_block_waits_anew(self, plan: Plan) -> None:
        world = World(plan, degrees(60.0), degrees(40.0), degrees(60.0), degrees(40.0))
        world.guard.before_block(0)
        world.guard.before_block(1)
        assert len(world.slept) == len(world.notices) == 2

    @pytest.mark.parametrize(("cpu", "gpu"), [(40.0, 80.0), (80.0, 40.0), (None, 80.0)])
    def test_the_hottest_sensor_counts(self, plan: Plan, cpu: float | None, gpu: float | None) -> None:
        world = World(plan, degrees(cpu, gpu), degrees(40.0))
        world.guard.before_block(0)
        assert world.notices == ["guard: 80.0 °C before block 0, waiting for 50 °C"]

    def test_the_timeout_ends_the_sweep_with_exit_code_2(self, plan: Plan) -> None:
        world = World(plan, degrees(77.25))
        with pytest.raises(GuardStopError) as caught:
            world.guard.before_block(4)
        assert sum(world.slept) == 30.0
        assert caught.value.exit_code is ExitCode.FAILED_CHECK
        assert "waited 30.0 s before block 4" in str(caught.value)
        assert "77.2 °C (target 50 °C)" in str(caught.value)
        assert "the same command goes on" in str(caught.value)
        assert len(world.notices) == 1

    def test_it_cools_down_at_the_last_moment(self, plan: Plan) -> None:
        world = World(plan, *[degrees(51.0)] * 30, degrees(50.0))
        world.guard.before_block(0)
        assert len(world.slept) == 30

    def test_no_sensor_is_told_once_and_goes_on(self, plan: Plan) -> None:
        world = World(plan, degrees(None))
        for block in range(5):
            world.guard.before_block(block)
        assert world.notices == ["guard: this machine shows no temperature, so cooldown is not enforced"]
        assert world.slept == []

    def test_the_target_is_the_policys(self, prepare: Prepare) -> None:
        world = World(prepare(guard=True, cooldown_target_c="65").plan, degrees(64.9), degrees(1.0))
        world.guard.before_block(0)
        assert world.slept == []


class TestLoads:
    """16 GiB in all; the safe profile allows 8 of them."""

    @pytest.mark.parametrize(
        ("used", "weights", "fits"), [(4.0, 4.0, True), (4.0, 4.01, False), (0.0, 8.0, True), (7.9, 0.2, False)]
    )
    def test_what_is_in_use_and_the_weights_together(self, plan: Plan, used: float, weights: float, fits: bool) -> None:
        assert (World(plan, in_use(used)).guard.refuses(variant(weights), ()) == "") is fits

    @pytest.mark.parametrize(("profile", "largest"), [("safe", 8.0), ("balanced", 12.8), ("stress", 15.2)])
    def test_the_limit_is_the_profiles(self, prepare: Prepare, profile: str, largest: float) -> None:
        world = World(prepare(guard=True, vram_profile=profile).plan, in_use(0.0))
        assert world.guard.refuses(variant(largest), ()) == ""
        assert profile in world.guard.refuses(variant(largest + 0.01), ())

    def test_the_cache_counts(self, prepare: Prepare) -> None:
        # 30 layers x 131072 tokens x 3 heads x 128 x 2 bytes are 2.8125 GiB
        world = World(prepare(guard=True, context_size="131072").plan, in_use(4.0))
        assert world.guard.refuses(variant(1.18, parameters=SMOLLM2), ()) == ""
        refusal = world.guard.refuses(variant(1.2, parameters=SMOLLM2), ())
        assert refusal.startswith("Q8_0 of m needs 1.2 GiB of weights and 2.8 GiB of KV cache at 131072 tokens:")
        assert "50.1 % of 16.0 GiB" in refusal or "50 % of 16.0 GiB" in refusal
        assert refusal.endswith("the safe profile allows 50 %")

    def test_open_models_count_with_their_weights_although_those_are_only_mapped(self, plan: Plan) -> None:
        world = World(plan, in_use(1.0))
        assert world.guard.refuses(variant(3.0), ()) == ""
        assert world.guard.refuses(variant(3.0), (variant(4.0, "Q4_0"),)) == ""
        assert world.guard.refuses(variant(3.0), (variant(4.1, "Q4_0"),)) != ""

    def test_the_caches_of_open_models_are_not_counted_twice(self, prepare: Prepare) -> None:
        # the open model's cache of 2.8125 GiB is part of the 4 GiB in use
        world = World(prepare(guard=True, context_size="131072").plan, in_use(4.0))
        opened = (variant(1.0, "Q4_0", SMOLLM2),)
        assert world.guard.refuses(variant(2.9), opened) == ""
        assert world.guard.refuses(variant(3.1), opened) != ""

    @pytest.mark.parametrize(
        ("sample", "gib"),
        [
            (replace(CALM, memory_total_bytes=None), 99.0),
            (replace(CALM, memory_total_bytes=0), 99.0),
            (replace(CALM, memory_available_bytes=None), 99.0),
            (CALM, None),
        ],
    )
    def test_where_nobody_can_tell_nothing_is_refused(self, plan: Plan, sample: EnvironmentSample, gib: float | None) -> None:
        assert World(plan, sample).guard.refuses(variant(gib), ()) == ""

    @pytest.mark.parametrize(("used", "stops"), [(40, False), (41, True)])
    def test_the_gpu_is_looked_at_after_the_load(self, plan: Plan, used: int, stops: bool) -> None:
        world = World(plan, replace(CALM, gpu_memory_used_bytes=used * GIB, gpu_memory_total_bytes=80 * GIB))
        if not stops:
            world.guard.after_load(variant(1.0))
            return
        with pytest.raises(
            GuardStopError, match=r"with Q8_0 of m loaded, 51 % of the GPU's memory.*the safe profile allows 50 %"
        ):
            world.guard.after_load(variant(1.0))

    @pytest.mark.parametrize("seen", [{}, {"gpu_memory_used_bytes": GIB}, {"gpu_memory_total_bytes": GIB}])
    def test_without_a_gpu_there_is_nothing_to_look_at(self, plan: Plan, seen: dict[str, int]) -> None:
        sample = replace(CALM, **seen)
        World(plan, sample).guard.after_load(variant(1.0))
        assert sample.gpu_memory_used_bytes is None or sample.gpu_memory_total_bytes is None


class TestPool:
    """What the pool does with a refusal, on scripted sessions."""

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of what was opened (`+Q8_0`) and closed (`-Q8_0`)."""
        events: list[str] = []
        open_session = ScriptedRuntime.open

        def counting(self: ScriptedRuntime, variant: Any, *rest: Any) -> Any:
            session = open_session(self, variant, *rest)
            close = session.close
            events.append(f"+{variant.artifact.scheme}")

            def closing() -> None:
                events.append(f"-{variant.artifact.scheme}")
                close()

            session.close = closing  # type: ignore[method-assign]
            return session

        monkeypatch.setattr(ScriptedRuntime, "open", counting)
        return events

    def pool(self, prepared: PreparedSweep, guard: Any) -> ModelPool:
        runtime = prepared.runtime
        assert isinstance(runtime, ScriptedRuntime)
        return ModelPool(
            runtime,
            variants={("tiny", tag): Variant(runtime.artifact_for("tiny", tag), None) for tag in QUANTS},
            controls=prepared.plan.controls,
            load_timeout_seconds=1,
            request_timeout_seconds=1,
            available_bytes=lambda: None,
            on_change=lambda pids: None,
            guard=guard,
        )

    def test_the_oldest_open_model_makes_room_first(self, prepare: Prepare, opened: list[str]) -> None:
        prepared = prepare(3 * GIB, guard=True)
        pool = self.pool(prepared, World(prepared.plan, in_use(1.0)).guard)
        for tag in ("Q8_0", "Q4_0", "Q8_0", "Q2_K"):
            pool.get(("tiny", tag))
        # 1 + 3 + 3 GiB fit into 8, one more does not; Q8_0 was used again, so Q4_0 is the oldest
        assert opened == ["+Q8_0", "+Q4_0", "-Q4_0", "+Q2_K"]
        pool.close()

    def test_it_closes_as_many_as_it_takes_and_then_refuses_with_the_numbers(self, prepare: Prepare, opened: list[str]) -> None:
        prepared = prepare(3 * GIB, guard=True)
        world = World(prepared.plan, in_use(1.0))
        pool = self.pool(prepared, world.guard)
        pool.get(("tiny", "Q8_0"))
        pool.get(("tiny", "Q4_0"))
        world.samples = [in_use(6.0)]
        with pytest.raises(GuardStopError) as caught:
            pool.get(("tiny", "Q2_K"))
        assert opened == ["+Q8_0", "+Q4_0", "-Q8_0", "-Q4_0"]
        assert "Q2_K of tiny needs 3.0 GiB of weights" in str(caught.value)
        assert "56 % of 16.0 GiB" in str(caught.value)
        assert "--vram-profile" in str(caught.value)

    def test_a_model_that_fills_the_gpu_is_closed_with_the_pool(self, prepare: Prepare, opened: list[str]) -> None:
        prepared = prepare(GIB, guard=True)
        full = replace(CALM, gpu_memory_used_bytes=79 * GIB, gpu_memory_total_bytes=80 * GIB)
        pool = self.pool(prepared, World(prepared.plan, full).guard)
        with pytest.raises(GuardStopError, match="GPU's memory"):
            pool.get(("tiny", "Q8_0"))
        pool.close()
        assert opened == ["+Q8_0", "-Q8_0"]


class Machine:
    """Stands in for the probe's readings and for waiting, in a whole sweep."""

    def __init__(self) -> None:
        self.now = CALM
        self.samples = self.asked = self.events = 0
        self.throttles_in: int | None = None
        """Number of the task's request, from 1, during which it throttles once."""
        self.cools = False
        """Whether waiting helps."""
        self.slept: list[float] = []

    def sample(self) -> EnvironmentSample:
        self.samples += 1
        return replace(self.now, monotonic_seconds=self.samples / 100, throttle_events=self.events)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.cools:
            self.now = CALM

    def work(self, prompt: str) -> None:
        self.asked += "hello" not in prompt  # the warm-up's
        if self.asked == self.throttles_in:
            self.events += 1
            self.throttles_in = None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    generate = ScriptedSession.generate

    def working(session: ScriptedSession, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        made.work(request.prompt)
        return generate(session, request, timeout_seconds)

    monkeypatch.setattr(EnvironmentProbe, "sample", lambda probe: made.sample())
    monkeypatch.setattr(Guard.__init__, "__defaults__", (made.sleep,))  # how the sweep's guard waits
    monkeypatch.setattr(ScriptedSession, "generate", working)
    return made


def rows_of(prepared: PreparedSweep) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prepared.directory.trials_path.read_bytes().splitlines()]


def cells(prepared: PreparedSweep) -> list[tuple[str, str, str, int]]:
    return [(row["model_id"], row["quant_tag"], row["task_id"], row["repetition"]) for row in rows_of(prepared)]


class Listener(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.trials: list[Trial] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def trial_ended(self, trial: Trial) -> None:
        self.trials.append(trial)


class TestSweep:
    def test_a_sweep_that_throttles_stops_cleanly_and_goes_on_later(self, prepare: Prepare, machine: Machine) -> None:
        prepared = prepare(guard=True, block_tasks="1")
        machine.throttles_in = 4
        with pytest.raises(GuardStopError, match=r"throttled during .* · beta \(1 event; 0 tolerated\)"):
            run_sweep(prepared, SilentObserver())
        rows = rows_of(prepared)
        assert [row["environment"]["during"]["throttle_events"] for row in rows] == [0, 0, 0, 1]
        assert rows[-1]["run_quality_reasons"] == ["THERMAL_THROTTLING"]
        assert not prepared.directory.summary_path.exists()
        kept = prepared.directory.trials_path.read_bytes()

        again = prepare(guard=True, block_tasks="1")
        summary = run_sweep(again, SilentObserver())
        assert prepared.directory.trials_path.read_bytes().startswith(kept)
        assert sorted(cells(again)) == sorted(cell.key for cell in planned_trials(again.plan))
        assert summary.complete
        assert summary.guard_policy is not None
        assert summary.guard_policy.enabled
        conditions = [row.conditions for row in summary.sessions[0].per_quant]
        assert sorted(seen.host.throttle_events or 0 for seen in conditions if seen is not None) == [0, 0, 1]
        assert verify_run(again.directory)[0]

    def test_as_many_events_as_are_tolerated(self, prepare: Prepare, machine: Machine) -> None:
        machine.throttles_in = 2
        prepared = prepare(guard=True, max_throttle_events="1")
        assert run_sweep(prepared, SilentObserver()).complete
        assert sum(row["environment"]["during"]["throttle_events"] for row in rows_of(prepared)) == 1

    def test_a_throttled_trial_is_run_again_after_the_stop(self, prepare: Prepare, machine: Machine) -> None:
        changes: dict[str, object] = {"guard": True, "block_tasks": "2", "rerun_budget_ratio": "0.5"}
        machine.throttles_in = 3
        with pytest.raises(GuardStopError):
            run_sweep(prepare(**changes), SilentObserver())
        prepared = prepare(**changes)
        summary = run_sweep(prepared, SilentObserver())
        assert sorted(row["attempt"] for row in rows_of(prepared)) == [1] * 6 + [2]
        assert {row.polluted_run_rate for row in summary.sessions[0].per_quant} == {0.0}

    def test_a_hot_machine_waits_before_every_block_and_only_there(self, prepare: Prepare, machine: Machine) -> None:
        machine.cools, machine.now = True, replace(CALM, temperature_c=70.0)

        class Heating(Listener):
            def trial_ended(self, trial: Trial) -> None:
                super().trial_ended(trial)
                machine.now = replace(CALM, temperature_c=70.0)

        heating = Heating()
        summary = run_sweep(prepare(guard=True, block_tasks="1"), heating)
        assert machine.slept == [1.0, 1.0]
        assert heating.notices == [f"guard: 70.0 °C before block {block}, waiting for 50 °C" for block in (0, 1)]
        places = [(trial.block, trial.environment.before.temperature_c) for trial in heating.trials if trial.environment]
        assert places == [(0, 40.0), (0, 70.0), (0, 70.0), (1, 40.0), (1, 70.0), (1, 70.0)]
        seen = [row.conditions.host for row in summary.sessions[0].per_quant if row.conditions is not None]
        assert [host.block_temperature_max_c for host in seen] == [40.0] * 3
        assert max(host.temperature_max_c or 0.0 for host in seen) == 70.0

    def test_a_machine_that_stays_hot_ends_the_command_with_2_and_the_same_command_goes_on(
        self, flags: Callable[..., dict[str, object]], machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = flags()
        words = ["--model-id", "tiny", "--quant-tags", ",".join(QUANTS), "--runtime", "scripted", "--canary-runs", "0"]
        words += ["--script", str(made["script"]), "--task-bank", str(made["task_bank"]), "--out-dir", str(made["out_dir"])]
        words += ["--no-baselines", "--selection-policy", "threshold-v1", "--rerun-budget-ratio", "0", "--determinism-tasks", "0"]
        words += ["--guard", "--cooldown-timeout-seconds", "5"]
        machine.now = replace(CALM, temperature_c=80.0)
        assert main(["sweep", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("waiting for 50 °C") == 1
        assert "fewbits sweep: the guard waited 5.00 s before block 0" in said
        assert machine.slept == [1.0] * 5
        machine.now = CALM
        assert main(["sweep", *words]) == 0
        assert machine.slept == [1.0] * 5

    def test_a_model_that_does_not_fit_runs_nothing(self, prepare: Prepare, machine: Machine) -> None:
        prepared = prepare(9 * GIB, guard=True)
        with pytest.raises(GuardStopError, match=r"needs 9\.0 GiB of weights .* 81 % of 16\.0 GiB"):
            run_sweep(prepared, SilentObserver())
        assert machine.asked == 0

    def test_the_canary_waits_too(self, prepare: Prepare, machine: Machine) -> None:
        machine.now = replace(CALM, temperature_c=80.0)
        prepared = prepare(guard=True, canary_runs="4", cooldown_timeout_seconds="3")
        with pytest.raises(GuardStopError, match="before block 0"):
            run_sweep(prepared, SilentObserver())
        assert machine.slept == [1.0] * 3
        assert machine.asked == 0

    def test_a_finished_run_is_not_held_up(self, prepare: Prepare, machine: Machine) -> None:
        run_sweep(prepare(guard=True), SilentObserver())
        machine.now = replace(CALM, temperature_c=80.0, memory_available_bytes=0)
        assert run_sweep(prepare(guard=True), SilentObserver()).complete
        assert machine.slept == []


class TestOff:
    def test_nothing_is_asked_refused_or_stopped(self, prepare: Prepare) -> None:
        plan = prepare().plan

        def never() -> EnvironmentSample:
            raise AssertionError("the guard is off and looks at the machine")

        heard: list[str] = []
        guard = Guard(plan, never, heard.append, lambda seconds: heard.append("waited"))
        guard.before_block(0)
        assert guard.refuses(variant(10_000.0), ()) == ""
        guard.after_load(variant(10_000.0))
        assert heard == []

    def test_a_hot_throttling_crowded_machine_is_swept_all_the_same(self, prepare: Prepare, machine: Machine) -> None:
        machine.now = replace(CALM, temperature_c=99.0, memory_available_bytes=GIB)
        machine.throttles_in = 3
        listener = Listener()
        prepared = prepare(9 * GIB)
        summary = run_sweep(prepared, listener)
        assert summary.complete
        assert summary.guard_policy is None
        assert (listener.notices, machine.slept) == ([], [])
        assert len(rows_of(prepared)) == 6

    def test_its_settings_alone_are_refused(self, prepare: Prepare) -> None:
        for key, value in (("cooldown_target_c", "60"), ("cooldown_timeout_seconds", "5"), ("max_throttle_events", "1")):
            with pytest.raises(SpecError, match="does nothing without guard"):
                prepare(**{key: value})

    def test_switching_it_on_is_another_plan(self, prepare: Prepare) -> None:
        assert prepare().plan.digest != prepare(guard=True).plan.digest
