"""Recipes against stock files of their size, on held-out text; the reference lies off the source's grid: nothing is lossless."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.result import MODEL, Result, judged, notice, skipped
from fewbits.api.recipe import make_recipe
from fewbits.api.recipe_request import NO_TASKS, RecipeRequest
from fewbits.core.errors import PrerequisiteError
from fewbits.records.recipe import HeldOut, RecipeManifest
from fewbits.sweep.progress import SilentObserver
from fewbits.workloads.text.evaluation import CALIBRATION_TEXT

TARGETS = {"Q4_K_M": 35.0, "Q3_K_M": 50.0}
"""Stock tag -> least reduction of held-out divergence that the issue asks for, percent."""
_SEED = 1


def measure() -> list[Result]:
    """Search, build and prove both recipes from one set of probes, without and with an importance matrix on both sides."""
    results = _rows("plain rounding", None)
    try:
        results += _rows("importance matrix on both sides", CALIBRATION_TEXT)
    except PrerequisiteError as error:
        results.append(skipped("the same with an importance matrix", str(error)))
    return results


def _rows(how: str, calibration_text: str | None) -> list[Result]:
    notice(f"  {how} ...")
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as folder:
        request = RecipeRequest(
            model=MODEL,
            like=tuple(TARGETS),
            out_dir=Path(folder) / "recipes",
            off_grid_seed=_SEED,
            calibration_text=calibration_text,
            tasks=NO_TASKS,
        )
        manifests = make_recipe(request, SilentObserver())
    return [row for manifest in manifests for row in _of(manifest, how)]


def _of(manifest: RecipeManifest, how: str) -> list[Result]:
    files = {row.label: row for row in manifest.held_out}
    rows = []
    if files["recipe"].against_stock is not None:
        reduction = 100 * files["recipe"].against_stock.value
        name = f"held-out divergence below stock {manifest.stock_tag}, {how}"
        limit = TARGETS[manifest.stock_tag]
        rows.append(judged(name, reduction, limit, "%", "; ".join(_words(row) for row in manifest.held_out), at_least=True))
    if manifest.prediction_error is not None:
        note = (
            f"predicted {manifest.predicted_kl_nats:.4g}, measured {manifest.measured_kl_nats:.4g} nats; "
            f"{manifest.probes} probes, {manifest.probe_windows} of {manifest.exhaustive_windows} windows; "
            f"{manifest.probe_wall_seconds:.0f} s of probing, {manifest.total_wall_seconds:.0f} s in all"
        )
        name = f"error of the additive model at {manifest.stock_tag}'s size, {how}"
        rows.append(judged(name, 100 * abs(manifest.prediction_error), 20.0, "%", note))
    return rows


def _words(row: HeldOut) -> str:
    nats = "none" if row.kl_nats is None else f"{row.kl_nats.value:.4f} [{row.kl_nats.low:.4f}, {row.kl_nats.high:.4f}] nats"
    if row.against_stock is None:
        return f"{row.label}: {row.bytes:,} bytes, {nats}"
    low, high = row.against_stock.low, row.against_stock.high
    interval = "" if low is None or high is None else f" [{-100 * high:+.0f}, {-100 * low:+.0f}]"
    return f"{row.label}: {row.bytes:,} bytes, {nats}, {-100 * row.against_stock.value:+.0f} %{interval}"
