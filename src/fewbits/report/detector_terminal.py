"""One detector's metrics and a smoke test, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbits.records.detector_run import CocoMetrics, SmokeRecord
from fewbits.records.estimate import Estimate
from fewbits.report import formats
from fewbits.report.escape import NAME_LIMIT, visible

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_metrics_terminal(record: CocoMetrics) -> RenderableType:
    """Return a table of the metrics and what they rest on, for a `rich` console."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("metric")
    found.add_column("value", justify="right")
    found.add_column("95 % interval", justify="right")
    for name, value, estimate in (
        ("mAP_50_95", record.mAP_50_95, record.metrics.map_50_95),
        ("mAP_50", record.mAP_50, record.metrics.map_50),
        ("mAP_75", record.mAP_75, None),
        ("mAP_small", record.mAP_small, None),
        ("mAP_medium", record.mAP_medium, None),
        ("mAP_large", record.mAP_large, None),
    ):
        found.add_row(name, precision(value), _interval(estimate))
    answered = f"{record.num_images} images, {record.num_detections} detections"
    if record.failed_images:
        answered += f"; {record.failed_images} images were not answered and count as without detections"
    lines = [answered, _latency(record), f"ran on {visible(', '.join(record.providers))}"]
    if order := record.settings.get("class_order"):
        lines.append(visible(str(order)))
    return Group(Text(visible(record.model_name, NAME_LIMIT), style="bold"), found, *(Text(line) for line in lines))


def render_smoke_text(record: SmokeRecord) -> str:
    """Return a smoke test as lines, without a line break at the end."""
    verdict = "all outputs are finite" if record.is_finite else "NOT FINITE: an output holds NaN or infinity"
    values = [
        f"  {kind} {visible(str(value['name']), NAME_LIMIT)}  {value['type']}  {value['shape']}"
        for kind, listed in (("in ", record.inputs), ("out", record.outputs))
        for value in listed
    ]
    first = f"{visible(record.model_name, NAME_LIMIT)}: {record.runtime_ms:.1f} ms for the first call, {verdict}"
    return "\n".join([first, *values, f"  ran on {visible(', '.join(record.providers))}"])


def precision(value: float | None) -> str:
    """Format an average precision with four decimals, as the runbook does; `None` becomes an em dash."""
    return formats.MISSING if value is None else f"{value:.4f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return formats.MISSING
    return f"[{precision(estimate.low)}, {precision(estimate.high)}]"


def _latency(record: CocoMetrics) -> str:
    found = record.latency_ms
    if found is None:
        return f"no latency: {visible(record.latency_unavailable)}"
    times = f"mean {found.mean:.3f}, median {found.median:.3f}, p90 {found.p90:.3f} ms"
    return f"the model alone, one image at a time: {times} ({found.throughput_fps:.1f} images/s) over {found.count} calls"
