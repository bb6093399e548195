"""COCO metrics and latency of one detector as an ONNX file: the runbook's evaluator, on the lab's own runtime.

Nothing of a sweep is needed: no plan, no journal. The file runs in a child process exactly as in a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbits.analysis.detection import detection_metrics, match_detections
from fewbits.api.detect_classes import BY_ID, BY_NAME, check_declared, class_categories, declared_names
from fewbits.api.detect_eval_request import SPLIT, EvaluationRequest, chosen_images, open_evaluation_set
from fewbits.api.detect_measure import coco_results, image_ids_digest, summarise_latency, why_no_latency
from fewbits.api.detect_providers import NO_GRAPH, Notice, choose_providers, no_onnx_file, require_no_cpu
from fewbits.api.detect_results import decode_answer
from fewbits.core.codec import encode_canonical, encode_pretty, storable
from fewbits.core.errors import BackendError, FewbitsError, ProtocolError, SpecError
from fewbits.core.files import atomic_write, sha256_file
from fewbits.records.detection import Category, Detections, ImageRequest, LabelledImage
from fewbits.records.detector_run import CocoMetrics
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.task import TaskBank
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.onnx.runtime import DetectorOptions, OnnxRuntime
from fewbits.runtimes.onnx.session import OnnxSession
from fewbits.workloads.detection.coco import CocoSet
from fewbits.workloads.detection.tasks import detection_bank

__all__ = ["EvaluationRequest", "evaluate_onnx"]

LOAD_SECONDS = 600.0
"""TensorRT compiles a graph while it is loaded."""
IMAGE_SECONDS = 120.0
_OTHER_FORM = re.compile(r"\w+: (an output of shape|\d+ points do not belong|the graph wants) ")
"""How the answer begins when every image would fail alike: `runtimes.onnx.decode.OutputFormError`."""


@dataclass(slots=True)
class _Answers:
    """What came back, image by image."""

    detections: dict[int, Detections] = field(default_factory=dict)
    run_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def evaluate_onnx(
    request: EvaluationRequest,
    notice: Notice = lambda _words: None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> CocoMetrics:
    """Run the model on the images, one at a time, and measure. Writes `out` and `detections_out` where they are given.

    An image that the model does not answer counts as without detections, and is counted in `failed_images`. Raises `SpecError`
    (settings, annotation file, missing images, no ONNX file, another head or number of classes), `PrerequisiteError` (no provider
    of those wanted), `BackendError` (the engine died), `StoreError` (the results cannot be written).
    """
    request.check()
    providers = choose_providers(request.providers, request.disable_cpu_fallback, notice)
    coco = open_evaluation_set(request)
    images = chosen_images(request, coco)
    bank = detection_bank(coco, images, SPLIT)
    classes = class_categories(coco.categories, request.coco_names)
    sha256 = _file_digest(request.onnx_path)
    if request.disable_cpu_fallback:
        require_no_cpu(request.onnx_path, providers)
    session = _open_session(request, coco, classes, providers, sha256)
    try:
        session.identity()
        description = dict(session.description)
        if words := check_declared(declared_names(description["metadata"]), classes, str(request.onnx_path)):
            notice(words)
        answers = _ask(session, request, bank, images, progress)
    finally:
        session.close()
    if answers.failures:
        notice(f"{len(answers.failures)} of {len(images)} images were not answered; the first: {answers.failures[0]}")
    record = _record(request, coco, images, answers, sha256=sha256, description=description)
    if request.detections_out is not None:
        atomic_write(request.detections_out, encode_canonical(coco_results(answers.detections)) + b"\n")
    if request.out is not None:
        atomic_write(request.out, encode_pretty(record))
    return record


# --- before the model is opened ---------------------------------------------------------------------------------------


def _file_digest(path: Path) -> str:
    try:
        if path.stat().st_size == 0:
            raise no_onnx_file(path)
        return sha256_file(path)
    except OSError as error:
        hint = "give a file that an ONNX exporter wrote"
        raise SpecError.single(str(path), f"cannot be read: {error.strerror or error}", hint) from error


def _open_session(
    request: EvaluationRequest, coco: CocoSet, classes: Sequence[Category], providers: tuple[str, ...], sha256: str
) -> OnnxSession:
    options = DetectorOptions(
        image_folder=coco.folder,
        category_ids=tuple(category.category_id for category in classes),
        image_size=request.image_size,
        confidence=request.confidence,
        iou=request.iou,
        max_detections=request.max_detections,
        pre_nms_limit=request.pre_nms_topk,
        scores=request.scores,
        head=request.head,
        providers=providers,
    )
    path = request.onnx_path
    artifact = Artifact(
        model_id=storable(path.stem), scheme="ONNX", sha256=sha256, bytes=path.stat().st_size, weights=None, bits_per_weight=None
    )
    try:
        return OnnxRuntime(options).open(Variant(artifact, path), Controls(), LOAD_SECONDS)
    except BackendError as error:
        if any(words in error.tail for words in NO_GRAPH):
            raise no_onnx_file(path) from error
        raise


# --- asking -----------------------------------------------------------------------------------------------------------


def _ask(
    session: OnnxSession,
    request: EvaluationRequest,
    bank: TaskBank,
    images: Sequence[LabelledImage],
    progress: Callable[[int, int], None],
) -> _Answers:
    for _ in range(request.warmup_runs):
        _generate(session, None, request.onnx_path)
    answers = _Answers()
    for done, (task, image) in enumerate(zip(bank.tasks, images, strict=True), start=1):
        reply = _generate(session, task.image, request.onnx_path)
        found = decode_answer(reply.text, image) if isinstance(reply, RawReply) else None
        if isinstance(reply, RawReply) and found is not None:
            answers.detections[image.image_id] = found
            answers.run_ms.append(float(reply.predicted_ms or 0.0))
        else:
            why = f"what came back is not about {image.width} x {image.height} pixels, as the labels are"
            answers.failures.append(f"image {image.image_id}: {reply if isinstance(reply, str) else why}")
        progress(done, len(images))
    return answers


def _generate(session: OnnxSession, image: ImageRequest | None, path: Path) -> RawReply | str:
    """Return the reply, or why there is none."""
    asked = GenerateRequest(prompt="Find the objects.", seed=0, temperature=0, max_tokens=1, image=image)
    try:
        reply = session.generate(asked, IMAGE_SECONDS)
        session.verify_reply(reply)
    except FewbitsError as error:
        if isinstance(error, ProtocolError) and _OTHER_FORM.match(str(error)):
            hint = "another head, or another number of classes than the annotation file's; --coco-yaml names the model's classes"
            raise SpecError.single(str(path), str(error).partition(": ")[2], hint) from error
        if isinstance(error, BackendError) and not session.is_alive():
            raise
        return str(error).partition("\n")[0]
    return reply


# --- measuring --------------------------------------------------------------------------------------------------------


def _record(
    request: EvaluationRequest,
    coco: CocoSet,
    images: Sequence[LabelledImage],
    answers: _Answers,
    *,
    sha256: str,
    description: Mapping[str, Any],
) -> CocoMetrics:
    matches = match_detections(images, coco.categories, answers.detections)
    metrics = detection_metrics(matches, coco.categories, resamples=request.resamples)
    latency = summarise_latency(answers.run_ms, request.skip_latency)
    return CocoMetrics(
        model_name=storable(request.onnx_path.stem),
        onnx_path=storable(str(request.onnx_path)),
        onnx_sha256=sha256,
        providers=tuple(description["providers"]),
        mAP_50_95=None if metrics.map_50_95 is None else metrics.map_50_95.value,
        mAP_50=None if metrics.map_50 is None else metrics.map_50.value,
        mAP_75=metrics.map_75,
        mAP_small=metrics.map_small,
        mAP_medium=metrics.map_medium,
        mAP_large=metrics.map_large,
        num_images=len(images),
        num_detections=metrics.detections,
        latency_ms=latency,
        latency_unavailable="" if latency else why_no_latency(len(answers.run_ms), request.skip_latency),
        failed_images=len(answers.failures),
        settings=_settings(request, coco, images, answers) | {"onnxruntime": description["version"]},
        metrics=metrics,
    )


def _settings(request: EvaluationRequest, coco: CocoSet, images: Sequence[LabelledImage], answers: _Answers) -> dict[str, Any]:
    ids_list = request.image_ids_list
    return {
        "imgsz": request.image_size,
        "conf": request.confidence,
        "iou": request.iou,
        "max_det": request.max_detections,
        "pre_nms_topk": request.pre_nms_topk,
        "warmup_runs": request.warmup_runs,
        "skip_latency": request.skip_latency,
        "max_images": request.max_images,
        "instances": storable(str(coco.annotations)),
        "instances_sha256": coco.digest,
        "images_dir": storable(str(coco.folder)),
        "image_ids_list": None if ids_list is None else storable(str(ids_list)),
        "image_ids_sha256": image_ids_digest(images),
        "class_order": BY_ID if request.coco_names is None else BY_NAME,
        "scores": request.scores,
        "head": request.head,
        "disable_cpu_fallback": request.disable_cpu_fallback,
        "first_failure": storable(answers.failures[0]) if answers.failures else None,
    }
