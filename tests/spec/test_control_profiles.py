"""A named profile of controls: below matrix file and flags, above the defaults, and recorded by name and digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits.core.errors import SpecError
from fewbits.records.plan import QualityPolicy, SweepSpec
from fewbits.spec import load_spec
from fewbits.spec.control_profiles import SETTINGS

WriteMatrix = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
BASE = {"models": ["smollm2-135m"], "quants": ["F16", "Q8_0"]}
FOLDER = "benchmarks/control_profiles"


@pytest.fixture
def write_profile(bank_dir: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "mine.json") -> Path:
        path = bank_dir / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def load(where: Path, path: Path | None = None, **flags: object) -> SweepSpec:
    given = flags if path is not None else {**BASE, **flags}
    return load_spec(given, path, cwd=where, root=where, available_cores=range(2))


def problems(where: Path, path: Path | None = None, **flags: object) -> str:
    with pytest.raises(SpecError) as caught:
        load(where, path, **flags)
    return str(caught.value)


def test_precedence_flag_file_profile_default(bank_dir: Path, write_matrix: WriteMatrix, write_profile: WriteMatrix) -> None:
    write_profile({"seed": 1, "warmup_steps": 4, "temperature": 0.5, "batch_size": 64})
    matrix = write_matrix({**BASE, "control_profile": "mine", "warmup_steps": 5, "temperature": 0.6})
    controls = load(bank_dir, matrix, temperature="0.7").controls
    assert (controls.seed, controls.warmup_steps, controls.temperature, controls.batch_size) == (1, 5, 0.7, 64)
    assert controls.threads is None


def test_a_flag_chooses_another_profile_or_none(bank_dir: Path, write_matrix: WriteMatrix, write_profile: WriteMatrix) -> None:
    write_profile({"seed": 1})
    write_profile({"seed": 2}, "other.json")
    matrix = write_matrix({**BASE, "control_profile": "mine"})
    assert load(bank_dir, matrix).controls.seed == 1
    assert load(bank_dir, matrix, control_profile="other").controls.seed == 2
    spec = load(bank_dir, matrix, control_profile="auto")
    assert (spec.controls.seed, spec.control_profile) == (1337, None)


def test_the_plan_records_name_and_digest(bank_dir: Path, write_profile: WriteMatrix) -> None:
    path = write_profile({"name": "mine", "description": "why", "seed": 1})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(bank_dir, control_profile="mine").control_profile == f"mine@{digest[:12]}"
    path.write_text(path.read_text() + "\n")
    assert load(bank_dir, control_profile="mine").control_profile != f"mine@{digest[:12]}"


def test_what_of_the_profile_did_not_apply_is_said(bank_dir: Path, write_profile: WriteMatrix) -> None:
    write_profile({"seed": 1, "threads": 1, "warmup_steps": 3})
    told = load(bank_dir, control_profile="mine", threads="2", seed="1", warmup_steps="0").control_profile
    assert told is not None
    assert told.endswith(" except threads, warmup_steps")


def test_a_profile_that_applies_nowhere_is_refused(bank_dir: Path, write_profile: WriteMatrix) -> None:
    write_profile({"seed": 1, "threads": 1})
    message = problems(bank_dir, control_profile="mine", seed="2", threads="2")
    assert "--control-profile: the profile 'mine' does nothing" in message


def test_a_path_is_a_profile_too(bank_dir: Path) -> None:
    (bank_dir / "my lab.yaml").write_text("name: rack-7\nseed: 9\ncanary_runs: 20\n")
    spec = load(bank_dir, control_profile="my lab.yaml")
    assert (spec.controls.seed, spec.canary.runs) == (9, 20)
    assert spec.control_profile is not None
    assert spec.control_profile.startswith("rack-7@")
    assert "no such control profile file: nowhere/x.json" in problems(bank_dir, control_profile="nowhere/x.json")


def test_named_profiles_are_found_here_first_then_in_the_root(bank_dir: Path, write_profile: WriteMatrix, tmp_path: Path) -> None:
    write_profile({"seed": 5})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load_spec({**BASE, "control_profile": "mine"}, cwd=elsewhere, root=bank_dir).controls.seed == 5
    (elsewhere / FOLDER).mkdir(parents=True)
    (elsewhere / FOLDER / "mine.json").write_text('{"seed": 6}')
    assert load_spec({**BASE, "control_profile": "mine"}, cwd=elsewhere, root=bank_dir).controls.seed == 6


def test_unknown_names_say_what_there_is(bank_dir: Path, write_profile: WriteMatrix) -> None:
    assert "there is no benchmarks/control_profiles here" in problems(bank_dir, control_profile="lab")
    write_profile({"seed": 1}, "lab.json")
    write_profile({"seed": 1}, "ci.json")
    message = problems(bank_dir, control_profile="labs")
    assert "--control-profile: unknown control profile 'labs' (did you mean 'lab'?; there are: ci, lab;" in message
    for name in ("..", "a b", "x" * 65, "lab\x00"):
        assert "no name of a control profile" in problems(bank_dir, control_profile=name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"sed": 1}, "sed: unknown key (did you mean 'seed'?)"),
        ({"max_tokens": 9}, "max_tokens: unknown key (it belongs into the matrix file, or on a flag)"),
        ({"quants": ["Q8_0"]}, "quants: unknown key (it belongs into the matrix file"),
        ({"canary_task_id": "a"}, "canary_task_id: unknown key (it belongs into the matrix file"),
        ({"control_profile": "lab"}, "control_profile: unknown key"),
        ({"row_max_cpu_saturation_rate": 0.1}, "a model on a CPU saturates it by design"),
        ({"seed": "7"}, "seed: expected int, got str ('7')"),
        ({"seed": -1}, "seed: expected int >= 0, got -1"),
        ({"seed": True}, "seed: expected int, got bool (True)"),
        ('{"temperature": NaN}', "temperature: nan is not a usable number"),
        ('{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ({"quality_policy": {"max_steal_ratio": 2}}, "quality_policy.max_steal_ratio: expected float <= 1.0"),
        ({"quality_policy": {"max_steel": 0.1}}, "did you mean 'quality_policy.max_steal_ratio'?"),
        ({"quality_policy": 3}, "quality_policy: expected an object of limits, got 3"),
        ({"threads": 3}, "threads: 3 threads, but this process may use 2 core(s)"),
        ({"affinity_policy": "cores:9"}, "affinity_policy: no such core for this process: 9"),
        ({"canary_runs": 2}, "canary_runs: 2 repeats leave 1 to judge"),
        ({}, "sets nothing"),
        ({"name": "mine", "description": "only words"}, "sets nothing"),
        ({"name": "other", "seed": 1}, "name: says 'other', but it was asked for as 'mine'"),
        ({"name": 3, "seed": 1}, "name: expected text, got 3"),
        ({"name": None, "seed": 1}, "name: expected text, got None"),
        ({"description": ["x"], "seed": 1}, "description: expected text"),
        ("[1]", "expected an object of settings, got a list"),
        ("{", "not JSON"),
    ],
)
def test_problems_of_the_file(bank_dir: Path, write_profile: WriteMatrix, content: object, expected: str) -> None:
    path = write_profile(content)
    message = problems(bank_dir, control_profile="mine")
    assert expected in message
    assert str(path) in message


def test_all_problems_at_once(bank_dir: Path, write_matrix: WriteMatrix, write_profile: WriteMatrix) -> None:
    write_profile({"sed": 1, "threads": 0, "warmup_steps": "1"})
    message = problems(bank_dir, write_matrix({**BASE, "control_profile": "mine", "sede": 1}), runs_per_quant="0")
    assert message.startswith("5 problems:")
    for part in ("sed:", "threads:", "warmup_steps:", "sede:", "--runs:"):
        assert part in message


def test_a_settings_problem_of_the_control_profile_key_itself(bank_dir: Path, write_matrix: WriteMatrix) -> None:
    assert "control_profile: expected str | null, got int (3)" in problems(bank_dir, write_matrix({**BASE, "control_profile": 3}))
    assert "control_profile: expected str" in problems(bank_dir, write_matrix({**BASE, "control_profile": ""}))


def test_the_policy_keeps_its_name_only_while_its_limits_are_its_own(bank_dir: Path, write_profile: WriteMatrix) -> None:
    write_profile({"seed": 1, "quality_policy": {"name": "quiet", "max_steal_ratio": 0.01}})
    quality = load(bank_dir, control_profile="mine").quality
    assert (quality.name, quality.max_steal_ratio) == ("quiet", 0.01)
    # a limit that the profile leaves at its default is a limit of the named policy too
    assert load(bank_dir, control_profile="mine", row_max_polluted_rate="0.9").quality.name == "custom"
    assert load(bank_dir, control_profile="mine", row_max_polluted_rate="0.25").quality.name == "quiet"
    # how often polluted trials are run again is not part of what the name stands for
    assert load(bank_dir, control_profile="mine", rerun_budget_ratio="0.5").quality.name == "quiet"


def test_a_file_that_names_the_standard_policy_cannot_hide_the_profiles_limits(
    bank_dir: Path, write_matrix: WriteMatrix, write_profile: WriteMatrix
) -> None:
    write_profile({"seed": 1, "quality_policy": {"max_steal_ratio": 0.01}})
    assert load(bank_dir, control_profile="mine").quality.name == "custom"
    matrix = write_matrix({**BASE, "control_profile": "mine", "quality_policy": {"name": "standard-v1"}})
    assert "standard-v1 has other limits" in problems(bank_dir, matrix)


@pytest.mark.parametrize("path", sorted((ROOT / FOLDER).glob("*.json")), ids=lambda path: path.stem)
def test_shipped_profiles_load_and_say_why(path: Path) -> None:
    spec = load_spec({**BASE, "control_profile": path.stem}, cwd=ROOT, available_cores=range(2))
    assert spec.control_profile is not None
    assert spec.control_profile.startswith(f"{path.stem}@")
    assert "except" not in spec.control_profile
    document = json.loads(path.read_text())
    assert len(document["description"]) > 100
    assert set(document) - {"name", "description", "quality_policy"} <= SETTINGS


def test_the_shipped_profiles_differ_where_they_say() -> None:
    specs = {
        name: load_spec({**BASE, "control_profile": name}, cwd=ROOT, available_cores=range(2))
        for name in ("lab", "ci", "quiet-strict", "server")
    }
    assert specs["lab"].quality == QualityPolicy()
    assert specs["ci"].quality.name == "standard-v1"
    assert specs["ci"].canary.max_latency_variation > specs["lab"].canary.max_latency_variation
    assert specs["quiet-strict"].quality.name == "quiet-v1"
    assert specs["quiet-strict"].quality.max_foreign_cpu_ratio < specs["lab"].quality.max_foreign_cpu_ratio
    assert specs["quiet-strict"].canary.max_latency_variation < specs["lab"].canary.max_latency_variation
    assert specs["server"].controls.affinity_policy == "none"
