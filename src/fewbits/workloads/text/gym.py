"""The `reasoning-gym` scorers: the package's own judgement of an answer to one of its generated entries."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewbits.core.errors import PrerequisiteError, Problem, SpecError
from fewbits.core.units import GIB
from fewbits.records.task import ReasoningGymCheck, Task
from fewbits.workloads.text import answers
from fewbits.workloads.text.sandbox import CallJob, ExtraImports, JobStatus, Limits, run_jobs

BANKS_REMEDY = "Install the extra: pip install 'fewbits[banks]'."
LEFT_OUT = {"propositional_logic": "its entries hold no reference answer, so nothing would prove that a task can be passed"}
"""Data sets that fewbits does not offer, with the reason."""
_OPEN_TAG, _CLOSE_TAG = "<answer>", "</answer>"
_LIMITS = Limits(example_seconds=20.0, total_seconds=20.0, cpu_seconds=20, memory_bytes=4 * GIB)
_SCORER = """
from reasoning_gym.factory import create_dataset

def score(name, seed, size, index, candidates):
    dataset = create_dataset(name, seed=seed, size=size)
    entry = dataset[index]
    return max(float(dataset.score_answer(text, entry)) for text in candidates)
"""


def require_reasoning_gym() -> None:
    """Raise `PrerequisiteError` when the package `reasoning-gym` is not installed."""
    if find_spec("reasoning_gym") is None:
        what = "the package reasoning-gym is not installed, and these tasks are made and scored by it"
        raise PrerequisiteError(what, BANKS_REMEDY)


def require_scorers(tasks: tuple[Task, ...] | list[Task]) -> None:
    """Raise `PrerequisiteError` when a task has a `reasoning_gym` check and the package is not installed."""
    if any(isinstance(check, ReasoningGymCheck) for task in tasks for check in task.checks):
        require_reasoning_gym()


@lru_cache(maxsize=64)
def gym_dataset(name: str, seed: int, size: int) -> Any:
    """Return a seeded data set of the package. Raises `PrerequisiteError` (not installed) and `SpecError` (unknown name)."""
    require_reasoning_gym()
    if name in LEFT_OUT:
        raise SpecError.single("reasoning-gym", f"the data set {name!r} is left out: {LEFT_OUT[name]}")
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        import difflib

        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(DATASETS)} data sets, such as basic_arithmetic"
        raise SpecError([Problem("reasoning-gym", f"no data set is named {name!r}", hint)])
    try:
        return create_dataset(name, seed=seed, size=size)
    except (TypeError, ValueError, AssertionError) as error:
        raise SpecError.single(
            "reasoning-gym", f"the data set {name!r} cannot be made from seed and size alone: {error}"
        ) from error


def score_gym_answer(check: ReasoningGymCheck, text: str) -> str:
    """Return why the scorer gives the answer too little; empty when it gives at least `minimum_score`.

    What is scored is the text in the last `<answer>` tag, or, without one, the better of the whole answer and its last
    line, both unwrapped. Many of the package's scorers evaluate the answer as an expression, so every one but the base
    class's plain comparison runs in the sandbox. Raises `PrerequisiteError`.
    """
    candidates = _candidates(text)
    dataset = gym_dataset(check.dataset, check.seed, check.size)
    if check.index >= check.size:
        return f"entry {check.index} does not exist in a data set of {check.size}"
    if type(dataset).score_answer is _base_scorer():
        entry = dataset[check.index]
        score = max(float(dataset.score_answer(candidate, entry)) for candidate in candidates)
    else:
        arguments = (check.dataset, check.seed, check.size, check.index, candidates)
        (outcome,) = run_jobs([CallJob(_SCORER, "score", arguments)], _LIMITS, _package_imports())
        if outcome.status is not JobStatus.RETURNED:
            return f"the scorer of {check.dataset} did not finish: {outcome.status.value}: {outcome.detail}"
        score = float(outcome.value)
    if score >= check.minimum_score:
        return ""
    return f"{check.dataset} scores {candidates[0][:60]!r} with {score:.3g}, needed is {check.minimum_score:g}"


def _candidates(text: str) -> list[str]:
    cut = text[: answers.TEXT_LIMIT_CHARACTERS]
    opened = cut.rpartition(_OPEN_TAG)
    if opened[1]:
        return [opened[2].partition(_CLOSE_TAG)[0].strip()]
    return list(dict.fromkeys([answers.plain_text(cut), cut.strip(), answers.last_line(cut)]))


def _base_scorer() -> Any:
    from reasoning_gym.dataset import ProceduralDataset

    return ProceduralDataset.score_answer


def _package_imports() -> ExtraImports:
    folders = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"} and Path(path).is_dir()]
    return ExtraImports(paths=tuple(str(Path(path).resolve()) for path in folders), preload=("reasoning_gym",))
