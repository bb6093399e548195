"""The detectors' section of the report: COCO metrics, the classes that lost most, what is quantized, who collapsed."""

from __future__ import annotations

from collections.abc import Iterable

from fewbits.analysis.wording import count
from fewbits.records.detection import ClassMetrics, DetectionMetrics
from fewbits.records.detector_run import RowDetection, SanityCheck
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report import formats
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import bullets, table
from fewbits.report.verdicts import reason_words

FEWEST_OBJECTS = 3
"""Labelled objects that a class needs, for its loss to be listed: one or two say nothing about a class."""
LISTED_LOSSES = 5
_WORDS_LIMIT = 300

Shown = tuple[QuantRow, RowDetection]


def has_detection(summary: SweepSummary) -> bool:
    """Whether any row is a detector's."""
    return any(row.detection is not None for session in summary.sessions for row in session.per_quant)


def detection_blocks(session: Session) -> list[str]:
    """Return heading, tables and notes; nothing where no row is a detector's."""
    shown = [(row, row.detection) for row in session.per_quant if row.detection is not None]
    if not shown:
        return []
    return [
        "### Detection",
        _collapses(session, shown),
        _metrics_table(session, shown),
        _notes(shown),
        *_losses(session, shown),
        *_censuses(shown),
    ]


def _reference_words(session: Session) -> str:
    return markdown_name(session.baseline_quant, 24)


def _collapses(session: Session, shown: list[Shown]) -> str:
    checks = {check.variant: check for check in session.sanity}
    sentences = [
        _collapse(session, row, found.metrics, checks.get(row.quant_tag))
        for row, found in shown
        if found.collapsed and found.metrics is not None
    ]
    return bullets(sentences)


def _collapse(session: Session, row: QuantRow, metrics: DetectionMetrics, check: SanityCheck | None) -> str:
    share = formats.percent(metrics.retained.value if metrics.retained else None)
    reference = _reference_words(session)
    words = f"**{markdown_name(row.quant_tag)} collapsed**: it keeps {share} of the mAP50-95 of {reference}, less than half."
    if check is None:
        return f"{words} **Not checked at 8 bits**, so the scheme and a mistake in export, decoding or evaluation look the same."
    kept = formats.percent(check.sanity_retained)
    return (
        f"{words} The same steps at 8 bits ({markdown_name(check.sanity_variant)}) keep {kept}: "
        f"**{markdown_text(check.verdict.value)}**. {markdown_text(check.explanation, _WORDS_LIMIT)}"
    ).rstrip()


def _metrics_table(session: Session, shown: list[Shown]) -> str:
    header = (
        "quant",
        "mAP50-95",
        f"of {_reference_words(session)}",
        "difference",
        "mAP50",
        "mAP75",
        "small",
        "medium",
        "large",
        "weight bits",
        "file size",
        "detections",
    )
    return table(header, [_metrics_row(row, found.metrics) for row, found in shown], numeric=range(1, len(header)))


def _metrics_row(row: QuantRow, metrics: DetectionMetrics | None) -> list[str]:
    name, bits, size = markdown_name(row.quant_tag), formats.bits(row.bits_per_weight), formats.size(row.variant_bytes)
    if metrics is None:
        return [name, *[formats.MISSING] * 8, bits, size, formats.MISSING]
    against = (
        ["reference", "reference"]
        if row.is_reference
        else [formats.percent_estimate(metrics.retained), formats.signed_estimate(metrics.difference)]
    )
    return [
        name,
        formats.score_estimate(metrics.map_50_95),
        *against,
        formats.score(metrics.map_50.value if metrics.map_50 else None),
        *(formats.score(value) for value in (metrics.map_75, metrics.map_small, metrics.map_medium, metrics.map_large)),
        bits,
        size,
        f"{metrics.detections:,}".replace(",", "\u202f"),
    ]


def _notes(shown: list[Shown]) -> str:
    measured = [metrics for _, found in shown if (metrics := found.metrics) is not None]
    notes = [*_interval_notes(measured), *_gaps(shown)]
    if measured:
        notes.append(
            "Small, medium and large: objects of under 32 x 32 pixels, up to 96 x 96, and above, in the image as labelled. "
            "Weight bits: what the weights' ranges of integers need, averaged over all weights; a file may store them wider."
        )
    failed = [
        f"{markdown_name(row.quant_tag)} gave no readable answer for {found.failed_images} of "
        f"{count(found.asked_images, 'image')}; these count as without detections."
        for row, found in shown
        if found.failed_images
    ]
    return bullets([*notes, *failed])


def _interval_notes(measured: Iterable[DetectionMetrics]) -> list[str]:
    """Say what the brackets are about, and what they are not."""
    estimates = [(one.images, one.resamples, one.map_50_95) for one in measured if one.map_50_95 is not None]
    with_interval = [one for one in estimates if one[2].low is not None]
    if not with_interval:
        return ["No interval could be computed; see *What is uncertain*."] if estimates else []
    images, resamples, first = with_interval[0]
    return [
        f"Brackets: {formats.level(first.level)} intervals by bootstrap over these {images} images ({resamples} resamples; "
        f"differences and shares are paired by image). They are about sets of {count(images, 'image')} from the same source, not "
        "about all of it: mAP is no mean over images, and small sets are flattered, all variants alike."
    ]


def _gaps(shown: list[Shown]) -> list[str]:
    fields = {
        "metrics": "COCO metrics",
        "map_50_95": "mAP50-95",
        "difference": "difference to the reference",
        "retained": "share of the reference",
        "census": "count of quantized operators",
    }
    concerned: dict[tuple[str, str], list[str]] = {}
    for row, found in shown:
        # the reference has nothing to be compared with, which needs no explanation
        for field in fields.keys() & found.unavailable.keys() - ({"difference", "retained"} if row.is_reference else set()):
            asked = f" ({count(found.asked_images, 'image')} asked about so far)" if field == "metrics" else ""
            reason = markdown_text(reason_words(found.unavailable[field])) + asked
            concerned.setdefault((field, reason), []).append(markdown_name(row.quant_tag))
    return [
        f"{', '.join(concerned[key])} {'has' if len(concerned[key]) == 1 else 'have'} no {fields[key[0]]}: {key[1]}."
        for key in sorted(concerned)
    ]


def _losses(session: Session, shown: list[Shown]) -> list[str]:
    """List per variant the classes that lost most against the reference."""
    base = next((found.metrics for row, found in shown if row.is_reference), None)
    if base is None:
        return []
    reference = {one.category_id: one for one in base.per_class}
    header = ("quant", "class", "objects", f"AP of {_reference_words(session)}", "AP", "difference")
    rows = [
        [
            markdown_name(row.quant_tag),
            markdown_text(one.name, 60) or "(empty)",
            str(one.objects),
            formats.score(before),
            formats.score(after),
            formats.signed(after - before),
        ]
        for row, found in shown
        if not row.is_reference and found.metrics is not None
        for one, before, after in _largest_losses(found.metrics, reference)
    ]
    if not rows:
        return []
    return [
        "#### The classes that lost most",
        table(header, rows, numeric=range(2, len(header))),
        f"Up to {LISTED_LOSSES} per variant, of the classes with at least {FEWEST_OBJECTS} labelled objects; AP is averaged over "
        "overlaps 0.50 to 0.95. No intervals: the worst of many classes looks worse than it is, so take these as places to look.",
    ]


def _largest_losses(metrics: DetectionMetrics, reference: dict[int, ClassMetrics]) -> list[tuple[ClassMetrics, float, float]]:
    """Return (class, the reference's AP, AP), the largest loss first; ties in the labels' order."""
    pairs = [
        (one, before.map_50_95, one.map_50_95)
        for one in metrics.per_class
        if one.objects >= FEWEST_OBJECTS
        and one.map_50_95 is not None
        and (before := reference.get(one.category_id)) is not None
        and before.map_50_95 is not None
        and one.map_50_95 < before.map_50_95
    ]
    return sorted(pairs, key=lambda pair: pair[2] - pair[1])[:LISTED_LOSSES]


def _censuses(shown: list[Shown]) -> list[str]:
    counted = [(row, found.census) for row, found in shown if found.census is not None]
    if not counted:
        return []
    header = (
        "quant",
        "weights",
        "inputs",
        "layers with quantized inputs",
        "quantize, dequantize, clip",
        "bits by range",
        "bits as stored",
        "integer operators",
        "float operators",
        "execution",
    )
    rows = [
        [
            markdown_name(row.quant_tag),
            markdown_text(census.weights_quantized, _WORDS_LIMIT) or formats.MISSING,
            markdown_text(census.inputs_quantized, _WORDS_LIMIT) or formats.MISSING,
            f"{census.quantized_inputs} of {census.consumers}",
            f"{census.quantize_linear}, {census.dequantize_linear}, {census.clip}",
            formats.bits(census.level_bits_per_weight),
            formats.bits(census.storage_bits_per_weight),
            formats.MISSING if census.integer_operators is None else str(census.integer_operators),
            formats.MISSING if census.float_operators is None else str(census.float_operators),
            markdown_text(census.execution, _WORDS_LIMIT) or formats.MISSING,
        ]
        for row, census in counted
    ]
    return [
        "#### What is quantized",
        table(header, rows, numeric=range(3, 9)),
        "Integer and float operators: convolutions and matrix products as the runtime executes them after its own optimisation.",
    ]
