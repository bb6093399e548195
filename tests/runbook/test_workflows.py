"""The CI workflows: every step's commands are run, in order, as a runner would; so no workflow can rot."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".gitea" / "workflows").glob("*.yml"))
SMALL = {
    "MATRIX": "benchmarks/configs/quant_sweep_smoke.json",
    "MODEL": "smollm2-135m",
    "CONTEXTS": "512",
    "TASKS_PER_DEPTH": "1",
    "VRAM_PROFILE": "safe",
    "COOLDOWN_TARGET_C": "90",
    "PROVENANCE_REF": "run-1:test",
    "EVENT": "schedule",
}
"""What the runner would fill in, or a person on demand."""


def workflow(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def test_the_runbooks_workflows_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == [
        "baseline-retention.yml",
        "quant-sweep-full-selfhosted.yml",
        "quant-sweep-nightly.yml",
        "quant-sweep-smoke.yml",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_has_triggers_a_limit_and_keeps_its_artifacts(path: Path) -> None:
    document = workflow(path)
    assert dict[Any, Any](document)[True]  # YAML 1.1 reads the key `on` as a boolean
    assert all(job["timeout-minutes"] <= 360 for job in document["jobs"].values())
    kept = [step for step in steps(path) if "upload-artifact" in step.get("uses", "")]
    assert [step["if"] for step in kept] == ["always()"]
    results = document["env"]["RESULTS"]
    assert kept[0]["with"]["path"] == results


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_run_lines_hold_no_expressions(path: Path) -> None:
    """What a runner fills in comes through the environment, where a shell quotes it."""
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


@pytest.mark.real
@pytest.mark.xdist_group("engine")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_step_runs(path: Path, checkout: Path) -> None:
    declared = {name: value for name, value in workflow(path)["env"].items() if "${{" not in value}
    stored = {name: str(checkout / "stored" / name.lower()) for name in ("HISTORY", "BASELINES")}
    environment = {**declared, **SMALL, **stored}
    ran = 0
    for step in steps(path):
        if "run" not in step:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step["run"]],
            cwd=checkout,
            env=_environment(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step['name']}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        ran += 1
    assert ran >= 5
    assert list((checkout / workflow(path)["env"]["RESULTS"]).rglob("*.xml"))


def _environment(extra: dict[str, str]) -> dict[str, str]:
    import os

    return {**os.environ, **extra, "PYTHONDONTWRITEBYTECODE": "1"}
