"""What a row of `divergence.jsonl` says: estimates with intervals by window, and the test against the harm line. Pure.

Windows are the independent units: positions inside one share their context. Windows of one text share its topic and style,
so every interval here is about texts like this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewbits.analysis.statistics import IDENTICAL, LEVEL, MAX_BOOTSTRAP_UNITS, percentile_limits, resample_shares, unseen_share
from fewbits.records.base import Unavailable
from fewbits.records.divergence import DivergenceKind, DivergenceMethod, DivergenceReason, DivergenceRow
from fewbits.records.estimate import Estimate
from fewbits.records.summary import DivergenceEstimate

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

WINDOW_BOOTSTRAP = "bootstrap by window, expanded percentile"
HARM_TEST = "one-sided t test by window"
HIGH_QUANTILE = 0.99
SIGNIFICANT_DIGITS = 6
"""Kept of every number: divergences span six orders of magnitude, so a fixed number of decimals would erase the small ones."""
_CELLS_AT_ONCE = 4_000_000
_ONE_WINDOW = "one window alone has no spread: at least 2 are needed"
_NO_SPREAD = "all windows gave the same value, so their spread says nothing"


@dataclass(frozen=True, slots=True)
class DivergenceRows:
    """The rows that count: one per variant by (model, quant tag), and one floor per model."""

    variants: dict[tuple[str, str], DivergenceRow]
    floors: dict[str, DivergenceRow]


def select_rows(rows: Iterable[DivergenceRow], plan_digest: str) -> DivergenceRows:
    """Pick the row that counts for each variant and floor of a plan, whatever the order of the rows.

    A failed attempt may have been tried again later: a measured row beats an unavailable one.
    """
    chosen = DivergenceRows({}, {})
    for row in sorted(rows, key=lambda row: (row.unavailable is None, str(row.unavailable), row.detail)):
        if row.plan_digest != plan_digest:
            continue
        if row.kind is DivergenceKind.FLOOR:
            chosen.floors[row.model_id] = row
        else:
            chosen.variants[row.model_id, row.quant_tag] = row
    return chosen


def estimate_divergence(
    row: DivergenceRow, floor: DivergenceRow | None, *, level: float = LEVEL, divergence_level: float
) -> DivergenceEstimate:
    """Estimate everything that a row shows, with intervals by window at `level`.

    `floor` is the row of the reference against itself, `divergence_level` the error that the harm test may spend (for
    `lower_bound`). Every `None` has its reason in `unavailable`.
    """
    units = _Units.of(row) if row.windows else None
    mean = units.mean(level) if units else None
    floor_nats = significant(_Units.of(floor).pooled_mean) if floor is not None and floor.windows else None
    bound = divergence_lower_bound(row, divergence_level)
    found: dict[str, Estimate | float | bool | None] = {
        "mean_nats": mean,
        "p99_nats": units.high_quantile(level) if units else None,
        "top_token_agreement": units.agreement(level) if units else None,
        "perplexity_ratio": units.perplexity_ratio(level) if units else None,
        "reference_perplexity": units.perplexity(units.reference_nll) if units else None,
        "variant_perplexity": units.perplexity(units.variant_nll) if units else None,
        "floor_nats": floor_nats,
        "below_floor": None if mean is None or floor_nats is None else mean.value <= floor_nats,
        "truncation_nats": None if row.audit is None else significant(row.audit.exact_nats - row.audit.compact_nats),
        "lower_bound": None if bound is None else significant(bound),
    }
    return DivergenceEstimate(
        text_name=row.text_name,
        text_digest=row.text_digest,
        method=row.method.value,
        engine=row.engine,
        engine_version=row.engine_version,
        windows=len(row.windows),
        positions=sum(len(window.kl_nats) for window in row.windows),
        top_k=row.top_k,
        unavailable={name: _reason(name, row, floor) for name, value in found.items() if value is None},
        **found,  # type: ignore[arg-type]
    )


def _reason(name: str, row: DivergenceRow, floor: DivergenceRow | None) -> str:
    """Why one field of an estimate is `None`."""
    if name in {"floor_nats", "below_floor"} and (name == "floor_nats" or row.windows):
        return str((floor.unavailable if floor is not None else None) or DivergenceReason.NOT_RUN)
    if row.unavailable is not None:
        return str(row.unavailable)
    if name == "truncation_nats" and row.method is DivergenceMethod.SERVER_TOP_LOGPROBS:
        return str(Unavailable.NOT_SUPPORTED)
    return str(Unavailable.TOO_FEW_SAMPLES if name == "lower_bound" else Unavailable.NOT_REPORTED)


def divergence_harm_p_value(row: DivergenceRow, harm_nats: float) -> float | None:
    """One-sided p-value for H0: mean divergence <= `harm_nats` (nats per token), from the windows' means by a t test.

    `None` without data, with fewer than 2 windows, and when all windows agree exactly (then nothing shows their spread).
    Divergence is skewed to the right, across windows too. A sample that happens to miss the long tail has a low mean *and* a
    small spread, one that catches it a high mean and a large spread; t is therefore skewed to the left, and large values of
    it are rarer than Student's distribution says: for this side the test is conservative.
    Source: Johnson (1978), Modified t Tests and Confidence Intervals for Asymmetrical Populations, JASA 73(363), 536-544.
    """
    spread = _window_spread(row)
    if spread is None:
        return None
    from scipy import special

    mean, error, windows = spread
    return float(special.stdtr(windows - 1, -(mean - harm_nats) / error))


def divergence_lower_bound(row: DivergenceRow, level: float) -> float | None:
    """One-sided lower confidence limit of the mean, nats: the largest harm line that the test rejects at `level` (0..1).

    Never below 0. `None` where the test has no p-value.
    """
    spread = _window_spread(row)
    if spread is None:
        return None
    from scipy import special

    mean, error, windows = spread
    return max(0.0, mean + float(special.stdtrit(windows - 1, level)) * error)


def _window_spread(row: DivergenceRow) -> tuple[float, float, int] | None:
    """Mean of the windows' means, its standard error, and the number of windows."""
    means = [math.fsum(window.kl_nats) / len(window.kl_nats) for window in row.windows if window.kl_nats]
    if len(means) < 2 or max(means) == min(means):
        return None
    mean = math.fsum(means) / len(means)
    variance = math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return mean, math.sqrt(variance / len(means)), len(means)


@dataclass(frozen=True, slots=True)
class _Units:
    """Sums over the units that are drawn anew: windows, or blocks of adjacent windows where there are very many.

    All arrays are `float64[units]`, except `values` and `unit_of`, which hold every position.
    """

    divergence: Floats
    positions: Floats
    same_top: Floats
    reference_nll: Floats | None
    variant_nll: Floats | None
    values: Floats
    unit_of: Whole

    @classmethod
    def of(cls, row: DivergenceRow) -> _Units:
        """Sum a row with at least one position. Sorted by content, so that the drawing depends on the data alone."""
        windows = row.windows
        per_unit = math.ceil(len(windows) / MAX_BOOTSTRAP_UNITS)
        unit_of_window = np.arange(len(windows)) // per_unit
        positions = np.array([len(window.kl_nats) for window in windows], dtype=np.float64)

        def summed(values: list[float]) -> Floats:
            return np.bincount(unit_of_window, weights=values).astype(np.float64)

        reference = [window.reference_nll_nats for window in windows]
        variant = [window.variant_nll_nats for window in windows]
        known_reference = [value for value in reference if value is not None]
        known_variant = [value for value in variant if value is not None]
        both = len(known_reference) == len(known_variant) == len(windows)
        return cls(
            divergence=summed([math.fsum(window.kl_nats) for window in windows]),
            positions=summed(positions.tolist()),
            same_top=summed([float(window.same_top) for window in windows]),
            reference_nll=summed(known_reference) if both else None,
            variant_nll=summed(known_variant) if both else None,
            values=np.concatenate([np.asarray(window.kl_nats, dtype=np.float64) for window in windows]),
            unit_of=np.repeat(unit_of_window, positions.astype(np.int64)),
        )

    @property
    def count(self) -> int:
        return len(self.positions)

    @property
    def pooled_mean(self) -> float:
        """Mean divergence per position, nats."""
        return math.fsum(self.divergence.tolist()) / math.fsum(self.positions.tolist())

    def mean(self, level: float) -> Estimate:
        """Mean divergence per position, nats."""
        return self._pooled(self.divergence, level)

    def agreement(self, level: float) -> Estimate:
        """Share of positions with the same most likely token; equal windows leave room for what an unseen window may show."""
        found = self._pooled(self.same_top, level)
        if found.low is not None or self.count < 2:
            return found
        share, p = found.value, unseen_share(self.count, level)
        return _estimate(share, (share * (1 - p), share * (1 - p) + p), level=level, n=self.count, method=IDENTICAL)

    def perplexity(self, nll: Floats | None) -> float | None:
        """exp of the mean negative log-likelihood per position."""
        return None if nll is None else significant(math.exp(float(nll.sum()) / float(self.positions.sum())))

    def perplexity_ratio(self, level: float) -> Estimate | None:
        """exp of the mean difference of log-likelihoods on the same tokens: paired, so the text's own difficulty cancels."""
        if self.reference_nll is None or self.variant_nll is None:
            return None
        log = self._pooled(self.variant_nll - self.reference_nll, level, exact=True)
        limits = None if log.low is None or log.high is None else (math.exp(log.low), math.exp(log.high))
        return _estimate(math.exp(log.value), limits, level=level, n=self.count, reason=log.reason)

    def high_quantile(self, level: float) -> Estimate:
        """The 99th percentile of all positions; windows are drawn anew and pooled, so that dependence inside them counts.

        A resample never exceeds the largest value seen, so the upper limit is short where few positions lie beyond.
        """
        order = np.argsort(-self.values, kind="stable")
        descending, unit_of = self.values[order], self.unit_of[order]
        value = float(_upper_quantiles(descending, unit_of, np.ones((1, self.count), dtype=np.int64))[0])
        if self.count < 2 or descending[0] == descending[-1]:
            return _estimate(value, None, level=level, n=self.count, reason=_ONE_WINDOW if self.count < 2 else _NO_SPREAD)
        times = np.rint(resample_shares(self.count) * self.count).astype(np.int64)
        limits = percentile_limits(_upper_quantiles(descending, unit_of, times), self.count, level)
        return _estimate(value, limits, level=level, n=self.count)

    def _pooled(self, sums: Floats, level: float, *, exact: bool = False) -> Estimate:
        """A mean per position from sums per unit; `exact` leaves the rounding to the caller."""
        value = math.fsum(sums.tolist()) / math.fsum(self.positions.tolist())
        per_unit = sums / self.positions
        if self.count < 2 or np.ptp(per_unit) == 0:
            reason = _ONE_WINDOW if self.count < 2 else _NO_SPREAD
            return _estimate(value, None, level=level, n=self.count, reason=reason, exact=exact)
        order = np.lexsort((self.positions, sums))
        shares = resample_shares(self.count)
        limits = percentile_limits((shares @ sums[order]) / (shares @ self.positions[order]), self.count, level)
        return _estimate(value, limits, level=level, n=self.count, exact=exact)


def _upper_quantiles(descending: Floats, unit_of: Whole, times: Whole) -> Floats:
    """Return `float64[resamples]`: the 99th percentile of every resample, linear between ranks as numpy's and llama.cpp's.

    `times[r, u]` says how often resample `r` holds unit `u`. Only as many of the largest values are looked at as are needed.
    """
    ranks = ((times @ np.bincount(unit_of, minlength=times.shape[1])) - 1) * (1 - HIGH_QUANTILE)
    whole = np.floor(ranks).astype(np.int64)
    width = min(len(descending), 4 * (int(whole.max()) + 2))
    found = np.empty(len(times))
    step = max(1, _CELLS_AT_ONCE // len(descending))
    for start in range(0, len(times), step):
        part = slice(start, start + step)
        seen = np.cumsum(times[part][:, unit_of[:width]], axis=1)
        if width < len(descending) and seen[:, -1].min() < whole[part].max() + 2:
            seen = np.cumsum(times[part][:, unit_of], axis=1)
        upper = (seen <= whole[part, None]).sum(axis=1)
        lower = np.minimum((seen <= whole[part, None] + 1).sum(axis=1), len(descending) - 1)
        weight = ranks[part] - whole[part]
        found[part] = descending[upper] * (1 - weight) + descending[lower] * weight
    return found


def significant(value: float) -> float:
    """Round to `SIGNIFICANT_DIGITS`; never -0."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0


def _estimate(
    value: float,
    limits: tuple[float, float] | None,
    *,
    level: float,
    n: int,
    method: str = WINDOW_BOOTSTRAP,
    reason: str = "",
    exact: bool = False,
) -> Estimate:
    low, high = limits if limits is not None else (None, None)
    if not exact:
        value = significant(value)
        low, high = (None if limit is None else significant(limit) for limit in (low, high))
    return Estimate(value=value, low=low, high=high, level=level, method=method, n=n, reason=reason)
