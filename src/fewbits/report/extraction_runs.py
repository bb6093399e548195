"""The second half of the extraction section: time, memory, stages, failures, hints and self-consistency of the measured runs."""

from __future__ import annotations

from fewbits.analysis.wording import count
from fewbits.records.extraction import StageName
from fewbits.records.extraction_metrics import ExtractionAggregate
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.summary import QuantRow, Session
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import bullets, table

Shown = tuple[QuantRow, RowExtraction]
_BAR_CELLS = 20
_NAME_LIMIT = 60
_WORDS_LIMIT = 400


def run_blocks(session: Session, shown: list[Shown]) -> list[str]:
    """Return the blocks about the measured runs."""
    return [
        "#### Time and memory",
        _cost_table(shown),
        _cost_notes(shown),
        *_stages(shown),
        *_failures(shown),
        "#### Interpreting the results",
        _hints(session, shown),
        "#### Self-consistency",
        _consistency(shown),
    ]


def _cost_table(shown: list[Shown]) -> str:
    header: tuple[str, ...] = ("quant", "runs", "success rate", "p50", "p95", "pages per second", "peak memory", "file size")
    rows = [[markdown_name(row.quant_tag), *_cost_cells(row, found.aggregate)] for row, found in shown]
    if _any_gpu(shown):
        header = (*header, "GPU peak")
        rows = [[*cells, formats.megabytes(found.aggregate.gpu_peak_mb)] for cells, (_, found) in zip(rows, shown, strict=True)]
    return table(header, rows, numeric=range(1, len(header)))


def _cost_cells(row: QuantRow, measured: ExtractionAggregate) -> list[str]:
    return [
        str(measured.total_runs),
        formats.percent(measured.success_rate),
        formats.seconds(measured.p50_pipeline_time_seconds),
        formats.seconds(measured.p95_pipeline_time_seconds),
        formats.rate(measured.images_per_second),
        formats.megabytes(measured.memory_peak_mb),
        formats.size(row.variant_bytes),
    ]


def _any_gpu(shown: list[Shown]) -> bool:
    return any(found.aggregate.gpu_peak_mb is not None for _, found in shown)


def _cost_notes(shown: list[Shown]) -> str:
    gaps = [
        ("times and no memory", "it was not run", [row for row, found in shown if not found.aggregate.total_runs]),
        ("peak memory", "no run reported it", [row for row, found in shown if _ran_without(found, "memory_peak_mb")]),
        ("file size", "there is no file to measure", [row for row, _ in shown if row.variant_bytes is None]),
    ]
    if _any_gpu(shown):
        gaps.append(("GPU peak", "no run reported one", [row for row, found in shown if _ran_without(found, "gpu_peak_mb")]))
    sentences = [
        f"{', '.join(markdown_name(row.quant_tag) for row in rows)} {'has' if len(rows) == 1 else 'have'} no {words}: {reason}."
        for words, reason, rows in gaps
        if rows
    ]
    return bullets(
        [
            "p50 and p95: seconds of the whole pipeline for one page, over all measured runs, failed ones included. Pages per "
            "second: those runs over the time that they took with everything between opening a page and writing its report down.",
            *sentences,
        ]
    )


def _ran_without(found: RowExtraction, field: str) -> bool:
    return bool(found.aggregate.total_runs) and getattr(found.aggregate, field) is None


def _stages(shown: list[Shown]) -> list[str]:
    """Return each stage's share of the time, a column for each variant."""
    from fewbits.analysis.extraction_benchmark import OTHER

    order = {stage.value: place for place, stage in enumerate(StageName)} | {OTHER: len(StageName) + 1}
    names = {name for _, found in shown for name in found.aggregate.stage_time_share}
    stages = sorted(names, key=lambda name: (order.get(name, len(StageName)), name))
    rows = [[_name(stage), *(_share_cell(found.aggregate.stage_time_share.get(stage)) for _, found in shown)] for stage in stages]
    if not rows:
        return []
    header = ("stage", *(markdown_name(row.quant_tag) for row, _ in shown))
    note = f"Shares of the wall time of all runs; {OTHER}: what no stage accounts for (opening the file, Python, writing)."
    return ["#### Where the time goes", table(header, rows), note]


def _share_cell(share: float | None) -> str:
    if share is None:
        return formats.MISSING
    return f"{'█' * round(share * _BAR_CELLS)} {formats.percent(share)}".strip()


def _failures(shown: list[Shown]) -> list[str]:
    kinds = sorted({kind for _, found in shown for kind in found.aggregate.errors_by_kind})
    if not kinds:
        measured = any(found.aggregate.total_runs for _, found in shown)
        return ["#### Failures", "Every run ended with a report that holds at least one test."] if measured else []
    header = ("kind of failure", *(markdown_name(row.quant_tag) for row, _ in shown))
    rows = [[_name(kind), *(_failure_cell(found.aggregate, kind) for _, found in shown)] for kind in kinds]
    return ["#### Failures", table(header, rows, numeric=range(1, len(header)))]


def _failure_cell(aggregate: ExtractionAggregate, kind: str) -> str:
    if not aggregate.total_runs:
        return formats.MISSING
    return f"{aggregate.errors_by_kind.get(kind, 0)} of {count(aggregate.total_runs, 'run')}"


def _hints(session: Session, shown: list[Shown]) -> str:
    """Return what the numbers suggest, as `benchmark_results.json` holds it too."""
    from fewbits.analysis.extraction_benchmark import interpret

    reference = next((found.aggregate for row, found in shown if row.is_reference), None)
    return bullets(
        [
            f"{markdown_name(row.quant_tag)}: {markdown_text(hint.text, _WORDS_LIMIT)}"
            for row, found in shown
            for hint in interpret(
                found.aggregate,
                reference=None if row.is_reference else reference,
                reference_name=session.baseline_quant,
            )
        ]
    )


def _consistency(shown: list[Shown]) -> str:
    """Return how far runs with other seeds agree, or why that is not known."""
    sentences: list[str] = []
    without: dict[str, list[str]] = {}
    for row, found in shown:
        measured = found.self_consistency
        if measured.estimate is None:
            reason = markdown_text(measured.reason, _WORDS_LIMIT) or "no reason recorded"
            without.setdefault(reason, []).append(markdown_name(row.quant_tag))
            continue
        sentences.append(
            f"{markdown_name(row.quant_tag)}: runs of a page with different seeds agree in "
            f"{formats.percent_estimate(measured.estimate)} of names, values and units, over "
            f"{count(measured.estimate.n, 'page')} with at least {measured.runs_per_page} runs each."
        )
    sentences += [f"Not measured for {', '.join(names)}: {reason}." for reason, names in without.items()]
    return bullets(sentences)


def _name(name: str) -> str:
    return markdown_text(name, _NAME_LIMIT) or "(empty)"
