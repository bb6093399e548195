"""Racing probes: which (group, type) options still need windows before the budgeted choice is settled. Pure.

Every option begins with a few windows of the text. All options read the same windows in the same order, so they are paired: a
window that is hard for the model is hard for all of them. After each round the choice is made again under resampled windows. An
option stays *live* while some resample picks it and its group is not agreed on; only live options read further windows. The
race ends when the choice that the estimates say loses at most `TOLERATED_REGRET` against each resample's own best choice, in
`level` of the resamples (no loss at all where they pick the same), or when all live options have read every window.

Estimates. An option that read the first n of N windows has the mean of its windows, times the text's difficulty over N windows
divided by that over n: the ratio estimator of two-phase sampling. Difficulty of a window is the mean, over the options that read
all N, of its KL relative to the option's own mean.

Resampling. Windows get weights drawn from Exp(1) (the Bayesian bootstrap), the same for every option: prefixes of different
lengths stay paired, and no prefix ever comes out empty. Such weights spread a mean by s (n-1)^0.5 / (n (n+1))^0.5 where it really
spreads by s / n^0.5, so logarithms of estimates are stretched by ((n+1) / (n-1))^0.5.

What is not done: no number is made up. An option whose probe failed has none and cannot be chosen; a larger type that measures
worse than a smaller one is left so (it happens, near the source's own grid), nothing is smoothed towards an order.

Sources: Cochran (1977), Sampling Techniques, section 12.9 (ratio estimator, two-phase); Rubin (1981), The Bayesian Bootstrap,
Annals of Statistics 9(1), 130-134; Maron and Moore (1994), Hoeffding Races, NIPS 6 (only undecided candidates get more data);
Chick and Inoue (2001), New Two-Stage and Sequential Procedures for Selecting the Best Simulated System, Operations Research
49(5), 732-743 (stopping by what a wrong choice would cost, rather than by whether it is the same).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewbits.analysis.divergence import significant
from fewbits.analysis.knapsack import Bytes, Choice, Option, Picks, best_picks, choose, picked
from fewbits.analysis.statistics import Floats, percentile_limits
from fewbits.core.errors import BackendError, Problem, SpecError
from fewbits.records.estimate import Estimate
from fewbits.records.recipe import ExcludedOption

TOLERATED_REGRET = 0.02
"""Share of the total divergence. The additive model itself is off by 2-4 % on SmolLM2 (once by 14 %), so nothing finer shows."""
BAYESIAN_BOOTSTRAP = "Bayesian bootstrap by window, expanded percentile"
SCALE_OPTIONS = 3
"""Options of each choice that read every window."""
_MINIMUM_WINDOWS = 2

Key = tuple[str, str]
"""(group, ggml type)."""


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How many windows are read, and how sure the choice must be."""

    windows: int
    """Windows that an option reads at most, 2 or more."""
    first_windows: int
    """Windows that every option reads, 2..windows (4 is a good start)."""
    step_windows: int
    """Windows that a live option reads in each further round, 1 or more."""
    resamples: int
    """Resampled choices per round, and resamples of the intervals, 20 or more."""
    seed: int
    level: float
    """Share of resamples that must agree, and coverage of the intervals, 0..1."""

    def check(self) -> None:
        """Raise `SpecError` with every value that is out of its range."""
        rules = (
            ("windows", self.windows >= _MINIMUM_WINDOWS, "2 or more: one window has no spread"),
            ("first_windows", _MINIMUM_WINDOWS <= self.first_windows <= self.windows, "between 2 and `windows`"),
            ("step_windows", self.step_windows >= 1, "1 or more"),
            ("resamples", self.resamples >= 20, "20 or more"),
            ("level", 0.5 <= self.level < 1, "between 0.5 and 1"),
        )
        problems = [Problem(name, f"{getattr(self, name)} is not possible", hint) for name, fine, hint in rules if not fine]
        if problems:
            raise SpecError(problems)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Windows that an option should read next."""

    group: str
    ggml_type: str
    first_window: int
    windows: int


@dataclass(frozen=True, slots=True)
class OptionEstimate:
    """What is known of one type of one group."""

    kl: float | None
    """Mean KL over the text's windows, nats per token, 0 or more; `None` when its probe failed."""
    low: float | None
    high: float | None
    windows: int
    excluded: ExcludedOption | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stability:
    """How settled a choice is."""

    same_picks: float
    """Share of resamples that pick exactly the same, 0..1."""
    regret: float
    """Relative loss against each resample's own best choice, at the settings' level; 0.01 = 1 %."""


class ProbeRace:
    """A race over options of known size, for several budgets at once. Depends on nothing but the readings and the settings."""

    def __init__(self, sizes: Mapping[str, Mapping[str, int]], budgets: Mapping[str, int], settings: SearchSettings) -> None:
        """`sizes`: group -> ggml type -> bytes; `budgets`: name -> bytes for all groups together.

        Raises `SpecError` naming every budget that even the smallest types exceed.
        """
        settings.check()
        self._settings = settings
        self._budgets = dict(sorted(budgets.items()))
        self._sizes: dict[Key, int] = {
            (group, name): size
            for group in sorted(sizes)
            for name, size in sorted(sizes[group].items(), key=lambda item: (item[1], item[0]))
        }
        self._readings: dict[Key, list[float]] = {key: [] for key in self._sizes}
        self._failed: dict[Key, str] = {}
        self._dominated: dict[Key, str] = {}
        self._check_groups(sizes)
        self._check_budgets()

    def _check_groups(self, sizes: Mapping[str, Mapping[str, int]]) -> None:
        problems = [
            Problem(group, "no type is left to choose from", "allow more types") for group, types in sizes.items() if not types
        ]
        if problems or not sizes:
            raise SpecError(
                problems or [Problem("groups", "there is nothing to choose for", "the model has no tensor to quantize")]
            )

    def _check_budgets(self) -> None:
        options = self._options(dict.fromkeys(self._sizes, 0.0))
        problems: list[Problem] = []
        for name, budget in self._budgets.items():
            try:
                choose(options, budget, where=name)
            except SpecError as error:
                problems.extend(error.problems)
        if problems:
            raise SpecError(problems)

    def add(self, wanted: Wanted, kl_nats: Sequence[float]) -> None:
        """Take the readings of what was wanted: mean KL per window, in order. Rounding below 0 counts as 0."""
        readings = self._readings[wanted.group, wanted.ggml_type]
        if wanted.first_window != len(readings) or len(kl_nats) != wanted.windows:
            msg = f"{wanted} does not follow the {len(readings)} windows that were read"
            raise ValueError(msg)
        readings.extend(max(0.0, value) for value in kl_nats)

    def fail(self, group: str, ggml_type: str, reason: str) -> None:
        """Leave an option out: it could not be measured. Raises `BackendError` when a group has no option left.

        Raises `SpecError` when what is left no longer fits a budget.
        """
        self._failed[group, ggml_type] = reason
        # what it beat may have to stand in for it
        self._dominated = {key: why for key, why in self._dominated.items() if key[0] != group}
        if not self._by_group().get(group):
            tool = f"probes of {group}"
            raise BackendError(tool, f"every type failed, {ggml_type} with: {reason}")
        self._check_budgets()

    def wanted(self) -> tuple[Wanted, ...]:
        """Return what should be read next, in order of groups and sizes; nothing when the race is over."""
        settings = self._settings
        begin = [key for key in self._alive() if not self._readings[key]]
        if begin:
            return tuple(Wanted(*key, 0, settings.first_windows) for key in begin)
        self._drop_dominated()
        table = self._table()
        live: set[Key] = set()
        settled = True
        for budget in self._budgets.values():
            picks = best_picks(table.resampled, table.sizes, budget)
            settled = settled and table.stability(picks, budget, settings.level).regret <= TOLERATED_REGRET
            live |= table.disputed(picks)
        live = set() if settled else live
        further = tuple(
            Wanted(*key, read, min(settings.step_windows, settings.windows - read))
            for key in self._alive()
            if key in live and (read := len(self._readings[key])) < settings.windows
        )
        return further or self._scale()

    def _scale(self) -> tuple[Wanted, ...]:
        """Let the dearest options of each choice read everything: the first windows may be harder or easier than the rest.

        How hard a window is shows on them, and puts the estimates of all others on the scale of the whole text.
        """
        centre = dict(zip(self._alive(), _estimates(self._readings_of(self._alive())).tolist(), strict=True))
        dearest: set[Key] = set()
        for choice in self.choices().values():
            dearest |= set(sorted(choice.picks.items(), key=lambda key: (-centre[key], key))[:SCALE_OPTIONS])
        windows = self._settings.windows
        return tuple(
            Wanted(*key, read, windows - read) for key in sorted(dearest) if (read := len(self._readings[key])) < windows
        )

    def stability(self) -> dict[str, Stability]:
        """Return budget -> how settled its choice is, on what was read so far."""
        table = self._table()
        return {
            name: table.stability(best_picks(table.resampled, table.sizes, budget), budget, self._settings.level)
            for name, budget in self._budgets.items()
        }

    def choices(self) -> dict[str, Choice]:
        """Return budget -> the best choice by the estimates."""
        keys = self._alive()
        centre = dict(zip(keys, _estimates(self._readings_of(keys)).tolist(), strict=True))
        options = self._options(centre)
        return {name: choose(options, budget, where=name) for name, budget in self._budgets.items()}

    def options(self) -> dict[str, dict[str, OptionEstimate]]:
        """Return group -> ggml type -> what is known of it, fewest bytes first; failed and dominated ones included."""
        keys = [key for key in self._sizes if self._readings[key]]
        sample = self._sample(keys, _for_limits)
        found: dict[str, dict[str, OptionEstimate]] = {}
        places = {key: place for place, key in enumerate(keys)}
        for key in self._sizes:
            found.setdefault(key[0], {})[key[1]] = (
                self._estimate(key, sample, places[key]) if key in places else self._unmeasured(key)
            )
        return found

    def prediction(self, choice: Choice) -> Estimate:
        """Estimate a choice's total KL, nats per token, by the additive model: the sum of its options, resampled together."""
        keys = [(group, name) for group, name in choice.picks.items()]
        every = [key for key in self._sizes if self._readings[key]]
        sample = self._sample(every, _for_limits)
        columns = [every.index(key) for key in keys]
        windows = max(len(self._readings[key]) for key in every)
        limits = percentile_limits(sample.resampled[:, columns].sum(axis=1), windows, self._settings.level)
        value = math.fsum(sample.centre[columns].tolist())
        return Estimate(
            value=significant(value),
            low=significant(limits[0]),
            high=significant(limits[1]),
            level=self._settings.level,
            method=BAYESIAN_BOOTSTRAP,
            n=windows,
        )

    def _estimate(self, key: Key, sample: _Sample, place: int) -> OptionEstimate:
        windows = len(self._readings[key])
        low, high = percentile_limits(sample.resampled[:, place], windows, self._settings.level)
        dominated = self._dominated.get(key)
        failed = self._failed.get(key)
        return OptionEstimate(
            kl=None if failed is not None else significant(float(sample.centre[place])),
            low=None if failed is not None else significant(low),
            high=None if failed is not None else significant(high),
            windows=windows,
            excluded=None if dominated is None else ExcludedOption.DOMINATED,
            detail=dominated or (f"the probe failed: {failed}" if failed is not None else ""),
        )

    def _unmeasured(self, key: Key) -> OptionEstimate:
        failed = self._failed.get(key)
        return OptionEstimate(None, None, None, 0, detail="not probed" if failed is None else f"the probe failed: {failed}")

    def _alive(self) -> list[Key]:
        return [key for key in self._sizes if key not in self._failed and key not in self._dominated]

    def _by_group(self) -> dict[str, list[Key]]:
        groups: dict[str, list[Key]] = {}
        for key in self._alive():
            groups.setdefault(key[0], []).append(key)
        return groups

    def _options(self, costs: Mapping[Key, float]) -> dict[str, list[Option]]:
        return {group: [Option(key[1], self._sizes[key], costs[key]) for key in keys] for group, keys in self._by_group().items()}

    def _readings_of(self, keys: Sequence[Key]) -> _Readings:
        """The readings of `keys`, measured against the difficulty that all readings show."""
        return _Readings.of([self._readings[key] for key in keys], [row for row in self._readings.values() if row])

    def _sample(self, keys: Sequence[Key], stretch: Callable[[Floats], Floats]) -> _Sample:
        settings = self._settings
        readings = self._readings_of(keys)
        weights = np.random.Generator(np.random.PCG64(settings.seed)).exponential(size=(settings.resamples, settings.windows))
        return _Sample(_estimates(readings), _resampled(readings, weights[:, : readings.longest], stretch))

    def _table(self) -> _Table:
        keys = self._alive()
        return _Table.of(keys, self._sizes, self._sample(keys, _for_decisions))

    def _drop_dominated(self) -> None:
        """Leave out options that another one of the group beats: no larger, and certainly a lower KL."""
        for keys in self._by_group().values():
            for key in keys:
                for other in keys:
                    smaller = other not in self._dominated and self._sizes[other] <= self._sizes[key]
                    if smaller and self._certainly_worse(key, other):
                        self._dominated[key] = f"{other[1]} takes no more bytes and diverges less"
                        break

    def _certainly_worse(self, key: Key, other: Key) -> bool:
        """True when the paired difference over the windows that both read is above 0 beyond its interval (t, by window).

        The differences are skewed to the right, for which the lower limit of t is cautious; see `analysis.divergence`.
        """
        from scipy import special

        common = min(len(self._readings[key]), len(self._readings[other]))
        differences = np.subtract(self._readings[key][:common], self._readings[other][:common])
        spread = float(np.std(differences, ddof=1))
        reach = -float(special.stdtrit(common - 1, (1 - self._settings.level) / 2)) * spread / math.sqrt(common)
        return spread > 0 and float(differences.mean()) - reach > 0


@dataclass(frozen=True, slots=True)
class _Readings:
    """Options in rows: KL by window (0 beyond what was read), how many windows each read, and the windows' difficulty."""

    kl: Floats
    """`float64[options, longest]`."""
    counts: Picks
    difficulty: Floats
    """`float64[longest]`, mean 1."""

    @property
    def longest(self) -> int:
        """Windows that the furthest option read."""
        return len(self.difficulty)

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], every: Sequence[Sequence[float]]) -> _Readings:
        longest = max(len(row) for row in every)
        full = np.array([row for row in every if len(row) == longest and sum(row) > 0])
        difficulty = (full / full.mean(axis=1, keepdims=True)).mean(axis=0) if len(full) else np.ones(longest)
        kl = np.zeros((len(rows), longest))
        for place, row in enumerate(rows):
            kl[place, : len(row)] = row
        # a window on which nothing diverges at all carries no scale: it must not divide
        return cls(kl, np.array([len(row) for row in rows]), np.maximum(difficulty, 1e-6))


@dataclass(frozen=True, slots=True)
class _Sample:
    """Estimates (`float64[options]`) and their resamples (`float64[resamples, options]`), nats per token."""

    centre: Floats
    resampled: Floats


def _weighted(readings: _Readings, weights: Floats) -> Floats:
    """Return `float64[rows of weights, options]`: the ratio estimate under weights (`float64[rows, longest]`)."""
    hard = np.cumsum(weights * readings.difficulty, axis=1)
    means: Floats = (weights @ readings.kl.T) / hard[:, readings.counts - 1] * (hard[:, -1] / weights.sum(axis=1))[:, None]
    return means


def _estimates(readings: _Readings) -> Floats:
    """Return `float64[options]`: mean KL over the text's windows, nats per token."""
    return _weighted(readings, np.ones((1, readings.longest))).ravel()


def _resampled(readings: _Readings, weights: Floats, stretch: Callable[[Floats], Floats]) -> Floats:
    """Return `float64[resamples, options]`: estimates under resampled windows, stretched in the logarithm."""
    centre = _estimates(readings)
    safe = np.where(centre > 0, centre, 1.0)
    ratio = np.where(centre > 0, _weighted(readings, weights) / safe, 1.0)
    resampled: Floats = centre * ratio ** stretch(readings.counts.astype(np.float64))
    return resampled


def _for_decisions(counts: Floats) -> Floats:
    """Stretch so that the spread is s / sqrt(n)."""
    return np.asarray(np.sqrt((counts + 1) / (counts - 1)))


def _for_limits(counts: Floats) -> Floats:
    """Stretch to the spread of the ordinary bootstrap; `percentile_limits` does the rest."""
    return np.asarray(np.sqrt((counts + 1) / counts))


@dataclass(frozen=True, slots=True)
class _Table:
    """Options by group: what `best_picks` takes."""

    keys: tuple[tuple[Key, ...], ...]
    sizes: Bytes
    """`int64[groups, options]`."""
    centre: Floats
    """`float64[1, groups, options]`, infinite where a group has no such option."""
    resampled: Floats
    """`float64[resamples, groups, options]`."""

    @classmethod
    def of(cls, keys: Sequence[Key], sizes: Mapping[Key, int], sample: _Sample) -> _Table:
        groups: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(key[0], []).append(place)
        width = max(len(places) for places in groups.values())
        table = np.zeros((len(groups), width), dtype=np.int64)
        costs = np.full((1 + len(sample.resampled), len(groups), width), np.inf)
        for row, places in enumerate(groups.values()):
            table[row, : len(places)] = [sizes[keys[place]] for place in places]
            costs[0, row, : len(places)] = sample.centre[places]
            costs[1:, row, : len(places)] = sample.resampled[:, places]
        named = tuple(tuple(keys[place] for place in places) for places in groups.values())
        return cls(named, table, costs[:1], costs[1:])

    def stability(self, best: Picks, budget: int, level: float) -> Stability:
        """Compare the choice by the estimates with each resample's own best one (`int[resamples, groups]`)."""
        chosen = np.repeat(best_picks(self.centre, self.sizes, budget), len(best), axis=0)
        least = picked(self.resampled, best)
        loss = picked(self.resampled, chosen) - least
        regret = np.where(loss > 0, loss / np.where(least > 0, least, np.nan), 0.0)
        worst = float(np.quantile(np.nan_to_num(regret, nan=np.inf), level, method="higher"))
        return Stability(same_picks=float((best == chosen).all(axis=1).mean()), regret=worst)

    def disputed(self, best: Picks) -> set[Key]:
        """Options that some resample picks, in groups on which the resamples do not agree."""
        return {
            self.keys[group][place]
            for group, column in enumerate(best.T)
            if len(places := np.unique(column)) > 1
            for place in places.tolist()
        }
