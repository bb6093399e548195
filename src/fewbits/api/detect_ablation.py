"""The ablation of a detector: one step more in each row, from the naive recipe to the best, each with its own measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewbits.analysis.detection_matching import Matches
from fewbits.analysis.detection_metrics import detection_metrics
from fewbits.api.detect_results import MeasuredAnswers, read_measured
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError
from fewbits.core.files import atomic_write
from fewbits.records.detector_quant import LadderRow
from fewbits.records.detector_run import AblationRow, AblationTable
from fewbits.records.estimate import Estimate
from fewbits.report.detector_ablation import render_ablation
from fewbits.spec.detector_schemes import FLOAT_TAG, ladder, parse_scheme, scheme_tag
from fewbits.store.run_directory import RunDirectory

TABLE_NAME = "ablation.json"
REPORT_NAME = "ablation.md"


def ladder_rows(mode: str) -> tuple[LadderRow, ...]:
    """Return the ladder of a plain scheme such as `W4A8`, in any case. Raises `SpecError` for anything else."""
    recipe = parse_scheme(mode, "--mode")
    if recipe is None or recipe.tuned or recipe.budget_bits is not None or scheme_tag(recipe) != mode.upper():
        raise SpecError.single("--mode", f"{mode!r} has no ladder", "a plain scheme, such as W4A8 or W3A8")
    rows = ladder(recipe.weight_bits, recipe.activation_bits)
    if rows[-1].recipe == rows[0].recipe:
        raise SpecError.single("--mode", f"{mode!r} has no steps to leave out", "a scheme below 8 bits")
    return rows


def ladder_tags(mode: str) -> tuple[str, ...]:
    """Return the variants that an ablation measures, in the order of the ladder. Raises `SpecError`."""
    return tuple(dict.fromkeys(scheme_tag(row.recipe) for row in ladder_rows(mode)))


def write_ablation(root: Path, mode: str) -> Path:
    """Write `ablation.json` and `ablation.md` from a run that holds the ladder's variants; returns the latter.

    Rows without a full set of answers stand there with the reason. Raises `StoreError` where the folder holds no such run.
    """
    found = read_measured(RunDirectory(root))
    table = ablation_table(mode, found)
    atomic_write(root / TABLE_NAME, encode_pretty(table))
    path = root / REPORT_NAME
    atomic_write(path, render_ablation(table).encode())
    return path


def ablation_table(mode: str, found: MeasuredAnswers) -> AblationTable:
    """Measure every row against the float model and against the row that it stands on, paired by image."""
    rows, last_main = [], None
    mains: list[tuple[str | None, str]] = []
    for row in ladder_rows(mode):
        tag = scheme_tag(row.recipe)
        base = last_main if row.beside is None else _before(mains, row.beside.value)
        rows.append(_row(row, tag, base, found))
        if row.beside is None:
            mains.append((row.adds.value if row.adds is not None else None, tag))
            last_main = tag
    whole = found.matches.get(FLOAT_TAG)
    floating = detection_metrics(whole, found.labels.categories).map_50_95 if whole is not None else None
    return AblationTable(mode=mode.upper(), images=len(found.labels.images), float_map_50_95=floating, rows=tuple(rows))


def _before(mains: Sequence[tuple[str | None, str]], step: str) -> str | None:
    """Return the main row that stands right before a step."""
    for place, (added, _tag) in enumerate(mains):
        if added == step:
            return mains[place - 1][1] if place else None
    return None


def _row(row: LadderRow, tag: str, base: str | None, found: MeasuredAnswers) -> AblationRow:
    matches = found.matches.get(tag)
    value = retained = None
    if matches is not None:
        metrics = detection_metrics(matches, found.labels.categories, reference=found.matches.get(FLOAT_TAG))
        value, retained = metrics.map_50_95, metrics.retained
    census = found.censuses.get(tag)
    return AblationRow(
        variant=tag,
        adds=row.adds.value if row.adds is not None else None,
        stands_on=base,
        rival_of=row.beside.value if row.beside is not None else None,
        level_bits_per_weight=census.level_bits_per_weight if census is not None else None,
        map_50_95=value,
        retained=retained,
        change=_change(matches, found.matches.get(base) if base is not None else None, found),
        unavailable="" if matches is not None else found.reasons.get(tag, "not measured"),
    )


def _change(matches: Matches | None, base: Matches | None, found: MeasuredAnswers) -> Estimate | None:
    if matches is None or base is None:
        return None
    return detection_metrics(matches, found.labels.categories, reference=base).difference
