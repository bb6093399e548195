"""`summary.md` of a detector run in the runbook's layout: records to Markdown. Pure; every foreign text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fewbits.records.detector_run import CocoMetrics, ExportRecord, QdqCounts, SanityCheck, StageLog, StageStatus
from fewbits.report import formats
from fewbits.report.detector_datasets import COLLAPSE_RATIO, NONE_FOUND, dataset_blocks
from fewbits.report.detector_terminal import precision
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import VALUE_LIMIT, bullets, table

BASELINE = "baseline"
FLOAT_ACTIVATIONS = 16
_RUNBOOK_ORDER = ("w8a16", "w8a8", "w4a16", "w4a8")
_DETAIL_LIMIT = 400
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRun:
    """What was found below a run root. Variants are `baseline`, `ptq-<mode>`, `qat-<mode>`."""

    name: str
    metrics: Mapping[str, CocoMetrics] = field(default_factory=dict)
    exports: Mapping[str, ExportRecord] = field(default_factory=dict)
    stages: StageLog | None = None
    sanity: tuple[SanityCheck, ...] | None = None
    logs: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    """File -> why it could not be read."""


def variant_order(variant: str) -> tuple[int, int, str]:
    """Sort the baseline first, then the runbook's modes, others by name, trained variants last."""
    kind, _, mode = variant.partition("-")
    rank = {BASELINE: 0, "ptq": 1, "qat": 3}.get(kind, 2)
    return rank, _RUNBOOK_ORDER.index(mode) if mode in _RUNBOOK_ORDER else len(_RUNBOOK_ORDER), mode


def _sorted(found: Mapping[str, T]) -> dict[str, T]:
    return {variant: found[variant] for variant in sorted(found, key=variant_order)}


def render_detector_summary(run: DetectorRun) -> str:
    """Return the whole page, ending in a newline. What was not found says so; no number is made up."""
    blocks = [
        f"# Detector quantization: {markdown_name(run.name)}",
        *_results(run),
        "## W8 sanity",
        _sanity(run.sanity),
        "## What is quantized",
        *_quantized(run.exports),
        "## Datasets",
        *dataset_blocks(_sorted(run.metrics), _sorted(run.exports)),
        "## Stages",
        _stages(run.stages),
        "## Logs",
        bullets([markdown_name(log, VALUE_LIMIT) for log in run.logs]) or NONE_FOUND,
    ]
    if run.unread:
        rows = [(markdown_name(path, VALUE_LIMIT), markdown_text(why, _DETAIL_LIMIT)) for path, why in sorted(run.unread.items())]
        blocks += ["## Not read", table(("file", "why"), rows)]
    return "\n\n".join(block for block in blocks if block) + "\n"


# --- results ----------------------------------------------------------------------------------------------------------


def _results(run: DetectorRun) -> list[str]:
    if not run.metrics:
        return [NONE_FOUND]
    variants = sorted(run.metrics, key=variant_order)
    baseline = run.metrics.get(BASELINE)
    header = ("variant", "mAP_50_95", "mAP_50", "mean_ms", "p90_ms", "providers", "onnx", "of baseline")
    rows = [_row(variant, run.metrics[variant], baseline) for variant in variants]
    notes = [note for variant in variants for note in _notes(variant, run.metrics[variant], baseline)]
    words = "Brackets: 95 % intervals (bootstrap over images). Times: the model alone, one image at a time, in milliseconds."
    return [table(header, rows, numeric=(1, 2, 3, 4, 7)), words, bullets(notes)]


def _row(variant: str, found: CocoMetrics, baseline: CocoMetrics | None) -> tuple[str, ...]:
    estimate, latency = found.metrics.map_50_95, found.latency_ms
    interval = ""
    if estimate is not None and estimate.low is not None and estimate.high is not None:
        interval = f" [{precision(estimate.low)}, {precision(estimate.high)}]"
    return (
        markdown_name(variant),
        precision(found.mAP_50_95) + interval,
        precision(found.mAP_50),
        formats.MISSING if latency is None else f"{latency.mean:.3f}",
        formats.MISSING if latency is None else f"{latency.p90:.3f}",
        markdown_text(", ".join(found.providers), VALUE_LIMIT) or formats.MISSING,
        markdown_name(found.onnx_path, VALUE_LIMIT),
        _share_cell(variant, found, baseline),
    )


def _share_cell(variant: str, found: CocoMetrics, baseline: CocoMetrics | None) -> str:
    if variant != BASELINE and found.metrics.retained is not None:
        return formats.percent_estimate(found.metrics.retained)
    return formats.percent(_share(variant, found, baseline))


def _share(variant: str, found: CocoMetrics, baseline: CocoMetrics | None) -> float | None:
    """Return the share of the baseline's mAP_50_95; `None` for the baseline, without one, and on other images."""
    if variant == BASELINE:
        return None
    if found.metrics.retained is not None:
        return found.metrics.retained.value
    if baseline is None or not baseline.mAP_50_95 or found.mAP_50_95 is None or _images(found) != _images(baseline):
        return None
    return found.mAP_50_95 / baseline.mAP_50_95


def _images(found: CocoMetrics) -> tuple[int, Any]:
    return found.num_images, found.settings.get("image_ids_sha256")


def _notes(variant: str, found: CocoMetrics, baseline: CocoMetrics | None) -> list[str]:
    name, notes = markdown_name(variant), []
    if (share := _share(variant, found, baseline)) is not None and share < COLLAPSE_RATIO:
        notes.append(f"**{name} collapsed**: it keeps {formats.percent(share)} of the baseline's mAP_50_95, less than half.")
    if found.latency_ms is None:
        notes.append(f"{name} has no latency: {markdown_text(found.latency_unavailable, _DETAIL_LIMIT) or 'no reason recorded'}.")
    if found.failed_images:
        notes.append(
            f"{name} did not answer {found.failed_images} of {found.num_images} images; they count as without detections."
        )
    if baseline is not None and _images(found) != _images(baseline):
        notes.append(f"{name} was evaluated on other images than the baseline: the two are no comparison.")
    return notes


# --- sanity and what is quantized -------------------------------------------------------------------------------------


def _sanity(checks: Sequence[SanityCheck] | None) -> str:
    if checks is None:
        return NONE_FOUND
    rows = [
        (
            markdown_name(check.variant),
            formats.percent(check.retained),
            markdown_name(check.sanity_variant),
            formats.percent(check.sanity_retained),
            check.verdict.value,
            markdown_text(check.explanation, _DETAIL_LIMIT),
        )
        for check in checks
    ]
    header = ("collapsed", "of baseline", "at 8 bits", "of baseline", "verdict", "why")
    return table(header, rows, numeric=(1, 3)) if rows else "No variant collapsed, so nothing was checked at 8 bits."


def _quantized(exports: Mapping[str, ExportRecord]) -> list[str]:
    if not exports:
        return [NONE_FOUND]
    header = ("variant", "QuantizeLinear", "DequantizeLinear", "Clip", "after clean-up", "inputs", "outputs")
    rows, notes = [], []
    for variant in sorted(exports, key=variant_order):
        export = exports[variant]
        contract = export.optimized_io_contract or export.io_contract
        after = export.optimized.qdq_after if export.optimized else None
        counts = export.qdq_counts
        cells = (str(counts.QuantizeLinear), str(counts.DequantizeLinear), str(counts.Clip), _after(counts, after))
        rows.append((markdown_name(variant), *cells, _values(contract.get("inputs")), _values(contract.get("outputs"))))
        recipe = export.build.recipe
        if recipe is not None and recipe.activation_bits == FLOAT_ACTIVATIONS:
            notes.append(f"{markdown_name(variant)}: A16 means that activations stay float; only weights are quantized.")
        if export.optimized is not None and after != export.optimized.qdq_before:
            notes.append(f"**{markdown_name(variant)}: the clean-up changed the number of quantization nodes.**")
    notes.append(
        "Graphs of quantized weights alone have no QuantizeLinear: the integers lie in the file, DequantizeLinear reads them."
    )
    notes.append(
        "Fewer than 8 bits are stored as INT8 with a narrower range (Clip). Where a runtime does not fuse these nodes, it "
        "computes on floats: such a variant is rounded as its name says and smaller than the float file, but not faster."
    )
    return [table(header, rows, numeric=(1, 2, 3)), bullets(notes)]


def _after(before: QdqCounts, after: QdqCounts | None) -> str:
    if after is None:
        return "not cleaned"
    return "the same" if after == before else f"{after.QuantizeLinear} / {after.DequantizeLinear} / {after.Clip}"


def _values(values: Any) -> str:
    """Return the values of an input and output contract, which is only a mapping: name and shape of each."""
    if not isinstance(values, list | tuple):
        return formats.MISSING
    words = [f"{value.get('name')} {value.get('shape')}" if isinstance(value, dict) else str(value) for value in values]
    return markdown_text(", ".join(words), VALUE_LIMIT) or formats.MISSING


# --- stages -----------------------------------------------------------------------------------------------------------


def _stages(log: StageLog | None) -> str:
    if log is None or not log.stages:
        return NONE_FOUND
    rows = [
        (
            markdown_name(stage.variant),
            stage.stage.value,
            stage.status.value if stage.status is StageStatus.OK else f"**{stage.status.value}**",
            formats.seconds(stage.seconds) + (" (cached)" if stage.cached else ""),
            markdown_text(stage.reason, _DETAIL_LIMIT) or formats.MISSING,
        )
        for stage in log.stages
    ]
    return table(("variant", "stage", "status", "time", "why"), rows, numeric=(3,))
