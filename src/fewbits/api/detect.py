"""Detector sweeps: the lab's own sweep behind stages that each variant passes alone; metrics, sanity, the runbook's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbits.analysis.detection_rows import COLLAPSE_RATIO
from fewbits.analysis.trial_table import build_table
from fewbits.api.detect_check import require_ready
from fewbits.api.detect_layout import DetectionFolder
from fewbits.api.detect_measure import image_ids_digest, summarise_latency, why_no_latency
from fewbits.api.detect_request import DetectRequest, PreparedDetection, prepare_detection
from fewbits.api.detect_stages import StageBook, VariantMaker
from fewbits.api.detect_summary import write_detector_summary
from fewbits.api.sweeps import PreparedSweep, run_sweep, write_results
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import FewbitsError
from fewbits.core.files import atomic_write, safe_name
from fewbits.records.detector_run import (
    CocoMetrics,
    SanityCheck,
    SanityChecks,
    SanityVerdict,
    Stage,
    StageRecord,
    StageStatus,
)
from fewbits.records.summary import QuantRow, SweepSummary
from fewbits.records.trial import TrialView
from fewbits.records.variant import Variant
from fewbits.spec.detector_schemes import SPARED_BITS, at_eight_bits, parse_scheme
from fewbits.store.journal import read_journal
from fewbits.sweep.progress import SweepObserver

HOLDS_SHARE = 0.9
"""Share of the float model's mAP50-95 from which the sanity variant counts as intact."""
SANITY_FOLDER = "sanity"


@dataclass(frozen=True, slots=True)
class DetectionResult:
    """What a sweep came to, and where it lies."""

    summary: SweepSummary
    root: Path
    summary_md: Path
    checks: tuple[SanityCheck, ...]


def run_detection(
    request: DetectRequest, prepared: PreparedDetection, observer: SweepObserver, *, fresh: bool = False
) -> DetectionResult:
    """Make the variants, run the trials that are missing, and write every artifact of the lab and of the runbook.

    A variant that collapsed brings its sanity variant along: the same steps at 8 bits, on the same images. Raises what
    `run_sweep` and `require_ready` raise; what was finished is kept, and the same call goes on.
    """
    prepared = require_ready(prepared, observer.notice)
    folder = _folder(request)
    summary = _swept(prepared, folder, observer, fresh=fresh)
    checks = _check_sanity(request, summary, observer, fresh=fresh)
    atomic_write(folder.sanity_path, encode_pretty(SanityChecks(checks=checks)))
    directory = prepared.sweep.directory
    summary = write_results(directory)
    write_variant_files(prepared, folder, summary, checks)
    return DetectionResult(summary, folder.root, write_detector_summary(folder.root), checks)


def _folder(request: DetectRequest) -> DetectionFolder:
    return DetectionFolder(Path(request.out_dir), Path(request.weights).stem)


def _swept(prepared: PreparedDetection, folder: DetectionFolder, observer: SweepObserver, *, fresh: bool) -> SweepSummary:
    """Run the lab's sweep over the variants that pass their stages. Raises as `run_sweep`."""

    def make(_prepared: PreparedSweep, watching: SweepObserver) -> dict[tuple[str, str], Variant]:
        return VariantMaker(prepared, folder, watching).make()

    return run_sweep(prepared.sweep, observer, fresh=fresh, make=make)


def write_variant_files(
    prepared: PreparedDetection, folder: DetectionFolder, summary: SweepSummary, checks: Sequence[SanityCheck] = ()
) -> None:
    """Write each variant's `metrics.json`, and how its evaluation and its sanity check ended into `stages.json` and the logs."""
    book = StageBook(folder.stages_path)
    book.load()
    directory = prepared.sweep.directory
    table = build_table(prepared.sweep.plan, read_journal(directory.trials_path, TrialView).rows)
    session = summary.sessions[0]
    for row in session.per_quant:
        if (row.quant_tag, Stage.EXPORT) not in book.records:
            continue
        smoke = book.records.get((row.quant_tag, Stage.SMOKE))
        if smoke is None or smoke.status is not StageStatus.OK:
            continue
        group = table.groups.get((session.model_id, row.quant_tag))
        metrics = _metrics(prepared, folder, row, group.trials if group is not None else ())
        if metrics is not None:
            atomic_write(folder.metrics_path(row.quant_tag), encode_pretty(metrics))
        reason = "" if metrics is not None else "images are missing: the sweep was ended, or decided early"
        status = StageStatus.OK if metrics is not None else StageStatus.SKIPPED
        book.write(StageRecord(variant=row.quant_tag, stage=Stage.EVALUATE, status=status, reason=reason))
        _log(folder, row.quant_tag, Stage.EVALUATE, [reason or _in_words(metrics), f"evaluate: {status}"])
    for check in checks:
        status = StageStatus.OK if check.sanity_retained is not None else StageStatus.FAILED
        reason = "" if status is StageStatus.OK else check.explanation
        book.write(StageRecord(variant=check.variant, stage=Stage.SANITY, status=status, reason=reason))
        _log(folder, check.variant, Stage.SANITY, [check.verdict.value, check.explanation, f"sanity: {status}"])


def _log(folder: DetectionFolder, tag: str, stage: Stage, lines: Sequence[str]) -> None:
    atomic_write(folder.log_path(tag, stage), "".join(f"{line}\n" for line in lines).encode())


def _in_words(metrics: CocoMetrics | None) -> str:
    if metrics is None:
        return ""
    found = "no labels" if metrics.mAP_50_95 is None else f"mAP50-95 {metrics.mAP_50_95:.4f}"
    return f"{metrics.num_images} images, {metrics.num_detections} detections, {metrics.failed_images} not answered: {found}"


def _metrics(
    prepared: PreparedDetection, folder: DetectionFolder, row: QuantRow, trials: Sequence[TrialView]
) -> CocoMetrics | None:
    """Put a variant's metrics together; `trials` are its attempts that count."""
    block = row.detection
    spec = prepared.sweep.plan.spec
    if block is None or block.metrics is None or spec.detection is None:
        return None
    found = block.metrics
    path = folder.cleaned_path(row.quant_tag)
    path = path if path.exists() else folder.exported_path(row.quant_tag)
    samples = [
        trial.telemetry.internal_model_seconds * 1000 for trial in trials if trial.telemetry.internal_model_seconds is not None
    ]
    latency = summarise_latency(samples, 0)
    settings: dict[str, Any] = {
        "imgsz": spec.detection.image_size,
        "conf": spec.detection.confidence,
        "iou": spec.detection.iou,
        "max_det": spec.detection.max_detections,
        "instances": spec.detection.annotations,
        "images_dir": spec.detection.images,
        "image_ids_list": folder.image_ids_path.name,
        "image_ids_sha256": image_ids_digest(prepared.labels.images),
        "warmup_runs": prepared.sweep.plan.controls.warmup_steps,
        "skip_latency": 0,
        "threads": prepared.sweep.plan.controls.threads,
    }
    return CocoMetrics(
        model_name=row.quant_tag,
        onnx_path=str(path.relative_to(folder.root)),
        onnx_sha256=row.variant_sha256 or "",
        providers=_providers(trials),
        mAP_50_95=found.map_50_95.value if found.map_50_95 is not None else None,
        mAP_50=found.map_50.value if found.map_50 is not None else None,
        mAP_75=found.map_75,
        mAP_small=found.map_small,
        mAP_medium=found.map_medium,
        mAP_large=found.map_large,
        num_images=found.images,
        num_detections=found.detections,
        latency_ms=latency,
        latency_unavailable="" if latency is not None else why_no_latency(len(samples), 0),
        failed_images=block.failed_images,
        settings=settings,
        metrics=found,
    )


def _providers(trials: Sequence[TrialView]) -> tuple[str, ...]:
    """Return the providers that ran the graph, from the engine's version text: `1.31.1 (CPUExecutionProvider)`."""
    versions = {trial.engine_version for trial in trials}
    names = [name for version in sorted(versions) for name in version.partition("(")[2].rstrip(")").split(", ") if name]
    return tuple(dict.fromkeys(names))


def _check_sanity(
    request: DetectRequest, summary: SweepSummary, observer: SweepObserver, *, fresh: bool = False
) -> tuple[SanityCheck, ...]:
    """Ask 8 bits about every variant below 8 bits that collapsed; a sanity run that fails leaves the question open."""
    rows = {row.quant_tag: row for row in summary.sessions[0].per_quant}
    checks = []
    for tag, row in rows.items():
        recipe = parse_scheme(tag)
        share = _retained(row)
        if recipe is None or recipe.weight_bits >= SPARED_BITS or share is None or share >= COLLAPSE_RATIO:
            continue
        wide = at_eight_bits(recipe)
        observer.notice(f"{tag} keeps {share:.0%} of the float model's mAP50-95: asking {wide} whether bits or wiring broke it")
        wide_share, why = _retained(rows[wide]) if wide in rows else None, ""
        if wide_share is None:
            wide_share, why = _sanity_share(request, wide, observer, fresh=fresh)
        checks.append(_judged(tag, share, wide, wide_share, why))
    return tuple(checks)


def _sanity_share(request: DetectRequest, tag: str, observer: SweepObserver, *, fresh: bool) -> tuple[float | None, str]:
    """Return what one more variant keeps, `None` with the reason where it cannot be measured."""
    try:
        row = _sanity_row(request, tag, observer, fresh=fresh)
    except FewbitsError as error:
        observer.notice(f"{tag} could not be measured: {error}")
        return None, str(error)
    share = _retained(row) if row is not None else None
    return share, "" if share is not None else f"its stages and trials are in {SANITY_FOLDER}/"


def _sanity_row(request: DetectRequest, tag: str, observer: SweepObserver, *, fresh: bool) -> QuantRow | None:
    """Run one more variant beside the float model, in a folder of its own below the run. Raises as `run_detection`."""
    root = Path(request.out_dir) / SANITY_FOLDER / safe_name(tag.lower())
    settings = {**request.settings, "canary_runs": "0"}
    own = replace(request, schemes=(tag,), qat=False, out_dir=root, settings=settings)
    prepared = require_ready(prepare_detection(own), observer.notice)
    summary = _swept(prepared, _folder(own), observer, fresh=fresh)
    return next((row for row in summary.sessions[0].per_quant if row.quant_tag == tag), None)


def _judged(tag: str, share: float, wide: str, wide_share: float | None, why: str = "") -> SanityCheck:
    if wide_share is None:
        verdict, words = SanityVerdict.UNDECIDED, f"{wide} could not be measured" + (f": {why}" if why else "")
    elif wide_share >= HOLDS_SHARE:
        verdict = SanityVerdict.SCHEME
        words = f"{wide} keeps {wide_share:.1%} through the same export, decoding and evaluation"
    elif wide_share < COLLAPSE_RATIO:
        verdict = SanityVerdict.WIRING
        words = f"{wide} keeps only {wide_share:.1%}: look at export, decoding and evaluation first"
    else:
        verdict, words = SanityVerdict.UNDECIDED, f"{wide} keeps {wide_share:.1%}, neither intact nor collapsed"
    return SanityCheck(
        variant=tag, retained=share, sanity_variant=wide, sanity_retained=wide_share, verdict=verdict, explanation=words
    )


def _retained(row: QuantRow) -> float | None:
    """Return the share of the float model's mAP50-95 that a variant keeps; `None` where it was not measured."""
    block = row.detection
    if block is None or block.metrics is None or block.metrics.retained is None:
        return None
    return block.metrics.retained.value
