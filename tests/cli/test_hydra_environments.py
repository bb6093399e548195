"""pixi.toml says what Makefile and pyproject.toml say. It is only parsed here: pixi itself is not part of the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = {"default", "sensitivity", "dev", "rtx5090"}


@pytest.fixture(scope="module")
def pixi() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pixi.toml").read_text())


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def extras(pixi: dict[str, Any], environment: str) -> set[str]:
    (feature,) = pixi["environments"][environment]
    packages = pixi["feature"][feature]["pypi-dependencies"]
    assert list(packages) == ["fewbits"], "what fewbits needs is listed once, in pyproject.toml"
    assert (packages["fewbits"]["path"], packages["fewbits"]["editable"]) == (".", True)
    return set(packages["fewbits"]["extras"])


def makefile_extras() -> list[set[str]]:
    found = re.findall(r"-e '\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text())
    return [set(names.split(",")) for names in found]


def test_the_environments_are_those_of_the_makefile(pixi: dict[str, Any]) -> None:
    assert set(pixi["environments"]) == ENVIRONMENTS
    full, light = sorted(makefile_extras(), key=len, reverse=True)
    assert extras(pixi, "dev") == extras(pixi, "rtx5090") == full
    assert extras(pixi, "default") == light
    assert extras(pixi, "sensitivity") == full - {"dev", "detection", "extraction", "vision"}


def test_every_extra_is_one_of_the_package(pixi: dict[str, Any], pyproject: dict[str, Any]) -> None:
    known = set(pyproject["project"]["optional-dependencies"])
    assert set().union(*(extras(pixi, name) for name in ENVIRONMENTS)) <= known


def test_python_is_one_that_the_package_takes(pixi: dict[str, Any], pyproject: dict[str, Any]) -> None:
    assert pyproject["project"]["requires-python"] == ">=3.11"
    assert pixi["dependencies"] == {"python": "3.11.*"}


def test_tasks_run_what_the_makefile_runs(pixi: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace('"', "'")
    tasks = {name: task for feature in pixi["feature"].values() for name, task in feature.get("tasks", {}).items()}
    targets = dict(re.findall(r"^([a-z-]+):[^\n]*\n((?:\t[^\n]+\n)+)", makefile, re.MULTILINE))
    assert set(tasks) - {"sensitivity"} == set(targets) - {"install", "clean"}
    for name, task in tasks.items():
        command = task if isinstance(task, str) else task["cmd"]
        if name == "sensitivity":
            assert (ROOT / command.removeprefix("python ")).is_file()
        else:
            assert command.replace("'", "") == " && ".join(targets[name].strip().replace("\t", "").replace("'", "").splitlines())


def test_uv_pins_what_the_constraints_file_pins(pyproject: dict[str, Any]) -> None:
    pinned = set((ROOT / "constraints.txt").read_text().split())
    assert set(pyproject["tool"]["uv"]["constraint-dependencies"]) <= pinned
