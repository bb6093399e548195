"""Which items are asked in which order: pure functions of the plan, so that the run loop and the summary agree on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice

from fewbits.records.plan import Plan


def item_order(plan: Plan) -> tuple[str, ...]:
    """Return the task ids in the order in which they are asked.

    The bank's own order for a full matrix; drawn from the seed when deciding, since a verdict may fall after any item and the
    items before it must be a fair sample of all.
    """
    if not plan.spec.decide.enabled:
        return tuple(task.task_id for task in plan.tasks)
    return drawn_order(plan)[: plan.spec.decide.maximum_items]


def drawn_order(plan: Plan) -> tuple[str, ...]:
    """Return all task ids in an order drawn from the seed: the order in which evidence is gathered, also of a full matrix.

    Evidence counts its best moment so far, which is fair only where early items are a fair sample: a bank sorted by kind is not.
    """
    return keyed_shuffle(tuple(task.task_id for task in plan.tasks), f"{plan.controls.seed}\nitems")


def item_blocks(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Return the task ids of each block, in order; the last block may be shorter."""
    rest = iter(item_order(plan))
    blocks = []
    while block := tuple(islice(rest, plan.block_tasks)):
        blocks.append(block)
    return tuple(blocks)


def keyed_shuffle(words: Sequence[str], key: str) -> tuple[str, ...]:
    """Order words by a keyed hash: a uniform draw that no library version can change."""
    return tuple(sorted(words, key=lambda word: hashlib.sha256(f"{key}\n{word}".encode()).digest()))
