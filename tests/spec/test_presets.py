"""Every preset that the project brings loads, finds its task bank and tasks, ends, and selects what its name says."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from fewbits.cli.main import main
from fewbits.records.plan import PolicyName, SweepSpec
from fewbits.records.schemes import find_scheme
from fewbits.runtimes.ollama.catalogue import Details, Model, find_model
from fewbits.spec import load_spec
from fewbits.spec.ladders import read_ladder
from fewbits.workloads.text.bank import load_bank
from fewbits.workloads.text.selection import select_tasks

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "benchmarks" / "configs"
PRESETS = sorted(CONFIGS.glob("quant_sweep_*.json"))
PACKAGED = [path for path in PRESETS if "ollama" not in path.name]
OLLAMA = [path for path in PRESETS if "ollama" in path.name]
GGUF = sorted((CONFIGS / "gguf").glob("*.json"))
NAMES = {"common_sessions", "logic_only", "refactor_heavy", "mixed", "demo", "smoke", "nightly"}
TOLERANT = {"demo", "smoke", "nightly"}
"""They run on shared machines, so their canary accepts 15 % variation; all others keep the roadmap's 3 %."""


def load(path: Path, **flags: object) -> SweepSpec:
    return load_spec(flags, path, cwd=ROOT, available_cores=range(2))


def short_name(path: Path) -> str:
    return path.stem.removeprefix("quant_sweep_")


def selected(spec: SweepSpec) -> Counter[str]:
    """How many tasks of each bucket a spec asks."""
    return Counter(task.bucket.value for task in select_tasks(load_bank(ROOT / spec.task_bank).bank, spec.selection))


def test_the_named_presets_are_there() -> None:
    assert {f"quant_sweep_{name}.json" for name in NAMES} <= {path.name for path in PRESETS}
    assert len(OLLAMA) >= 4
    assert len(GGUF) >= 3


@pytest.mark.parametrize("path", [*PRESETS, ROOT / "examples/configs/ollama_sessions.json"], ids=lambda path: path.stem)
def test_preset_loads_and_its_tasks_exist(path: Path) -> None:
    spec = load_spec({"models": "placeholder", "quants": "Q8_0"}, path, cwd=ROOT, available_cores=range(2))
    bank = json.loads((ROOT / spec.task_bank).read_text(encoding="utf-8"))
    ids = {task["id"] for task in bank["tasks"]}
    assert set(spec.selection.ids) <= ids
    assert spec.controls.seed == 1337
    assert spec.canary.runs == (4 if short_name(path) in {"smoke", "nightly"} else 10)
    assert spec.description
    assert "placeholder" not in spec.models


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_packaged_presets_need_no_server_and_start_at_the_reference(path: Path) -> None:
    spec = load(path)
    assert spec.runtime == "llamacpp"
    assert spec.models == ("smollm2-135m",)
    assert spec.quants[0] == spec.reference_quant == "F16"
    assert spec.canary.max_latency_variation == (0.15 if short_name(path) in TOLERANT else 0.03)


@pytest.mark.parametrize(
    ("name", "buckets"),
    [
        ("common_sessions", {"logic": 6, "extraction": 6, "refactor": 6, "structured_output": 6}),
        ("logic_only", {"logic": 24}),
        ("refactor_heavy", {"refactor": 22}),
        ("mixed", {"logic": 24, "extraction": 24, "refactor": 22, "structured_output": 24}),
        ("smoke", {"logic": 6}),
        ("nightly", {"logic": 4, "extraction": 4, "refactor": 4, "structured_output": 4}),
    ],
)
def test_what_each_preset_selects(name: str, buckets: dict[str, int]) -> None:
    assert selected(load(CONFIGS / f"quant_sweep_{name}.json")) == buckets


def test_the_bucket_presets_do_not_select_the_same_tasks() -> None:
    kinds = {
        name: set(selected(load(CONFIGS / f"quant_sweep_{name}.json"))) for name in ("logic_only", "refactor_heavy", "mixed")
    }
    assert kinds["logic_only"] == {"logic"}
    assert kinds["refactor_heavy"] == {"refactor"}
    assert len(kinds["mixed"]) == 4


def test_a_bucket_flag_beats_the_preset() -> None:
    spec = load(CONFIGS / "quant_sweep_mixed.json", buckets="extraction", tiers="1")
    assert selected(spec) == {"extraction": 13}


@pytest.mark.parametrize("name", ["smoke", "nightly"])
def test_ci_presets_are_small_and_keep_the_pollution_limits(name: str) -> None:
    spec = load(CONFIGS / f"quant_sweep_{name}.json")
    trials = len(spec.quants) * sum(selected(spec).values()) * spec.runs_per_quant
    assert trials <= {"smoke": 40, "nightly": 150}[name]
    assert spec.execution_lane == "ci"
    assert spec.runs_per_quant == 2
    assert (spec.policy.name, spec.quality.name) == (PolicyName.THRESHOLD, "standard-v1")
    assert spec.control_profile is not None
    assert spec.control_profile.startswith("ci@")


def test_presets_do_not_share_a_folder() -> None:
    flags = {"models": "m"}
    folders = [load_spec(flags, path, cwd=ROOT).out_dir for path in [*PRESETS, *GGUF]]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", [CONFIGS / "quant_sweep_common_sessions.json", CONFIGS / "quant_sweep_mixed.json"])
def test_the_lab_profile_says_what_these_presets_said_before(path: Path) -> None:
    """Their plans stay what they were when each preset spelled its controls out."""
    spec = load(path)
    assert (spec.controls.seed, spec.controls.threads, spec.controls.affinity_policy) == (1337, None, "auto")
    assert (spec.controls.warmup_steps, spec.controls.temperature) == (1, 0.0)
    assert (spec.canary.runs, spec.canary.drop_first_run, spec.canary.max_missing_telemetry_rate) == (10, True, 0.0)
    assert spec.quality.name == "standard-v1"
    assert spec.control_profile is not None
    assert spec.control_profile.startswith("lab@")
    assert "except" not in spec.control_profile


# --- ladders -----------------------------------------------------------------------------------------------------------

LADDERS = sorted((ROOT / "benchmarks" / "ladders").glob("*.json"))


@pytest.mark.parametrize("path", LADDERS, ids=lambda path: path.stem)
def test_a_shipped_ladder_can_be_built_and_goes_down(path: Path) -> None:
    tags = read_ladder(path.stem, [ROOT], "--quant-tags")
    schemes = [find_scheme(tag) for tag in tags]
    assert [scheme.tag for scheme in schemes] == list(tags)
    assert not any(scheme.refusal for scheme in schemes)
    assert len(set(tags)) == len(tags) >= 3
    bits = [scheme.nominal_bits_per_weight for scheme in schemes]
    assert bits == sorted(bits, reverse=True)


def test_the_named_ladders_hold_what_they_are_known_for() -> None:
    assert {path.stem for path in LADDERS} >= {"common", "fast", "full", "served"}
    assert read_ladder("common", [ROOT], "") == ("F16", "Q8_0", "Q6_K", "Q4_K_M")
    assert {"F16", "Q2_K"} <= set(read_ladder("full", [ROOT], ""))


# --- model families ----------------------------------------------------------------------------------------------------

LIBRARY_SUFFIX = {"F16": "fp16", "Q8_0": "q8_0", "Q6_K": "q6_K", "Q4_K_M": "q4_K_M"}
"""How Ollama's library spells the quantization at the end of a tag."""


@pytest.mark.parametrize("path", OLLAMA, ids=lambda path: path.stem)
def test_ollama_presets_name_models_as_the_library_spells_them(path: Path) -> None:
    """The adapter finds each variant among everything that was pulled of the preset, and of its bare neighbours."""
    spec = load(path)
    pulled = [
        Model(name=f"{model}-{LIBRARY_SUFFIX[tag]}", digest=f"{model}{tag}", details=Details(quantization_level=tag))
        for model in spec.models
        for tag in spec.quants
    ]
    bare = [model.partition("-instruct")[0] + suffix for model in spec.models for suffix in ("", "-base-q8_0", "-text-q4_K_M")]
    pulled += [Model(name=name, digest=name, details=Details(quantization_level="Q4_K_M")) for name in bare]
    for model in spec.models:
        for tag in spec.quants:
            assert find_model(pulled, model, tag).name == f"{model}-{LIBRARY_SUFFIX[tag]}"
    assert spec.runtime == "ollama"
    assert spec.reference_quant in spec.quants


def test_families_with_two_sizes_hold_each_to_its_own_limits() -> None:
    spec = load(CONFIGS / "quant_sweep_ollama_qwen2.5_coder.json")
    small, large = (spec.policy_of(model) for model in spec.models)
    assert small.latency_ceiling < large.latency_ceiling
    assert small.adherence_floor < large.adherence_floor
    assert small.adherence_threshold < large.adherence_threshold
    spec = load(CONFIGS / "quant_sweep_ollama_gemma2.json")
    assert set(spec.model_policies) == set(spec.models)


def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, object]:
    """Dry-run a sweep with an empty cache, without a network or a server; returns the document."""
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "dry_run.json"
    descriptor = os.open(out, os.O_CREAT | os.O_WRONLY)
    with os.fdopen(descriptor, "w") as stream, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", stream)
        assert main(["sweep", *words, "--dry-run", "--json", "--out-dir", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists()
    document: dict[str, object] = json.loads(out.read_text())["dry_run"]
    return document


@pytest.mark.parametrize("path", OLLAMA, ids=lambda path: path.stem)
def test_ollama_presets_plan_without_a_server(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", _refuse)
    document = plans(tmp_path, monkeypatch, "--matrix-config", str(path))
    lab = document["lab"]
    assert isinstance(lab, dict)
    assert str(lab["control_profile"]).startswith("server@")


def _refuse(*_arguments: object) -> None:
    msg = "a dry run must not connect to anything"
    raise AssertionError(msg)


@pytest.mark.parametrize("path", GGUF, ids=lambda path: path.stem)
def test_gguf_presets_bring_everything_but_the_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = plans(tmp_path, monkeypatch, "--matrix-config", str(path), "--model-id", str(small_gguf(tmp_path)))
    matrix = document["matrix"]
    assert isinstance(matrix, dict)
    assert matrix["quants"][0] == matrix["reference_quant"] == "F16"
    assert matrix["models"][0]["path"].endswith("small.gguf")
    with pytest.raises(Exception, match="no model is given"):
        load(path)


def small_gguf(folder: Path) -> Path:
    """A true GGUF model file of one small tensor."""
    import numpy as np
    from gguf import GGUFWriter

    path = folder / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 256), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
