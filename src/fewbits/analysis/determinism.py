"""Whether a variant repeats itself: the same request, asked more than once, over channels that are declared here.

Timings are no channel: they never repeat, and nobody expects them to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fewbits.analysis.statistics import rounded
from fewbits.analysis.trial_table import DETERMINISM, MATRIX
from fewbits.records.base import TrialStatus
from fewbits.records.summary import DeterminismDetail, FirstDivergence
from fewbits.records.trial import TrialView

OUTPUT_TEXT = "output_text"
OUTCOME = "adherence_score"
CHANNELS: Mapping[str, Callable[[TrialView], Any]] = {
    OUTPUT_TEXT: lambda trial: trial.output_sha256,
    "finish_reason": lambda trial: trial.finish_reason,
    "output_tokens": lambda trial: trial.telemetry.token_metrics.output_tokens,
    OUTCOME: lambda trial: trial.adherence_score,
}
"""What is compared, in this order. A value that was not reported (`None`) agrees with every other."""

PHASES = (MATRIX, DETERMINISM)
"""Phases of the journal whose rows are asked with the same request: attempts, repetitions, and repeats at the end."""
FLOOR_LEVEL = 0.95
SNIPPET_CHARACTERS = 40
_DIGEST_DIGITS = 16
_Cell = Sequence[TrialView]
Cells = tuple[tuple[TrialView, ...], ...]
"""Repeated cells of one variant: groups of at least two runs of the same request."""


def determinism_of(cells: Cells, first_divergence: FirstDivergence | None = None) -> DeterminismDetail:
    """Judge the repeats of one variant (`repeated_cells`). Without any every rate is `None`.

    `first_divergence` comes from `describe_divergence`; it needs the texts, which views lack.
    """
    same_output = sum(not _differing(cell, _OUTPUT_CHANNELS) for cell in cells)
    scored = [cell for cell in cells if all(trial.adherence_score is not None for trial in cell)]
    same_outcome = sum(not _differing(cell, (OUTCOME,)) for cell in scored)
    return DeterminismDetail(
        cells=len(cells),
        same_output_rate=rounded(same_output / len(cells)) if cells else None,
        same_outcome_rate=rounded(same_outcome / len(scored)) if scored else None,
        agreement_floor=rounded(agreement_floor(same_output, len(cells))) if cells else None,
        deterministic=not any(_differing(cell, CHANNELS) for cell in cells) if cells else None,
        channels=tuple(CHANNELS),
        first_divergence=first_divergence,
    )


_OUTPUT_CHANNELS = tuple(name for name in CHANNELS if name != OUTCOME)


def repeated_cells(trials: Iterable[TrialView]) -> Cells:
    """Return the groups of at least two repeats, by task id; inside a group in the order in which they were asked.

    `trials` are all journal rows of one variant, superseded attempts included, in any order. Repeats are rows of one task that
    ended `OK` under the same effective controls on the same weights and the same engine version: a resumed run after an update
    compares engines, not runs.
    """
    groups: dict[tuple[Any, ...], list[TrialView]] = {}
    for trial in trials:
        if trial.status is TrialStatus.OK and trial.phase in PHASES:
            groups.setdefault(_request(trial), []).append(trial)
    repeated = {tuple(map(str, key)): cell for key, cell in groups.items() if len(cell) > 1}
    return tuple(_in_order(repeated[key]) for key in sorted(repeated))


def _in_order(cell: list[TrialView]) -> tuple[TrialView, ...]:
    """Order runs as they were asked; runs that agree in every channel need no order, and most do."""
    return tuple(sorted(cell, key=_asked)) if _differing(cell, CHANNELS) else tuple(cell)


def _request(trial: TrialView) -> tuple[Any, ...]:
    """Everything that must be equal for two rows to be repeats. Which cores they ran on does not change what is computed."""
    controls = trial.controls_effective
    held = (controls.seed, controls.threads, controls.context_size, controls.temperature, controls.max_tokens)
    return (trial.task_id, trial.task_revision, trial.engine, trial.engine_version, trial.variant_sha256, *held)


def _asked(trial: TrialView) -> tuple[Any, ...]:
    tie_break = (trial.trial_id, trial.output_sha256, trial.finish_reason or "", str(trial.adherence_score))
    return (PHASES.index(trial.phase), trial.repetition, trial.attempt, trial.started_at, *tie_break)


def _differing(cell: _Cell, channels: Iterable[str]) -> bool:
    return any(len({CHANNELS[name](trial) for trial in cell} - {None}) > 1 for name in channels)


def agreement_floor(agreeing: int, cells: int) -> float:
    """Return the one-sided 95 % lower confidence limit of a rate (0..1) from `agreeing` of `cells` independent cells.

    With all of n cells agreeing that is 0.05 ** (1/n): 14 cells promise 0.81, 59 cells 0.95. Raises `ValueError` unless
    0 <= agreeing <= cells and cells >= 1. Source: Clopper and Pearson (1934), Biometrika 26(4), 404-413.
    """
    from scipy import special

    if cells < 1 or not 0 <= agreeing <= cells:
        msg = f"{agreeing} of {cells} cells is not a share"
        raise ValueError(msg)
    return float(special.betaincinv(agreeing, cells - agreeing + 1, 1 - FLOOR_LEVEL)) if agreeing else 0.0


def first_differing_pair(cells: Cells) -> tuple[TrialView, TrialView] | None:
    """Return two repeats that differ in a channel: of the first such task by id, the earliest run and the first unlike it.

    `None` when all repeats agree. Read the two rows' texts by `trial_id` for `describe_divergence`.
    """
    for cell in cells:
        for position, one in enumerate(cell):
            for other in cell[position + 1 :]:
                if _differing((one, other), CHANNELS):
                    return one, other
    return None


def describe_divergence(pair: tuple[TrialView, TrialView], texts: Mapping[str, str]) -> FirstDivergence:
    """Say where two differing repeats part, in the first channel that differs.

    `texts` maps `trial_id` to the whole output text. For `output_text` the snippets start at the first difference and
    `position` counts the characters before it; where a text is not there, the digests stand in and `position` is `None`.
    Raises `ValueError` for two runs that agree.
    """
    one, other = pair
    channel = next((name for name in CHANNELS if _differing(pair, (name,))), None)
    if channel is None:
        msg = f"runs {one.trial_id[:12]} and {other.trial_id[:12]} do not differ"
        raise ValueError(msg)
    position, first, second = None, str(CHANNELS[channel](one)), str(CHANNELS[channel](other))
    if channel == OUTPUT_TEXT:
        ours, theirs = texts.get(one.trial_id), texts.get(other.trial_id)
        if ours is not None and theirs is not None and ours != theirs:
            position = shared_length(ours, theirs)
            first, second = (text[position : position + SNIPPET_CHARACTERS] for text in (ours, theirs))
        else:
            first, second = (f"sha256 {digest[:_DIGEST_DIGITS]}" for digest in (first, second))
    return FirstDivergence(task_id=one.task_id, channel=channel, position=position, first=first, second=second)


def shared_length(one: str, other: str) -> int:
    """Return how many characters two texts share from their start."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
