"""What a detector sweep is asked for, and its plan: labels, calibration, variants. Fetches nothing, makes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewbits.api.detect_check import check_model, check_settings
from fewbits.api.detect_results import labels_digest
from fewbits.api.sweeps import REPOSITORY_ROOT, PreparedSweep
from fewbits.core.codec import digest
from fewbits.core.errors import Problem, SpecError
from fewbits.core.git import commit_sha
from fewbits.probes.machine import default_threads, hardware_fingerprint, total_memory_bytes, usable_cores
from fewbits.quantizers.brevitas.quantizer import CHECKED_IMAGES, BrevitasQuantizer, DetectorBuild
from fewbits.quantizers.brevitas.yolov10 import Head
from fewbits.records.detection import DetectionSettings, ImageRequest, LabelledImage
from fewbits.records.detector_quant import Calibration
from fewbits.records.detector_run import DetectionLabels
from fewbits.runtimes.onnx.runtime import DetectorOptions
from fewbits.runtimes.registry import create_runtime
from fewbits.sensitivity.detector_bits import choose_layer_bits
from fewbits.spec.detector_schemes import FLOAT_TAG, parse_scheme, scheme_tag
from fewbits.spec.load import load_spec
from fewbits.store.artifacts import ArtifactCache
from fewbits.sweep.plan import build_plan, resolve_block_tasks
from fewbits.workloads.detection.coco import CocoSet, open_coco, require_files
from fewbits.workloads.detection.lists import (
    digest_images,
    draw_images,
    first_images,
    overlapping,
    read_id_list,
    read_image_list,
)
from fewbits.workloads.detection.tasks import detection_bank

DEFAULT_SCHEMES = ("W8A16", "W8A8", "W4A16", "W4A8")
"""The runbook's."""
CALIBRATION_IMAGES = 32
_SHOWN = 5
_TRAINED = "-qat"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectRequest:
    """A detector sweep as people ask for it. `settings` are flags of an ordinary sweep, by key."""

    weights: str
    coco: Path
    out_dir: Path
    schemes: tuple[str, ...] = DEFAULT_SCHEMES
    qat: bool = False
    qat_mode: str = "W4A8"
    split: str = "val"
    max_images: int | None = None
    """The first so many images by id; `None`: all."""
    image_ids_list: Path | None = None
    calibration_split: str = "train"
    calib_list: Path | None = None
    calib_images: int = CALIBRATION_IMAGES
    calib_seed: int = 0
    allow_overlap: bool = False
    image_size: int = 640
    head: str = Head.ONE_TO_MANY.value
    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def tags(self) -> tuple[str, ...]:
        """Every variant, the float model first. Raises `SpecError` with the problems of all tags."""
        words = [(word, "--schemes") for word in self.schemes]
        if self.qat:
            is_marked = self.qat_mode.lower().endswith(_TRAINED)
            words.append((self.qat_mode if is_marked else self.qat_mode + _TRAINED, "--qat-mode"))
        tags = [FLOAT_TAG]
        problems: list[Problem] = []
        for word, where in words:
            try:
                tags.append(scheme_tag(parse_scheme(word, where)))
            except SpecError as error:
                problems.extend(error.problems)
        if problems:
            raise SpecError(problems)
        return tuple(dict.fromkeys(tags))


@dataclass(frozen=True, slots=True)
class PreparedDetection:
    """A detector sweep that was planned but has touched nothing yet."""

    sweep: PreparedSweep
    quantizer: BrevitasQuantizer
    labels: DetectionLabels
    calibration: Calibration | None
    calibration_paths: tuple[Path, ...]
    providers: tuple[str, ...]
    """Of ONNX Runtime, in order of preference, whether this machine has them or not."""
    notes: tuple[str, ...]
    """What a reader of the results should know about the data."""


def prepare_detection(request: DetectRequest, cache: ArtifactCache | None = None) -> PreparedDetection:
    """Read labels and lists, check them against each other, and plan. Raises `SpecError`, `PrerequisiteError`."""
    tags = request.tags
    check_settings(request)
    coco, images = _evaluated(request)
    bank = detection_bank(coco, images, f"coco:{request.split}")
    calibration, paths, notes = _calibration(request, tags)
    tasks = {task.id: task for task in bank.tasks}
    if calibration is not None:
        shown = [task.image for task in bank.tasks if task.image is not None]
        notes = (*notes, *_check_overlap(calibration, shown, request))
    build = DetectorBuild(
        head=Head(request.head),
        image_size=request.image_size,
        calibration=calibration,
        calibration_paths=paths,
        checked_paths=(paths or tuple(coco.folder / image.file_name for image in images))[:CHECKED_IMAGES],
    )
    quantizer = BrevitasQuantizer(cache or ArtifactCache(), build, choose_layer_bits)
    source = quantizer.locate(request.weights)
    check_model(quantizer, source, coco.categories)
    labels = DetectionLabels(categories=coco.categories, images=images)
    detection = DetectionSettings(
        annotations=str(coco.annotations),
        images=str(coco.folder),
        image_size=request.image_size,
        confidence=request.confidence,
        max_detections=request.max_detections,
        iou=request.iou,
        calibration_digest=digest([image.sha256 for image in calibration.images]) if calibration is not None else None,
        calibration_images=len(calibration.images) if calibration is not None else 0,
        calibration_source=calibration.source if calibration is not None else "",
        labels_digest=labels_digest(labels),
    )
    flags = {
        "reference_quant": FLOAT_TAG,
        **request.settings,
        "models": [request.weights],
        "quants": list(tags),
        "task_bank": f"coco:{request.split}",
        "out_dir": str(request.out_dir),
    }
    spec = load_spec(flags, available_cores=usable_cores(), root=REPOSITORY_ROOT, detection=detection)
    options = DetectorOptions(
        image_folder=coco.folder,
        category_ids=tuple(category.category_id for category in coco.categories),
        image_size=request.image_size,
        confidence=request.confidence,
        iou=request.iou,
        max_detections=request.max_detections,
        providers=request.providers,
    )
    sizes = [quantizer.estimate_bytes(source, tag) for tag in tags]
    plan = build_plan(
        spec,
        models=[source],
        tasks=tuple(tasks.values()),
        bank_digest=digest(bank),
        cores=default_threads(),
        fingerprint=hardware_fingerprint(),
        commit_sha=commit_sha(REPOSITORY_ROOT),
        block_tasks=resolve_block_tasks(sizes, total_memory_bytes()),
    )
    sweep = PreparedSweep(plan, tasks, {request.weights: source}, quantizer, create_runtime("onnx", detector=options))
    return PreparedDetection(sweep, quantizer, labels, calibration, paths, request.providers, (*coco.notes, *notes))


def _evaluated(request: DetectRequest) -> tuple[CocoSet, tuple[LabelledImage, ...]]:
    coco = open_coco(request.coco, request.split)
    if request.image_ids_list is not None:
        images = read_id_list(request.image_ids_list, coco)
        images = images[: request.max_images] if request.max_images else images
    else:
        images = first_images(coco, request.max_images)
    require_files(coco, images)
    return coco, images


def _calibration(request: DetectRequest, tags: Sequence[str]) -> tuple[Calibration | None, tuple[Path, ...], tuple[str, ...]]:
    """Return the calibration set, its files, and notes about it; nothing where every variant is the float model."""
    if all(tag == FLOAT_TAG for tag in tags):
        return None, (), ()
    notes: tuple[str, ...] = ()
    if request.calib_list is not None:
        paths = read_image_list(request.calib_list)
        source = f"list {request.calib_list.name}"
    else:
        coco = open_coco(request.coco, request.calibration_split)
        count = min(request.calib_images, len(coco.images))
        if count < request.calib_images:
            notes = (f"the {request.calibration_split} split has only {count} images to calibrate on",)
        drawn = draw_images(coco, count, request.calib_seed)
        require_files(coco, drawn)
        paths = tuple(coco.folder / image.file_name for image in drawn)
        source = f"{count} images of the {request.calibration_split} split, drawn with seed {request.calib_seed}"
    calibration = Calibration(images=digest_images(paths), image_size=request.image_size, source=source)
    return calibration, paths, notes


def _check_overlap(calibration: Calibration, evaluated: Sequence[ImageRequest], request: DetectRequest) -> tuple[str, ...]:
    """Return a note about images that are on both sides. Raises `SpecError` unless that was allowed."""
    shared = overlapping(calibration.images, evaluated)
    if not shared:
        return ()
    names = ", ".join(image.file_name for image in shared[:_SHOWN])
    message = f"{len(shared)} calibration images are evaluated too ({names}{', ...' if len(shared) > _SHOWN else ''})"
    if not request.allow_overlap:
        hint = "calibrate on other images; --allow-overlap measures anyway, and flatters the result"
        raise SpecError([Problem("calibration", message, hint)])
    return (f"{message}: the quantized variants are flattered",)
