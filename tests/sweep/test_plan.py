from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError
from fewbits.records.base import Bucket
from fewbits.records.plan import CanaryPolicy, Controls, Plan, SelectionPolicy, SweepSpec, TaskSelection
from fewbits.records.task import ExactCheck, Task
from fewbits.records.variant import ModelKind, ModelSource
from fewbits.spec import load_spec
from fewbits.sweep.plan import build_plan, dry_run_document, estimate_seconds, planned_trials

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "dry_run_demo.json"


def spec_of(**changes: Any) -> SweepSpec:
    base: dict[str, Any] = {
        "models": ("m",),
        "quants": ("F16", "Q8_0", "Q4_K_M"),
        "task_bank": "b",
        "out_dir": "o",
        "summary_out": "o/s",
    }
    return SweepSpec(**{**base, **changes})


def source(model_id: str = "m", digest: str = "a" * 64, path: str | None = "/x/m.gguf") -> ModelSource:
    return ModelSource(model_id=model_id, kind=ModelKind.GGUF, path=path, digest=digest, bytes=100)


def task(task_id: str, prompt: str = "say a") -> Task:
    bucket = Bucket("structured_output" if task_id.startswith("structured") else task_id.partition("-")[0])
    return Task(id=task_id, bucket=bucket, tier=1, prompt=prompt, checks=(ExactCheck(accepted=("a",)),))


def tasks_of(count: int) -> list[Task]:
    return [task(f"logic-{number:03d}") for number in range(count)]


def plan_of(spec: SweepSpec | None = None, count: int = 7, **changes: Any) -> Plan:
    spec = spec or spec_of()
    arguments: dict[str, Any] = {
        "models": [source(model_id) for model_id in spec.models],
        "tasks": tasks_of(count),
        "bank_digest": "bank",
        "cores": 2,
        "fingerprint": "machine",
        "commit_sha": None,
    }
    return build_plan(spec, **{**arguments, **changes})


SPECS = st.builds(
    lambda models, quants, runs, seed: spec_of(
        models=tuple(f"m{n}" for n in range(models)),
        quants=tuple(f"T{n}" for n in range(quants)),
        runs_per_quant=runs,
        controls=Controls(seed=seed),
    ),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2**31 - 1),
)


@given(spec=SPECS, count=st.integers(1, 17))
def test_every_cell_exactly_once_and_blocks_are_whole(spec: SweepSpec, count: int) -> None:
    plan = plan_of(spec, count)
    trials = planned_trials(plan)
    cells = {
        (model, quant, item.task_id, repetition)
        for model in spec.models
        for quant in spec.quants
        for item in plan.tasks
        for repetition in range(spec.runs_per_quant)
    }
    assert len(trials) == plan.trials_total == len(cells)
    assert {trial.key for trial in trials} == cells
    assert [trial.index for trial in trials] == list(range(len(trials)))
    assert [trial.block for trial in trials] == sorted(trial.block for trial in trials)
    for block in {trial.block for trial in trials}:
        members = [trial for trial in trials if trial.block == block]
        assert len({(trial.model_id, trial.repetition) for trial in members}) == 1
        asked = {quant: [trial.task_id for trial in members if trial.quant_tag == quant] for quant in spec.quants}
        assert len({tuple(ids) for ids in asked.values()}) == 1  # every variant answers the same tasks in the same order
        assert 1 <= len(asked[spec.quants[0]]) <= plan.block_tasks
        switches = sum(left.quant_tag != right.quant_tag for left, right in pairwise(members))
        assert switches == len(spec.quants) - 1  # a variant's tasks of a block are contiguous: one load each


@given(spec=SPECS)
def test_the_order_is_a_function_of_the_seed(spec: SweepSpec) -> None:
    assert planned_trials(plan_of(spec, fingerprint="a")) == planned_trials(plan_of(spec, fingerprint="b", commit_sha="c"))
    listed_otherwise = msgspec.structs.replace(spec, quants=spec.quants[::-1])
    assert planned_trials(plan_of(spec)) == planned_trials(plan_of(listed_otherwise))


def test_variants_take_every_place_in_the_order() -> None:
    trials = planned_trials(plan_of(spec_of(runs_per_quant=60), 5))
    first = Counter(trial.quant_tag for trial in trials if trial.index % (3 * 5) == 0)
    assert set(first) == {"F16", "Q8_0", "Q4_K_M"}
    assert min(first.values()) > 8  # 20 expected of 60; below 9 has a chance of about 1 in 1000 per tag, and the seed is fixed


def test_another_seed_is_another_order() -> None:
    orders = {
        tuple(trial.key for trial in planned_trials(plan_of(spec_of(controls=Controls(seed=seed)), 30))) for seed in range(5)
    }
    assert len(orders) == 5


# --- digest ------------------------------------------------------------------------------------------------------------

CHANGES: dict[str, SweepSpec] = {
    "quants": spec_of(quants=("F16", "Q8_0")),
    "order of quants": spec_of(quants=("Q8_0", "F16", "Q4_K_M")),
    "reference": spec_of(reference_quant="F16"),
    "runs": spec_of(runs_per_quant=2),
    "runtime": spec_of(runtime="scripted"),
    "server": spec_of(base_url="http://x"),
    "label": spec_of(runtime_target="x"),
    "seed": spec_of(controls=Controls(seed=1)),
    "threads": spec_of(controls=Controls(threads=1)),
    "temperature": spec_of(controls=Controls(temperature=0.5)),
    "timeout": spec_of(trial_timeout_seconds=1),
    "canary": spec_of(canary=CanaryPolicy(runs=0)),
    "policy": spec_of(policy=SelectionPolicy(latency_ceiling=1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_covers(change: str) -> None:
    assert plan_of(CHANGES[change]).digest != plan_of().digest


def test_the_digest_covers_models_tasks_and_machine() -> None:
    base = plan_of().digest
    assert plan_of(models=[source(digest="b" * 64)]).digest != base
    assert plan_of(tasks=tasks_of(7)[::-1]).digest != base
    assert plan_of(tasks=[*tasks_of(6), task("logic-006", "say b")]).digest != base
    assert plan_of(count=6).digest != base
    assert plan_of(cores=1).digest != base
    assert plan_of(fingerprint="other").digest != base


def test_the_digest_never_covers_paths_words_or_the_commit() -> None:
    base = plan_of().digest
    for spec in (
        spec_of(out_dir="elsewhere", summary_out="elsewhere.json"),
        spec_of(description="words"),
        spec_of(task_bank="/other/place.json"),
        spec_of(script="/x.json"),
        spec_of(selection=TaskSelection(limit=7)),
        spec_of(controls=Controls(threads=2)),  # what None resolves to here
    ):
        assert plan_of(spec).digest == base
    assert plan_of(models=[source(path="/moved/m.gguf")]).digest == base
    assert plan_of(bank_digest="a task that is not asked has changed", commit_sha="abc").digest == base


def test_the_order_of_keys_in_a_file_means_nothing(tmp_path: Path) -> None:
    settings = ['"models": ["m"]', '"quants": ["F16"]', '"seed": 4', '"task_bank": "humaneval"', '"tiers": [1]']
    digests = set()
    for name, lines in (("a.json", settings), ("b.json", settings[::-1])):
        (tmp_path / name).write_text("{" + ",".join(lines) + "}")
        digests.add(plan_of(load_spec({}, tmp_path / name)).digest)
    assert len(digests) == 1


# --- resolving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controls", "cores", "threads"),
    [
        (Controls(), 4, 4),
        (Controls(threads=3), 4, 3),
        (Controls(affinity_policy="cores:0,2"), 4, 2),
        (Controls(affinity_policy="cores:0-7"), 4, 4),
    ],
)
def test_threads_resolve(controls: Controls, cores: int, threads: int) -> None:
    assert plan_of(spec_of(controls=controls), cores=cores).controls.threads == threads


def test_unusable_selections() -> None:
    with pytest.raises(SpecError, match="leaves no task"):
        plan_of(tasks=[])
    with pytest.raises(SpecError, match="'logic-000' is there 2 times"):
        plan_of(tasks=[*tasks_of(2), task("logic-000")])
    with pytest.raises(SpecError, match="'nope' is not among the selected tasks"):
        plan_of(spec_of(canary=CanaryPolicy(task_id="nope")))
    with pytest.raises(SpecError, match="no selected task has the id 'nope'"):
        plan_of(spec_of(selection=TaskSelection(ids=("logic-000", "nope"))))
    with pytest.raises(ValueError, match="not the spec's"):
        plan_of(models=[source("other")])


def test_a_canary_that_is_off_needs_no_task_and_writes_no_file() -> None:
    plan = plan_of(spec_of(canary=CanaryPolicy(runs=0, task_id="nope")))
    assert "canary" not in plan.artifacts


def test_artifacts_are_distinct_relative_files() -> None:
    plan = plan_of(spec_of(models=("a/b:7b", "a_b:7b"), out_dir="runs/x", summary_out="runs/x/s.json"))
    assert len(set(plan.artifacts.values())) == len(plan.artifacts) == 7 + 2 * (1 + 3)
    assert all(path.startswith("runs/x/") and ":" not in path for path in plan.artifacts.values())


def test_estimates_are_null_with_a_reason_when_nothing_is_known() -> None:
    plan = plan_of()
    assert estimate_seconds(plan, None) is None
    assert estimate_seconds(plan, 2.0) == 2.0 * (3 * 7 + 10 + 3 * 3)
    unknown = dry_run_document(plan, disk_bytes_by_variant={("m", "F16"): 5}, estimated_seconds=None)["estimates"]
    assert (unknown["seconds"], unknown["seconds_unavailable"]) == (None, "NO_HISTORY")
    assert (unknown["disk"]["total_bytes"], unknown["disk"]["total_unavailable"]) == (None, "NOT_REPORTED")
    sizes = {("m", "F16"): 5, ("m", "Q8_0"): 0, ("m", "Q4_K_M"): 1}
    known = dry_run_document(plan, disk_bytes_by_variant=sizes, estimated_seconds=9.5)["estimates"]
    assert (known["seconds"], known["seconds_unavailable"], known["disk"]["total_bytes"]) == (9.5, None, 6)


def demo_document(folder: Path) -> dict[str, Any]:
    """The demo preset, resolved in a folder of its own on a made-up machine with a made-up model file, bank and tasks."""
    bank = folder / "benchmarks/task_bank/short/tasks.json"
    bank.parent.mkdir(parents=True)
    bank.touch()
    spec = load_spec({}, ROOT / "benchmarks/configs/quant_sweep_demo.json", cwd=folder, available_cores=range(2))
    model = ModelSource(model_id="smollm2-135m", kind=ModelKind.PACKAGED, digest="0" * 64, bytes=98_000_000)
    plan = build_plan(
        spec,
        [model],
        tasks_of(8),
        bank_digest="1" * 64,
        cores=2,
        fingerprint="test-machine",
        commit_sha="2" * 40,
    )
    sizes = {("smollm2-135m", tag): 1_000_000 * index for index, tag in enumerate(spec.quants, 1)}
    return dry_run_document(plan, disk_bytes_by_variant=sizes, estimated_seconds=estimate_seconds(plan, 1.0))


def test_dry_run_of_the_demo_is_the_golden_one(tmp_path: Path) -> None:
    """After a wanted change, write `encode_pretty(demo_document(tmp_path))` to the golden file and read the difference."""
    assert encode_pretty(demo_document(tmp_path)).decode() == GOLDEN.read_text(encoding="utf-8")
