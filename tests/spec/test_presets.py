"""Every preset that the project brings loads, finds its task bank and tasks, and is a size that ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewbits.spec import load_spec

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "benchmarks" / "configs").glob("quant_sweep_*.json"))
NAMES = {"common_sessions", "logic_only", "refactor_heavy", "mixed", "demo"}


def test_the_named_presets_are_there() -> None:
    assert {f"quant_sweep_{name}.json" for name in NAMES} <= {path.name for path in PRESETS}


@pytest.mark.parametrize("path", [*PRESETS, ROOT / "examples/configs/ollama_sessions.json"], ids=lambda path: path.stem)
def test_preset_loads_and_its_tasks_exist(path: Path) -> None:
    spec = load_spec({"models": "placeholder", "quants": "Q8_0"}, path, cwd=ROOT, available_cores=range(2))
    bank = json.loads((ROOT / spec.task_bank).read_text(encoding="utf-8"))
    ids = {task["id"] for task in bank["tasks"]}
    assert set(spec.selection.ids) <= ids
    assert spec.controls.seed == 1337
    assert spec.canary.runs == 10
    assert spec.description


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_packaged_presets_need_no_server_and_start_at_the_reference(path: Path) -> None:
    spec = load_spec({"task_bank": "humaneval"}, path, cwd=ROOT)
    assert spec.runtime == "llamacpp"
    assert spec.models == ("smollm2-135m",)
    assert spec.quants[0] == spec.reference_quant == "F16"
    assert spec.canary.max_latency_variation == (0.15 if "demo" in path.name else 0.03)


def test_presets_do_not_share_a_folder() -> None:
    folders = [load_spec({"task_bank": "humaneval"}, path, cwd=ROOT).out_dir for path in PRESETS]
    assert len(set(folders)) == len(folders)
