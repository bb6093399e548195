"""Several sensitivity runs in one table, as Markdown and for a terminal; and how far a ranking can be trusted, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fewbits.analysis.wording import count
from fewbits.records.estimate import Estimate
from fewbits.records.sensitivity import PairTotals, RankAgreement, RunStatus, SensitivityAgreement, SensitivityRollup
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text, visible
from fewbits.report.tables import table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_HEADER = ("pair", "size", "method", "total", "groups", "most sensitive", "bits", "scored", "time", "memory")
_NUMERIC = (3, 4, 6, 7, 8, 9)
_TERMINAL_COLUMNS = (0, 1, 3, 5, 8, 9)
"""What fits into 80 columns; the files have all."""
_TERMINAL_NAME_WORDS = 3
_AGREEMENT_HEADER = ("left", "right", "groups", "rank correlation", "same among the top")
_DETAIL_LIMIT = 400
_TERMINAL_AGREEMENTS = 20
"""Comparisons that a terminal shows; sixteen pairs have 120 of them."""
_TOTALS_WORDS = (
    "*total*: sum over all groups of the score of the fewest bits. It does not depend on what the search chose, so pairs can be "
    "compared by it within one method; scores are means per sample, so sizes can be too."
)
_AGREEMENT_WORDS = (
    "*rank correlation*: Spearman's, over groups, with a 95 % interval. *same among the top*: share of the most sensitive groups "
    "that both runs name."
)


def render_rollup_markdown(rollup: SensitivityRollup) -> str:
    """Return the rollup as Markdown, ending in a newline."""
    rows = [[_markdown(cell) for cell in _run_cells(run)] for run in rollup.runs if run.status is RunStatus.OK]
    failed = [run for run in rollup.runs if run.status is not RunStatus.OK]
    blocks = ["# Sensitivity of several runs"]
    blocks += [table(_HEADER, rows, _NUMERIC), _TOTALS_WORDS] if rows else ["No run ended well."]
    for title, agreements in _sections(rollup):
        blocks += [
            f"## {title}",
            table(_AGREEMENT_HEADER, [_agreement_cells(one, markdown_name) for one in agreements], (2, 3, 4)),
        ]
    if rollup.between_sizes or rollup.between_pairs:
        blocks.append(_AGREEMENT_WORDS)
    if failed:
        lines = [(markdown_name(run.manifest, 160), markdown_text(run.failure, _DETAIL_LIMIT)) for run in failed]
        blocks += ["## Failed", table(("manifest", "why"), lines)]
    if rollup.skipped:
        lines = [(markdown_name(path, 160), markdown_text(why, _DETAIL_LIMIT)) for path, why in sorted(rollup.skipped.items())]
        blocks += ["## Not read", table(("manifest", "why"), lines)]
    return "\n\n".join(blocks) + "\n"


def render_rollup_terminal(rollup: SensitivityRollup) -> RenderableType:
    """Return the rollup for a `rich` console."""
    from rich.console import Group

    finished = [run for run in rollup.runs if run.status is RunStatus.OK]
    parts: list[RenderableType] = []
    if finished:
        parts.append(_terminal_runs(finished))
    for title, agreements in _sections(rollup):
        rows = [_agreement_cells(one, visible) for one in agreements[:_TERMINAL_AGREEMENTS]]
        parts += [_words(title, "bold"), _terminal_table(_AGREEMENT_HEADER, rows, (2, 3, 4))]
        if len(agreements) > len(rows):
            parts.append(_words(f"{count(len(agreements) - len(rows), 'further comparison')} in the files", "dim"))
    for run in rollup.runs:
        if run.status is not RunStatus.OK:
            parts.append(_words(f"failed: {visible(run.manifest)}: {visible(run.failure, _DETAIL_LIMIT)}", "red"))
    for path, why in sorted(rollup.skipped.items()):
        parts.append(_words(f"not read: {visible(path)}: {visible(why, _DETAIL_LIMIT)}", "yellow"))
    return Group(*parts)


def _terminal_runs(runs: Sequence[PairTotals]) -> RenderableType:
    """Return the table of runs, narrow: a group is told by the last words of its name."""
    rows = []
    for run in runs:
        cells = [cell for cell, _ in _run_cells(run)]
        cells[5] = ".".join(cells[5].split(".")[-_TERMINAL_NAME_WORDS:])
        rows.append([cells[column] for column in _TERMINAL_COLUMNS])
    numeric = [place for place, column in enumerate(_TERMINAL_COLUMNS) if column in _NUMERIC]
    return _terminal_table([_HEADER[column] for column in _TERMINAL_COLUMNS], rows, numeric)


def render_agreement_text(agreement: SensitivityAgreement) -> str:
    """Return how far a ranking can be trusted, as lines for a terminal."""
    lines = [
        f"{visible(agreement.scheme)}: {visible(agreement.method)} scores ({visible(agreement.score_source)}) of "
        f"{visible(agreement.format)} against {count(len(agreement.ablations), 'group')} quantized one at a time, on "
        f"{count(agreement.samples, 'sample')} of {agreement.sample_tokens:,} tokens of {visible(agreement.text_name)}",
        f"  measured KL           {_agreement_words(agreement.against_kl)}; {_ceiling_words(agreement, 'noise_ceiling')}",
        f"  measured loss change  {_agreement_words(agreement.against_loss)}; {_ceiling_words(agreement, 'loss_noise_ceiling')}",
    ]
    return "\n".join(lines) + "\n"


def _ceiling_words(agreement: SensitivityAgreement, field: str) -> str:
    ceiling = agreement.noise_ceiling if field == "noise_ceiling" else agreement.loss_noise_ceiling
    if ceiling is None:
        return f"what noise allows is not known ({visible(agreement.unavailable.get(field, 'not measured'))})"
    return f"noise allows about {_ratio(ceiling)}"


def _agreement_words(agreement: RankAgreement) -> str:
    if agreement.spearman is None:
        return f"no rank correlation: {visible(agreement.reason)}"
    top = formats.percent_estimate(agreement.top_k_overlap)
    return f"rank correlation {_ratio(agreement.spearman)}, {top} of the top {agreement.top_k}"


def _sections(rollup: SensitivityRollup) -> list[tuple[str, Sequence[RankAgreement]]]:
    sections = (("Between calibration sizes", rollup.between_sizes), ("Between pairs", rollup.between_pairs))
    return [(title, agreements) for title, agreements in sections if agreements]


def _run_cells(run: PairTotals) -> list[tuple[str, bool]]:
    """Return the cells of a run as visible text, each with whether it is a name."""
    pair = run.pair if run.granularity == "default" else f"{run.pair}, {run.granularity}"
    names = {0: pair, 1: run.size, 2: run.method, 5: run.most_sensitive or formats.MISSING}
    numbers = {
        3: formats.MISSING if run.total_sensitivity is None else f"{run.total_sensitivity:.3e}",
        4: f"{run.groups:,}",
        6: formats.MISSING if run.selected_effective_bits is None else f"{run.selected_effective_bits:.3f}",
        7: f"{run.scored_samples:,}",
        8: formats.seconds(run.wall_seconds),
        9: formats.size(run.peak_rss_bytes),
    }
    return [(visible(names[index]), True) if index in names else (numbers[index], False) for index in range(len(_HEADER))]


def _markdown(cell: tuple[str, bool]) -> str:
    words, is_name = cell
    return markdown_name(words) if is_name and words != formats.MISSING else words


def _agreement_cells(agreement: RankAgreement, safe: Callable[[str], str]) -> list[str]:
    """Return the cells of a comparison; `safe` makes foreign text fit for where they go."""
    cells = [safe(agreement.left), safe(agreement.right), f"{agreement.groups:,}"]
    if agreement.spearman is None:
        return [*cells, safe(agreement.reason), formats.MISSING]
    top = f"{formats.percent_estimate(agreement.top_k_overlap)} of {agreement.top_k}"
    return [*cells, _ratio(agreement.spearman), top]


def _ratio(estimate: Estimate | None) -> str:
    return formats.score_estimate(estimate)


def _terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(header):
        found.add_column(title, justify="right" if index in numeric else "left", overflow="fold")
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return found


def _words(words: str, style: str) -> Text:
    from rich.text import Text

    return Text(words, style=style)
