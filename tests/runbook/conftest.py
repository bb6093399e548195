"""A folder that looks like a fresh checkout, with inputs small enough for a test and patient with a busy machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("scripts", "src", "examples", "docs", "schemas", "Makefile", "pyproject.toml", "constraints.txt", ".gitea")
SHORT_BENCH = ("-p", "16", "-n", "4", "-r", "2", "-o", "json")
CALM = {
    "name": "test-on-a-shared-machine",
    "max_foreign_cpu_ratio": 1.0,
    "max_cpu_pressure_ratio": 1.0,
    "max_steal_ratio": 1.0,
    "max_memory_pressure_ratio": 1.0,
    "max_io_pressure_ratio": 1.0,
}
"""Other tests run beside these: their load must not decide whether a command works."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Commands look for inputs here first, so the presets of the same names are these small ones."""
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "benchmarks").mkdir()
    for path in (ROOT / "benchmarks").iterdir():
        if path.name not in {"configs", "results", "__pycache__"}:
            (tmp_path / "benchmarks" / path.name).symlink_to(path)
    configs = tmp_path / "benchmarks" / "configs"
    configs.mkdir()
    for path in (ROOT / "benchmarks" / "configs").iterdir():
        (configs / path.name).symlink_to(path)
    smallest = json.loads((ROOT / "benchmarks" / "configs" / "quant_sweep_smoke.json").read_text())
    smallest |= {
        "canary_runs": 0,
        "quality_policy": CALM,
        "row_max_orchestration_overhead_ratio": 1.0,
        "row_max_polluted_rate": 1.0,
    }
    for unused in (
        "canary_drop_first_run",
        "canary_latency_variance_threshold",
        "canary_max_missing_telemetry_rate",
        "control_profile",
    ):
        smallest.pop(unused, None)
    smallest |= {"task_limit": 2, "max_tokens": 16}
    for name in ("smoke", "nightly", "common_sessions"):
        target = configs / f"quant_sweep_{name}.json"
        shipped = json.loads(target.read_text())
        target.unlink()
        target.write_text(json.dumps(smallest | {"out_dir": shipped["out_dir"]}))
    profiles = json.loads((ROOT / "benchmarks" / "configs" / "sidecar_profiles.json").read_text())
    profiles["profiles"]["cpu"]["argv"] = ["llama-bench", "-m", "{model}", "-t", "{threads}", "-ngl", "0", *SHORT_BENCH]
    (configs / "sidecar_profiles.json").unlink()
    (configs / "sidecar_profiles.json").write_text(json.dumps(profiles))
    return tmp_path
