"""Strict rises in a row: where the longest is, and how often chance alone makes one. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def longest_rise(values: Sequence[float | None]) -> tuple[int, int] | None:
    """Return first and last index of the longest strictly rising stretch without a hole, the earliest of several.

    A single value is a stretch; `None` when there is no value.
    """
    best: tuple[int, int] | None = None
    start = 0
    for index, value in enumerate(values):
        before = values[index - 1] if index else None
        if value is None:
            continue
        if before is None or value <= before:
            start = index
        if best is None or index - start > best[1] - best[0]:
            best = (start, index)
    return best


def rise_probability(runs: int, window: int) -> float:
    """Return the probability that `runs` distinct values in random order hold `window` rises in a row, 0..1.

    1 minus the coefficient of x^runs in 1 / sum over j of (x^(jk) / (jk)! - x^(jk+1) / (jk+1)!), with k = window + 1.
    Source: David and Barton, Combinatorial Chance (1962), permutations without an increasing run of length k.
    """
    k = window + 1
    series = [0.0] * (runs + 1)
    for degree in range(0, runs + 1, k):
        series[degree] += _inverse_factorial(degree)
        if degree < runs:
            series[degree + 1] -= _inverse_factorial(degree + 1)
    without = [1.0]
    for n in range(1, runs + 1):
        without.append(-math.fsum(series[j] * without[n - j] for j in range(1, n + 1)))
    return min(1.0, max(0.0, 1.0 - without[runs]))


def _inverse_factorial(n: int) -> float:
    return math.exp(-math.lgamma(n + 1))
