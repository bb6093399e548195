"""What a detector run was evaluated, calibrated and trained on, as Markdown for its `summary.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.records.detector_run import CocoMetrics, ExportRecord
from fewbits.report.detector_terminal import precision
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.tables import VALUE_LIMIT, bullets, table, value_cell

NONE_FOUND = "(none found)"
COLLAPSE_RATIO = 0.5
_SHOWN_EPOCHS = 30
_CALIBRATION_KEYS = ("image_list_path", "list_images", "calib_images", "imgsz", "device")
_SHOWN_SETTINGS = (
    "imgsz",
    "conf",
    "iou",
    "max_det",
    "pre_nms_topk",
    "warmup_runs",
    "skip_latency",
    "instances",
    "images_dir",
)


def dataset_blocks(metrics: Mapping[str, CocoMetrics], exports: Mapping[str, ExportRecord]) -> list[str]:
    """Return headings, tables and lists; variants in the order given."""
    trained = {variant: export for variant, export in exports.items() if export.qat_training is not None}
    return [
        "### Evaluation",
        _evaluation(metrics),
        "### Calibration",
        _calibration(exports),
        "### Quantization-aware training",
        *(_training(trained, metrics) if trained else [NONE_FOUND]),
    ]


def _evaluation(metrics: Mapping[str, CocoMetrics]) -> str:
    variant = next((name for name in metrics if metrics[name].settings), None)
    if variant is None:
        return NONE_FOUND
    found = metrics[variant]
    ids_list, ids_digest = found.settings.get("image_ids_list"), found.settings.get("image_ids_sha256")
    source = f"list {markdown_name(str(ids_list), VALUE_LIMIT)}" if ids_list else "the first by id"
    tail = f", sha256 of the ids begins {markdown_name(str(ids_digest)[:16])}" if ids_digest else ""
    lines = [f"as {markdown_name(variant)} was evaluated: {found.num_images} images, {source}{tail}"]
    lines += [f"{key}: {value_cell(found.settings[key])}" for key in _SHOWN_SETTINGS if key in found.settings]
    return bullets(lines)


def _calibration(exports: Mapping[str, ExportRecord]) -> str:
    rows = []
    for variant, export in exports.items():
        used = export.calibration
        if used is not None:
            rows.append((markdown_name(variant), *(value_cell(used.get(key)) for key in _CALIBRATION_KEYS)))
    return table(("variant", *_CALIBRATION_KEYS), rows, numeric=(2, 3, 4)) if rows else NONE_FOUND


def _training(trained: Mapping[str, ExportRecord], metrics: Mapping[str, CocoMetrics]) -> list[str]:
    blocks = [
        f"Collapse rule: best > 0 and final < {COLLAPSE_RATIO:g} x best mAP_50_95. A training that ends with a larger loss on "
        "the images held out, or none that is finite, counts as collapsed too; the weights then stay as they were."
    ]
    for variant, export in trained.items():
        training = export.qat_training or {}
        lines = [_outcome(variant, training, metrics)]
        tables = []
        for key, value in _flat(training):
            if isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
                tables.append(_epochs(value))
            else:
                lines.append(f"{markdown_text(key)}: {value_cell(value)}")
        blocks += [f"**{markdown_name(variant)}**", bullets(lines), *tables]
    return blocks


def _outcome(variant: str, training: Mapping[str, Any], metrics: Mapping[str, CocoMetrics]) -> str:
    collapsed = next((value for key, value in _flat(training) if key.rpartition(".")[2] == "collapsed"), None)
    words = (
        {True: "collapsed", False: "did not collapse"}.get(collapsed, "not recorded") if collapsed is not None else "not recorded"
    )
    before = f"ptq-{variant.partition('-')[2]}"
    scores = [f"{markdown_name(name)} {precision(metrics[name].mAP_50_95)}" for name in (before, variant) if name in metrics]
    tail = f"; mAP_50_95: {', '.join(scores)}" if scores else ""
    return f"outcome: {words}{tail}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings with dotted names."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        leaves += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return leaves


def _epochs(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one row per epoch, the last ones where there are many."""
    columns = sorted({key for row in rows for key in row})
    header = ("epoch", *(markdown_text(column) for column in columns))
    numbered = list(enumerate(rows, start=1))[-_SHOWN_EPOCHS:]
    cells = [(str(number), *(value_cell(row.get(column)) for column in columns)) for number, row in numbered]
    return table(header, cells, numeric=range(len(header)))
