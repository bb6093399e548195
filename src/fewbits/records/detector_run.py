"""What a detector sweep leaves in its folder beside plan, journal and summary: stages, builds, exports, evaluations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from fewbits.records.base import Rate, Record
from fewbits.records.detection import Category, DetectionMetrics, LabelledImage
from fewbits.records.detector_quant import Calibration, LayerRole, Recipe
from fewbits.records.estimate import Estimate


class Stage(StrEnum):
    """What is done to one variant, in this order."""

    EXPORT = "export"
    """Float model: rebuilt, exported. Quantized: calibrated, fitted, exported, compared with torch."""
    CLEANUP = "cleanup"
    SMOKE = "smoke"
    """Opened by the runtime that will be measured, and run once on random numbers."""
    EVALUATE = "evaluate"
    """The trials of the lab, then COCO metrics of their answers."""
    SANITY = "sanity"
    """Only after a collapse: the same steps at 8 bits."""


class StageStatus(StrEnum):
    """How a stage ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class StageRecord(Record, frozen=True, kw_only=True):
    """One stage of one variant. `reason` says why it failed or was skipped."""

    variant: str
    """Quant tag."""
    stage: Stage
    status: StageStatus
    reason: str = ""
    seconds: float | None = None
    """Wall-clock seconds of the work; `None` where nothing was run."""
    cached: bool = False
    """The artifact was there already, made by the same recipe from the same inputs with the same tools."""


class StageLog(Record, frozen=True, kw_only=True):
    """`stages.json`: the last known outcome of every stage."""

    schema_version: str = "fewbits.detector_stages.v1"
    stages: tuple[StageRecord, ...]


class LayerReport(Record, frozen=True, kw_only=True):
    """How one layer came out of fitting. Shares are 0..1."""

    name: str
    role: LayerRole
    weight_bits: int
    weights: int
    relative_error: float | None
    """Mean squared error of the layer's output against the float model's, over that output's mean square, on calibration inputs;
    `None` where the runbook's quantizers were used, which are not fitted."""
    clipped_weight_share: Rate | None
    """Weights that lay beyond the largest code of their scale."""
    saturated_input_share: Rate | None
    """Calibration inputs outside of the activation's range; `None` where activations stay float or are not fitted."""


class OutputGap(Record, frozen=True, kw_only=True):
    """How far a runtime's outputs lie from torch's, over all boxes and scores of some images.

    The floors are torch against itself with sums in another order: rounding edges alone make so much of a difference.
    """

    images: int
    box_largest_pixels: float
    box_mean_pixels: float
    score_largest: float
    score_root_mean_square: float
    box_floor_pixels: float
    """Mean absolute difference, as `box_mean_pixels`."""
    score_floor: float
    """Root mean square, as `score_root_mean_square`."""


class BuildReport(Record, frozen=True, kw_only=True):
    """How a variant was made, as its ONNX file's metadata `fewbits.build` tells."""

    schema_version: str = "fewbits.detector_build.v1"
    recipe: Recipe | None
    """`None` for the float model."""
    head: str
    image_size: int
    source_sha256: str
    calibration: Calibration | None
    layers: tuple[LayerReport, ...]
    runtime_gap: OutputGap
    """ONNX Runtime against torch's fake quantization, on real images."""
    training: dict[str, Any] | None = None
    """Of quantization-aware training: settings and history; `None` without."""
    tools: dict[str, str]
    """Package -> version."""


class QdqCounts(Record, frozen=True, kw_only=True):
    """Quantization nodes of a graph, as the runbook counts them."""

    QuantizeLinear: int
    DequantizeLinear: int
    Clip: int


class GraphCheck(Record, frozen=True, kw_only=True):
    """A clean-up's evidence, and what onnxslim would have done with the same graph."""

    in_path: str
    out_path: str
    qdq_before: QdqCounts
    qdq_after: QdqCounts
    nodes_before: int
    nodes_after: int
    largest_output_difference: float
    slim_nodes_after: int | None = None
    slim_qdq_after: QdqCounts | None = None
    slim_failure: str = ""


class ExportRecord(Record, frozen=True, kw_only=True):
    """`baseline_export.json`, `ptq_<mode>_export.json`, `qat_<mode>_export.json`: the runbook's field names.

    Paths are relative to the run root.
    """

    out_path: str
    imgsz: int
    opset: int
    head: str
    device: str = "cpu"
    fp16_used: bool = False
    fp16_input: bool = False
    qdq_counts: QdqCounts
    io_contract: dict[str, Any]
    calibration: dict[str, Any] | None = None
    """`image_list_path`, `list_images`, `calib_images`, `imgsz`, `device`; `None` where nothing is calibrated."""
    optimized: GraphCheck | None = None
    optimized_io_contract: dict[str, Any] | None = None
    qat_training: dict[str, Any] | None = None
    build: BuildReport


class LatencyMs(Record, frozen=True, kw_only=True):
    """Wall-clock milliseconds of the model alone, one image at a time."""

    count: int
    mean: float
    median: float
    p90: float
    throughput_fps: float
    """1 / mean."""


class CocoMetrics(Record, frozen=True, kw_only=True):
    """`<variant>-coco/metrics.json`: the runbook's field names beside the lab's estimates."""

    schema_version: str = "fewbits.coco_metrics.v1"
    model_name: str
    onnx_path: str
    onnx_sha256: str
    providers: tuple[str, ...]
    mAP_50_95: float | None  # noqa: N815 - the runbook's name
    mAP_50: float | None  # noqa: N815 - the runbook's name
    mAP_75: float | None  # noqa: N815 - the runbook's name
    mAP_small: float | None  # noqa: N815 - the runbook's name
    mAP_medium: float | None  # noqa: N815 - the runbook's name
    mAP_large: float | None  # noqa: N815 - the runbook's name
    num_images: int
    num_detections: int
    latency_ms: LatencyMs | None
    """`None` where no sample is left after those skipped."""
    latency_unavailable: str = ""
    failed_images: int = 0
    """Images that the variant did not answer; they count as without detections."""
    settings: dict[str, Any]
    """imgsz, conf, iou, max_det, pre_nms_topk, warmup_runs, skip_latency, instances, images_dir, image_ids_sha256."""
    metrics: DetectionMetrics


class SmokeRecord(Record, frozen=True, kw_only=True):
    """`smoke/<name>/infer-summary.json`: one call on random numbers."""

    model_name: str
    model_path: str
    providers: tuple[str, ...]
    seed: int
    default_image_size: int
    inputs: tuple[dict[str, Any], ...]
    """name, type, shape of each."""
    outputs: tuple[dict[str, Any], ...]
    runtime_ms: Annotated[float, Meta(ge=0)]
    is_finite: bool


class DetectionLabels(Record, frozen=True, kw_only=True):
    """`labels.json`: what was labelled in the images that were asked about, frozen with the run."""

    schema_version: str = "fewbits.detection_labels.v1"
    categories: tuple[Category, ...]
    images: tuple[LabelledImage, ...]


class SanityVerdict(StrEnum):
    """What 8 bits say about a collapse at fewer."""

    SCHEME = "scheme, not wiring"
    """The same steps at 8 bits hold: export, decoding and evaluation work, the bits are what broke."""
    WIRING = "wiring, not scheme"
    """8 bits collapse too: look for a mistake in export, decoding or evaluation first."""
    UNDECIDED = "undecided"


class SanityCheck(Record, frozen=True, kw_only=True):
    """`sanity.json`, one entry per collapsed variant. Shares are of the float model's mAP50-95."""

    variant: str
    retained: float
    sanity_variant: str
    sanity_retained: float | None
    verdict: SanityVerdict
    explanation: str


class OperatorCensus(Record, frozen=True, kw_only=True):
    """Of a variant, in short: what is quantized and what is really executed in integers."""

    quantize_linear: int
    dequantize_linear: int
    clip: int
    level_bits_per_weight: float | None
    """Bits that the weights' ranges of integers need, averaged over all weights of convolutions and matrix products."""
    storage_bits_per_weight: float | None
    consumers: int
    quantized_inputs: int
    weights_quantized: str
    """In words: how many tensors at how many bits, with how many scales."""
    inputs_quantized: str
    integer_operators: int | None
    """Operators that the runtime executes on integers after its own optimisation; `None` where it does not tell."""
    float_operators: int | None
    """Convolutions and matrix products that it executes on floats."""
    execution: str
    """In words: whether fewer bits also mean integer arithmetic here."""


class RowDetection(Record, frozen=True, kw_only=True):
    """What a detector sweep knows about a variant beyond every other row."""

    metrics: DetectionMetrics | None
    census: OperatorCensus | None
    collapsed: bool | None
    """mAP50-95 below half of the float model's; `None` for the float model and where it was not measured."""
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    asked_images: int = 0
    """Images that the variant was asked about; metrics exist only where these are all images of the sweep."""
    failed_images: int = 0
    """Of these, images without an answer that can be read: they count as without detections."""


class DetectorCensuses(Record, frozen=True, kw_only=True):
    """`censuses.json`: by quant tag."""

    schema_version: str = "fewbits.detector_censuses.v1"
    censuses: dict[str, OperatorCensus]


class SanityChecks(Record, frozen=True, kw_only=True):
    """`sanity.json`."""

    schema_version: str = "fewbits.detector_sanity.v1"
    checks: tuple[SanityCheck, ...]


class AblationRow(Record, frozen=True, kw_only=True):
    """One row of an ablation: a variant, and what its one step changed against the row that it stands on."""

    variant: str
    adds: str | None
    """The step; `None` for the first row."""
    stands_on: str | None
    """The variant without that step; `None` for the first row."""
    rival_of: str | None
    """On a side row: the step of the main ladder that this one replaces."""
    level_bits_per_weight: float | None
    map_50_95: Estimate | None
    retained: Estimate | None
    """Share of the float model's mAP50-95, paired by image."""
    change: Estimate | None
    """mAP50-95 minus that of `stands_on`, paired by image."""
    unavailable: str = ""


class AblationTable(Record, frozen=True, kw_only=True):
    """`ablation.json`: which step brought what."""

    schema_version: str = "fewbits.detector_ablation.v1"
    mode: str
    images: int
    float_map_50_95: Estimate | None
    rows: tuple[AblationRow, ...]
