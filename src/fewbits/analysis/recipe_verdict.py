"""Is a recipe better than the stock file? Two files against one reference on the same windows of held-out text. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fewbits.analysis.statistics import DECIMALS, IDENTICAL, LEVEL, ratio_estimate
from fewbits.core.units import format_bytes
from fewbits.records.divergence import WindowDivergence
from fewbits.records.estimate import Estimate
from fewbits.records.recipe import RecipeVerdict
from fewbits.records.summary import VerdictCode

PAIRED_METHOD = "paired bootstrap by window, expanded percentile"
_ONE_WINDOW = "one window alone has no spread: at least 2 are needed"


def reduction_estimate(
    ours: Sequence[WindowDivergence], stock: Sequence[WindowDivergence], *, level: float = LEVEL
) -> Estimate | None:
    """Estimate 1 - (sum of our divergence) / (sum of the stock file's) over the same windows, with an interval.

    Positive: we diverge less. Whole windows are drawn anew, the same ones for both files, so that a hard window is hard for
    both; the limits are those of `statistics.ratio_estimate`. `None` without windows, and when the stock file does not diverge.
    Raises `ValueError` when the two were not measured on the same windows.
    Source: Hesterberg (2015), What Teachers Should Know About the Bootstrap, The American Statistician 69(4), section 5.3.
    """
    if [len(window.kl_nats) for window in ours] != [len(window.kl_nats) for window in stock]:
        msg = f"{len(ours)} windows of one file and {len(stock)} of the other are not the same windows"
        raise ValueError(msg)
    ratio = ratio_estimate(_sums(ours), _sums(stock), level=level)
    if ratio is None:
        return None
    return msgspec.structs.replace(
        ratio,
        value=_one_minus(ratio.value),
        low=None if ratio.high is None else _one_minus(ratio.high),
        high=None if ratio.low is None else _one_minus(ratio.low),
        method=IDENTICAL if ratio.method == IDENTICAL else PAIRED_METHOD,
        reason=_ONE_WINDOW if ratio.reason and ratio.n == 1 else ratio.reason,
    )


def _one_minus(ratio: float) -> float:
    return round(1 - ratio, DECIMALS) + 0.0


def _sums(windows: Sequence[WindowDivergence]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([math.fsum(window.kl_nats) for window in windows], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RecipeEvidence:
    """What a verdict rests on. `reduction` compares the recipe with the stock file, `None` where either was not measured.

    `equal_size` is the reduction of a recipe that is no larger than the stock file, chosen and built the same way: the same
    number as `reduction` unless the recipe itself is larger. `tasks` is the tasks' verdict, `None` when none were run.
    """

    recipe_bytes: int
    stock_bytes: int
    stock_tag: str
    reduction: Estimate | None
    equal_size: Estimate | None
    tasks: VerdictCode | None


def judge_recipe(evidence: RecipeEvidence) -> tuple[RecipeVerdict, str]:
    """Return the verdict and one or more sentences that say why.

    BETTER: the reduction's whole interval lies above 0, at equal size too, and the tasks do not say WORSE. NOT_BETTER: the
    whole interval lies at or below 0, or the tasks say WORSE. Else UNRESOLVED. A recipe that is larger than the stock file is
    never BETTER by its own reduction alone: more bytes would do that without any choice.
    """
    stock, reduction = evidence.stock_tag, evidence.reduction
    if evidence.tasks is VerdictCode.WORSE:
        return RecipeVerdict.NOT_BETTER, f"On the tasks the recipe is worse than {stock}, whatever its divergence is."
    if reduction is None:
        return RecipeVerdict.UNRESOLVED, f"The divergence of the recipe or of {stock} on held-out text could not be measured."
    if reduction.low is None or reduction.high is None:
        return RecipeVerdict.UNRESOLVED, f"The reduction of divergence has no interval: {reduction.reason}."
    return _by_divergence(evidence, reduction, (reduction.low, reduction.high))


def _by_divergence(evidence: RecipeEvidence, reduction: Estimate, limits: tuple[float, float]) -> tuple[RecipeVerdict, str]:
    stock, (low, high) = evidence.stock_tag, limits
    measured = f"reduction of divergence from the reference on held-out text {range_words(reduction)}"
    if high <= 0:
        return RecipeVerdict.NOT_BETTER, f"The recipe diverges no less than {stock}: {measured}."
    if low <= 0:
        return RecipeVerdict.UNRESOLVED, f"The recipe and {stock} cannot be told apart: {measured}."
    if evidence.recipe_bytes > evidence.stock_bytes and not _is_above_zero(evidence.equal_size):
        more = format_bytes(evidence.recipe_bytes - evidence.stock_bytes)
        sentence = f"The recipe diverges less than {stock} ({measured}) but is {more} larger"
        return RecipeVerdict.UNRESOLVED, f"{sentence}, and no recipe of equal size was shown to be better."
    return RecipeVerdict.BETTER, _praise(evidence, reduction)


def _praise(evidence: RecipeEvidence, reduction: Estimate) -> str:
    if evidence.recipe_bytes > evidence.stock_bytes and evidence.equal_size is not None:
        more = format_bytes(evidence.recipe_bytes - evidence.stock_bytes)
        size = f"with {more} more; in no more bytes a recipe still diverges {range_words(evidence.equal_size)} less"
    else:
        size = "in no more bytes"
    tasks = {
        None: "No tasks were run.",
        VerdictCode.BETTER: "The tasks say better too.",
        VerdictCode.EQUIVALENT: "The tasks say equivalent.",
    }.get(evidence.tasks, "The tasks do not say worse, but they do not decide either.")
    return f"On held-out text the recipe diverges {range_words(reduction)} less than {evidence.stock_tag}, {size}. {tasks}"


def _is_above_zero(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.low is not None and estimate.low > 0


def range_words(estimate: Estimate) -> str:
    """Return a reduction in per cent with its interval, for sentences: `41 % [39 %, 44 %]`."""
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    return f"{estimate.value:.0%}{ends}".replace("%", " %")
