"""A small detector sweep: four labelled images, three variants, and what they report."""

from __future__ import annotations

from collections.abc import Sequence

from detection_samples import classes, detection, found, labelled, thing
from fewbits.records.base import Bucket
from fewbits.records.detection import Category, Detections, DetectionSettings, LabelledImage
from fewbits.records.detector_run import DetectionLabels, OperatorCensus, SanityCheck, SanityVerdict
from fewbits.records.plan import Controls, Plan, PlannedTask, SweepSpec
from fewbits.records.variant import Artifact, ModelKind, ModelSource
from fewbits.workloads.detection.tasks import task_id

MODEL, FLOAT, EIGHT, TWO = "yolo", "FP32", "W8A8", "W2A32"
PLAN_DIGEST = "d" * 64
QUANTS = (FLOAT, EIGHT, TWO)


def make_labels(names: Sequence[str] = ("cat", "dog"), images: int = 4) -> DetectionLabels:
    """Three objects an image, so that each class but the last has several."""
    shown = [
        labelled(
            number,
            [thing(1, 10, 10, 60 + number, 50), thing(1, 200, 100, 120, 90), thing(2, 400, 200, 100 + 3 * number, 140)],
        )
        for number in range(1, images + 1)
    ]
    categories = tuple(Category(category_id=one.category_id, name=name) for one, name in zip(classes(1, 2), names, strict=True))
    return DetectionLabels(categories=categories, images=tuple(shown))


def report(image: LabelledImage, *, shift: float = 0.0, skip: int = 0) -> Detections:
    """Report the objects, but for the first `skip`, each shifted to the right by a share of its width; and a false alarm."""
    right = [
        detection(one.category_id, 0.9 - 0.1 * place, one.bbox[0] + shift * one.bbox[2], *one.bbox[1:])
        for place, one in enumerate(image.objects)
        if place >= skip
    ]
    return found(image, [*right, detection(2, 0.3, 0, 300, 30, 30)])


def answers_of(labels: DetectionLabels, *, shift: float = 0.0, skip: int = 0) -> dict[int, Detections | None]:
    return {image.image_id: report(image, shift=shift * (image.image_id % 3), skip=skip) for image in labels.images}


def make_plan(labels: DetectionLabels, quants: Sequence[str] = QUANTS) -> Plan:
    spec = SweepSpec(
        models=(MODEL,),
        quants=tuple(quants),
        reference_quant=FLOAT,
        task_bank="bank.json",
        runtime="onnx",
        out_dir="out",
        summary_out="out/sweep_summary.json",
        detection=DetectionSettings(annotations="labels.json", images="images", resamples=200),
    )
    tasks = tuple(
        PlannedTask(task_id=task_id(image.image_id), revision=1, digest="x", bucket=Bucket.DETECTION, tier=1)
        for image in labels.images
    )
    return Plan(
        digest=PLAN_DIGEST,
        spec=spec,
        models=(ModelSource(model_id=MODEL, kind=ModelKind.PACKAGED),),
        tasks=tasks,
        task_bank_digest="b" * 64,
        controls=Controls(threads=2),
        hardware_fingerprint="linux|cpu|2c|24gb|none",
        commit_sha=None,
        trials_total=len(quants) * len(tasks),
        artifacts={},
    )


def make_artifact(tag: str) -> Artifact:
    bits = {FLOAT: 32.0, EIGHT: 8.0, TWO: 2.0}[tag]
    return Artifact(model_id=MODEL, scheme=tag, sha256=None, bytes=9_000_000, weights=2_000_000, bits_per_weight=bits)


def make_census(
    weights: str = "60 tensors at 8 bits, a scale per channel", execution: str = "computed in floats"
) -> OperatorCensus:
    return OperatorCensus(
        quantize_linear=61,
        dequantize_linear=122,
        clip=3,
        level_bits_per_weight=8.0,
        storage_bits_per_weight=8.0,
        consumers=63,
        quantized_inputs=60,
        weights_quantized=weights,
        inputs_quantized="60 inputs at 8 bits",
        integer_operators=None,
        float_operators=63,
        execution=execution,
    )


def make_check(explanation: str = "W8A32 keeps 98 % of the float model's mAP50-95.") -> SanityCheck:
    return SanityCheck(
        variant=TWO,
        retained=0.1,
        sanity_variant="W8A32",
        sanity_retained=0.98,
        verdict=SanityVerdict.SCHEME,
        explanation=explanation,
    )
