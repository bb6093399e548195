"""What the stand-alone evaluator is asked for: which file, on which images, read how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewbits.analysis.detection import RESAMPLES
from fewbits.core.errors import Problem, SpecError
from fewbits.records.detection import LabelledImage
from fewbits.workloads.detection.coco import CocoSet, load_coco, open_coco
from fewbits.workloads.detection.lists import first_images, read_id_list
from fewbits.workloads.detection.score import MAX_DETECTIONS

SPLIT = "val"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate on what. Either `data_root` (a folder in COCO's layout), or `instances` and `images_dir`."""

    onnx_path: Path
    data_root: Path | None = None
    instances: Path | None = None
    images_dir: Path | None = None
    coco_names: Path | None = None
    """YAML file with the model's class names in its order; without it classes are categories in the order of their ids."""
    providers: tuple[str, ...] | None = None
    """In order of preference; `None`: TensorRT, CUDA, CPU, as far as they are here."""
    disable_cpu_fallback: bool = False
    """No part of the graph may run on the CPU provider."""
    warmup_runs: int = 0
    skip_latency: int = 0
    """Images whose time is not counted, from the first on."""
    image_size: int = 640
    max_images: int = 100
    """First images by id; 0 or less: all."""
    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    pre_nms_topk: int = 30_000
    image_ids_list: Path | None = None
    scores: str = "auto"
    head: str = "auto"
    out: Path | None = None
    detections_out: Path | None = None
    resamples: int = RESAMPLES

    def check(self) -> None:
        """Raise `SpecError` with every setting that makes no sense; files are not looked at."""
        if problems := _problems(self):
            raise SpecError(problems)


def _problems(request: EvaluationRequest) -> list[Problem]:
    files = (request.instances, request.images_dir)
    place = "give --data-root, or --instances and --images-dir"
    same = request.out is not None and request.out == request.detections_out
    checks = (
        (request.warmup_runs < 0, "--warmup-runs", f"{request.warmup_runs} is not a number of runs", "0 or more"),
        (request.skip_latency < 0, "--skip-latency", f"{request.skip_latency} is not a number of images", "0 or more"),
        (None in files and files != (None, None), "--instances", "one of --instances and --images-dir is missing", place),
        (files == (None, None) and request.data_root is None, "--data-root", "there is no data set", place),
        (
            request.max_detections > MAX_DETECTIONS,
            "--max-det",
            f"{request.max_detections} detections are more than are read",
            f"at most {MAX_DETECTIONS}",
        ),
        (same, "--detections-out", "this is the file that --out names", "choose another name"),
        (request.resamples < 1, "resamples", f"{request.resamples} is not a number of resamples", "the usual number is 1000"),
    )
    return [Problem(where, message, hint) for wrong, where, message, hint in checks if wrong]


def open_evaluation_set(request: EvaluationRequest) -> CocoSet:
    """Read the labels. Raises `SpecError`."""
    if request.instances is not None and request.images_dir is not None:
        return load_coco(request.instances, request.images_dir)
    assert request.data_root is not None  # noqa: S101 - checked with everything else
    return open_coco(request.data_root, SPLIT)


def chosen_images(request: EvaluationRequest, coco: CocoSet) -> tuple[LabelledImage, ...]:
    """Return the images to ask about, by id: of the list, or of the whole set, the first so many. Raises `SpecError`."""
    limit = request.max_images if request.max_images > 0 else None
    if request.image_ids_list is not None:
        return read_id_list(request.image_ids_list, coco)[:limit]
    return first_images(coco, limit)
