"""A folder with a task bank file and a way to write matrix files into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WriteMatrix = Callable[..., Path]


@pytest.fixture
def bank_dir(tmp_path: Path) -> Path:
    bank = tmp_path / "benchmarks/task_bank/v2_realworld/tasks.json"
    bank.parent.mkdir(parents=True)
    bank.write_text("{}")
    return tmp_path


@pytest.fixture
def write_matrix(bank_dir: Path) -> WriteMatrix:
    def write(content: object, name: str = "matrix.json") -> Path:
        path = bank_dir / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write
