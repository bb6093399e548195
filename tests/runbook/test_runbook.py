"""Every command of the runbooks: ours runs from top to bottom on the packaged model, the seed's is held against our commands."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"


def module(name: str) -> ModuleType:
    """Load a script of the checkout as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


runbook = module("run_runbook")
BLOCKS = runbook.blocks(runbook.RUNBOOK.read_text(encoding="utf-8"))


def seed_commands(name: str) -> list[str]:
    """Return the python commands of a seed document, in bash form."""
    path = SEEDS / name
    if not path.exists():
        pytest.skip(f"{path.name} is not laid beside this checkout")
    text = path.read_text(encoding="utf-8").replace(" `\n", " \\\n")
    fenced = re.findall(r"^```powershell\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block.strip() for block in fenced] + re.findall(r"^\s+`(python [^`]+)`$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["quant-sweep-runbook.md", "quantization-roadmap.md"])
def test_every_seed_command_exists_with_its_flags(name: str) -> None:
    commands = seed_commands(name)
    assert len(commands) >= 4
    problems = [
        problem for command in commands for problem in module("check_docs").command_problems(command.replace("\\\n", " "))
    ]
    assert problems == []


def test_our_runbook_has_every_script_of_the_seed() -> None:
    ours = "\n".join(BLOCKS)
    scripts = {
        word for command in seed_commands("quant-sweep-runbook.md") for word in command.split() if word.startswith("scripts/")
    }
    assert len(scripts) == 8
    assert {script for script in scripts if script not in ours} == set()


def test_the_blocks_are_found_and_a_failing_one_says_so(tmp_path: Path) -> None:
    assert len(BLOCKS) >= 10
    done = runbook.run_block("false\necho reached", tmp_path, capture=True)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.real
@pytest.mark.xdist_group("engine")
def test_the_whole_runbook(checkout: Path) -> None:
    for block in BLOCKS:
        small = block.replace("1024,2048,4096", "512,1024").replace("--task-limit 5", "--task-limit 2")
        done = runbook.run_block(small, checkout, {"PYTHONDONTWRITEBYTECODE": "1"}, capture=True)
        assert done.returncode == 0, f"{small}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    results = checkout / "benchmarks" / "results"
    summary = json.loads((results / "quant_sweep" / "sweep_summary.json").read_text())
    rows = summary["sessions"][0]["per_quant"]
    assert summary["complete"] is True
    assert {row["baseline"]["status"] for row in rows} == {"NO_BASELINE"}
    assert all(row["hardware_sidecar"]["status"] in {"OK", "TOOL_MISSING"} for row in rows)
    ceiling = json.loads((results / "context_sweep" / "context_ceiling.json").read_text())
    assert [point["context"] for point in ceiling["ceilings"][0]["points"]] == [512, 1024]
    assert json.loads((results / "thermal" / "thermal_profile.json").read_text())["heat_soak_detected"] in {True, False}
    assert sorted(path.name for path in (checkout / ".orket" / "durable" / "diagnostics").iterdir()) == [
        "context_ceilings",
        "frontiers",
        "kpi_trend",
        "thermal_profiles",
    ]


def test_make_runbook_lists_the_blocks() -> None:
    make = shutil.which("make")
    assert make is not None
    planned = subprocess.run([make, "-n", "runbook"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "scripts/run_runbook.py" in planned
    done = subprocess.run(
        [sys.executable, "scripts/run_runbook.py", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("--- block") == len(BLOCKS)
