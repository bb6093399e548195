"""The search for a recipe: probe what the race asks for, keep every probe in a journal, choose for every budget.

A search that was killed goes on where it stopped: the race depends on nothing but readings and settings, so it asks for the same
probes again and finds them in the journal. A probe that failed before is tried once more by the next run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fewbits.analysis.knapsack import Choice
from fewbits.analysis.recipe_race import OptionEstimate, ProbeRace, SearchSettings, Stability, Wanted
from fewbits.core.errors import BackendError, ProtocolError
from fewbits.records.estimate import Estimate
from fewbits.records.recipe import ProbeRow, ProbeStatus
from fewbits.store.journal import JournalWriter, read_journal

__all__ = ["OptionEstimate", "Prober", "SearchResult", "SearchSettings", "search"]

_HOPELESS = 5
"""Failures before any success after which the engine is taken to be broken, not the types."""
_DETAIL_LIMIT = 2000


class Prober(Protocol):
    """Measures one group at one type, everything else at the reference's precision."""

    def measure(self, group: str, ggml_type: str, first_window: int, windows: int) -> tuple[float, ...]:
        """Return the mean KL of each window, nats per token. Raises `BackendError`, `ProtocolError` when this one fails."""
        ...


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found."""

    options: dict[str, dict[str, OptionEstimate]]
    """Group -> ggml type -> estimate, fewest bytes first."""
    choices: dict[str, Choice]
    """Budget -> the best choice by the estimates; `cost` is the additive prediction, nats per token."""
    predicted: dict[str, Estimate]
    """Budget -> the additive prediction with its interval, nats per token."""
    stability: dict[str, Stability]
    """Budget -> how settled the choice is."""
    probes: int
    """Probes that were made, failed ones included, earlier runs of the same search included."""
    windows_read: int
    exhaustive_windows: int
    """What probing every option on all windows would have read."""
    wall_seconds: float
    """Spent inside the prober, over all runs of the search."""


def search(  # noqa: PLR0917 - the signature that the parts agreed on
    groups: Mapping[str, Mapping[str, int]],
    budgets: Mapping[str, int],
    prober: Prober,
    settings: SearchSettings,
    journal: Path,
    search_digest: str,
    progress: Callable[[str], None],
) -> SearchResult:
    """Race the options and choose. `groups`: group -> ggml type -> bytes; `budgets`: name -> bytes for all groups together.

    Several budgets share the probes. An option whose probe fails is left out and keeps the reason. Raises, before any probe,
    `SpecError` for budgets that even the smallest types exceed; later `BackendError` when a group has no type that works or
    nothing works at all, `SpecError` when what failed makes a budget impossible, `StoreError` for the journal.
    """
    race = ProbeRace(groups, budgets, settings)
    known = _Known.read(journal, search_digest)
    if known.probes:
        progress(f"{known.probes} probes are in the journal already")
    bench = _Bench(prober, known, JournalWriter(journal), search_digest, progress)
    try:
        planned = done = 0
        while wanted := race.wanted():
            planned += len(wanted)
            for step in wanted:
                done += 1
                bench.take(race, step, f"{done}/{planned}")
    finally:
        bench.writer.close()
    choices = race.choices()
    return SearchResult(
        options=race.options(),
        choices=choices,
        predicted={name: race.prediction(choice) for name, choice in choices.items()},
        stability=race.stability(),
        probes=known.probes,
        windows_read=known.windows_read,
        exhaustive_windows=settings.windows * sum(len(types) for types in groups.values()),
        wall_seconds=known.wall_seconds,
    )


@dataclass(slots=True)
class _Known:
    """What the journal holds of this search."""

    readings: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    """(group, type) -> window -> mean KL, nats per token."""
    probes: int = 0
    windows_read: int = 0
    wall_seconds: float = 0.0

    @classmethod
    def read(cls, journal: Path, search_digest: str) -> _Known:
        known = cls()
        for row in read_journal(journal, ProbeRow).rows:
            if row.search_digest == search_digest:
                known.add(row)
        return known

    def add(self, row: ProbeRow) -> None:
        """Count a row; where two rows read one window, the first stands."""
        self.probes += 1
        self.windows_read += len(row.kl_nats)
        self.wall_seconds += row.wall_seconds
        readings = self.readings.setdefault((row.group, row.ggml_type), {})
        for place, value in enumerate(row.kl_nats):
            readings.setdefault(row.first_window + place, value)


@dataclass(slots=True)
class _Bench:
    """The prober with its journal."""

    prober: Prober
    known: _Known
    writer: JournalWriter
    search_digest: str
    progress: Callable[[str], None]
    succeeded: bool = False
    failures: int = 0

    def take(self, race: ProbeRace, step: Wanted, place: str) -> None:
        """Give the race what it wants: from the journal, else from the prober; or tell it that the option failed."""
        readings = self.known.readings.setdefault((step.group, step.ggml_type), {})
        windows = range(step.first_window, step.first_window + step.windows)
        missing = [window for window in windows if window not in readings]
        if missing:
            row = self._probe(step, missing[0], missing[-1] - missing[0] + 1)
            if row.status is ProbeStatus.FAILED:
                self.progress(f"probe {place} {step.group} {step.ggml_type}: failed, left out: {row.detail}")
                race.fail(step.group, step.ggml_type, row.detail)
                self._give_up_if_hopeless(row.detail)
                return
        self.succeeded = True
        race.add(step, [readings[window] for window in windows])
        if missing:
            mean = math.fsum(readings[window] for window in windows) / step.windows
            self.progress(f"probe {place} {step.group} {step.ggml_type}: {mean:.4g} nats")

    def _probe(self, step: Wanted, first_window: int, windows: int) -> ProbeRow:
        values: tuple[float, ...] = ()
        detail = ""
        start = time.perf_counter()
        try:
            values = self.prober.measure(step.group, step.ggml_type, first_window, windows)
            detail = _unusable(values, windows)
        except (BackendError, ProtocolError) as error:
            detail = str(error) or type(error).__name__
        row = ProbeRow(
            search_digest=self.search_digest,
            group=step.group,
            ggml_type=step.ggml_type,
            first_window=first_window,
            kl_nats=() if detail else tuple(values),
            status=ProbeStatus.FAILED if detail else ProbeStatus.OK,
            detail=detail[:_DETAIL_LIMIT],
            wall_seconds=round(time.perf_counter() - start, 6),
        )
        self.writer.append(row)
        self.known.add(row)
        return row

    def _give_up_if_hopeless(self, detail: str) -> None:
        self.failures += 1
        if not self.succeeded and self.failures >= _HOPELESS:
            tool = "probes"
            raise BackendError(tool, f"the first {_HOPELESS} all failed; the last with: {detail}")


def _unusable(values: Sequence[float], windows: int) -> str:
    """Say what is wrong with a prober's answer; empty when it can be used."""
    if len(values) != windows:
        return f"{len(values)} windows came back, {windows} were asked for"
    broken = [value for value in values if not math.isfinite(value)]
    return f"a window's divergence is {broken[0]}, not a number" if broken else ""
