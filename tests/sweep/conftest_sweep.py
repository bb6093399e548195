"""A tiny bank, a script, and a prepared sweep over both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.api import PreparedSweep, prepare_sweep

WORDS = ("red", "green", "blue", "black")
GOOD = {"prompt_tokens": 9, "output_tokens": 3, "prompt_ms": 12.0, "predicted_ms": 6.0}

Prepare = Callable[..., PreparedSweep]


def bank_of(words: tuple[str, ...] = WORDS) -> dict[str, Any]:
    tasks = [
        {
            "id": f"say-{word}",
            "bucket": "logic",
            "tier": 1,
            "prompt": f"Say {word}.",
            "checks": [{"kind": "exact", "accepted": [word]}],
            "reference_answer": word,
            "wrong_answers": ["no"],
        }
        for word in words
    ]
    return {"schema_version": "fewbits.task_bank.v1", "name": "tiny", "version": "1", "tasks": tasks}


def answers(**changed: list[dict[str, Any]]) -> dict[str, Any]:
    """A script that answers every word right, except where `changed` says otherwise."""
    rules = [
        {"prompt_contains": f"Say {word}.", "replies": changed.get(word, [{**GOOD, "text": word, "wall_seconds": 0.02}])}
        for word in WORDS
    ]
    return {"schema_version": "fewbits.script.v1", "rules": rules, "default": {**GOOD, "text": "hello", "wall_seconds": 0.02}}


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Write bank and script, and plan a sweep of two variants; keyword arguments are the sweep's settings."""

    def make(script: dict[str, Any] | None = None, **flags: Any) -> PreparedSweep:
        (tmp_path / "bank.json").write_text(json.dumps(bank_of()))
        (tmp_path / "script.json").write_text(json.dumps(script or answers()))
        settings: dict[str, Any] = {
            "models": "toy",
            "quants": "F16,Q8_0",
            "runtime": "scripted",
            "script": str(tmp_path / "script.json"),
            "task_bank": str(tmp_path / "bank.json"),
            "canary_runs": 0,
            "warmup_steps": 0,
            "trial_timeout_seconds": 0.5,
            "out_dir": str(tmp_path / "run"),
            # the machine that runs the tests may be busy; what is tested here is the loop
            "quality_policy": {
                "name": "test",
                "max_foreign_cpu_ratio": 1.0,
                "max_cpu_pressure_ratio": 1.0,
                "max_steal_ratio": 1.0,
                "max_io_pressure_ratio": 1.0,
                "max_memory_pressure_ratio": 1.0,
                "max_orchestration_overhead_ratio": 1.0,
            },
        }
        matrix = tmp_path / "matrix.json"
        settings |= flags
        document = {key: value for key, value in settings.items() if value is not None}
        document["models"], document["quants"] = [settings["models"]], settings["quants"].split(",")
        matrix.write_text(json.dumps(document))
        return prepare_sweep({}, matrix)

    return make
