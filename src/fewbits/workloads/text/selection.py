"""Which tasks of a bank are asked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

from fewbits.core.errors import Problem, SpecError
from fewbits.records.plan import TaskSelection
from fewbits.records.task import Task, TaskBank


def select_tasks(bank: TaskBank, selection: TaskSelection) -> tuple[Task, ...]:
    """Return the tasks that a selection leaves, in the bank's order: buckets, tiers, ids, id bounds, then the first `limit`.

    Bounds are inclusive; two ids that are both all digits compare as numbers, all others as text. Raises `SpecError`
    naming every unknown id, or saying which filter left nothing.
    """
    known = [task.id for task in bank.tasks]
    unknown = [word for word in selection.ids if word not in set(known)]
    if unknown:
        raise SpecError([Problem("selection.ids", f"the bank has no task {word!r}", _near(word, known)) for word in unknown])
    tasks = list(bank.tasks)
    for name, keep in _filters(selection):
        left = [task for task in tasks if keep(task)]
        if not left:
            message = f"no task is left after {name}: {len(tasks)} came in, none fits"
            raise SpecError.single("selection", message, f"the bank {bank.name!r} has {_contents(bank)}")
        tasks = left
    return tuple(tasks[: selection.limit or None])


def _filters(selection: TaskSelection) -> Iterator[tuple[str, Callable[[Task], bool]]]:
    """Yield each filter that is set, in order, with its name for people."""
    low, high = selection.id_min, selection.id_max
    if selection.buckets:
        yield f"buckets {', '.join(selection.buckets)}", lambda task: task.bucket in selection.buckets
    if selection.tiers:
        yield f"tiers {', '.join(map(str, selection.tiers))}", lambda task: task.tier in selection.tiers
    if selection.ids:
        yield f"ids {', '.join(selection.ids[:5])}", lambda task: task.id in selection.ids
    if low is not None:
        yield f"id_min {low}", lambda task: not id_before(task.id, low)
    if high is not None:
        yield f"id_max {high}", lambda task: not id_before(high, task.id)


def id_before(left: str, right: str) -> bool:
    """Whether one task id comes before another: as numbers when both are all digits, else as text."""
    if left.isdecimal() and right.isdecimal():
        return int(left[:4000]) < int(right[:4000])
    return left < right


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _contents(bank: TaskBank) -> str:
    buckets = ", ".join(sorted({task.bucket.value for task in bank.tasks}))
    tiers = ", ".join(str(tier) for tier in sorted({task.tier for task in bank.tasks}))
    return f"buckets {buckets}; tiers {tiers}; ids {bank.tasks[0].id} to {bank.tasks[-1].id}"
