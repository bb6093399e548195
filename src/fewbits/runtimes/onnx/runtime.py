"""The `onnx` runtime: detectors as ONNX files, each variant in a child process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.records.plan import Controls
from fewbits.records.runtime import RuntimeCapabilities
from fewbits.records.variant import Variant
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.onnx.session import OnnxSession
from fewbits.runtimes.placement import resolve_cores, resolve_threads


@dataclass(frozen=True, slots=True)
class DetectorOptions:
    """How images are shown and outputs are read."""

    image_folder: Path
    category_ids: tuple[int, ...]
    """The data set's category of each class of the model, in the model's order."""
    image_size: int = 640
    confidence: float = 0.001
    iou: float = 0.7
    max_detections: int = 300
    pre_nms_limit: int = 30_000
    scores: str = "auto"
    """`probabilities`, `logits`, or `auto`: what the file declares, else what the first output shows."""
    head: str = "auto"
    """`one-to-one`, `one-to-many`, or `auto`: what the file declares, else one-to-many, which suppresses overlapping boxes."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """In order of preference; those that are not installed are left out."""


class OnnxRuntime:
    """Opens detectors with ONNX Runtime."""

    def __init__(self, options: DetectorOptions) -> None:
        self._options = options

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime reports: times and threads; there are no tokens."""
        return CAPABILITIES["onnx"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> OnnxSession:
        """Start a child with this variant. Raises `SpecError` (no file, bad affinity), `PrerequisiteError`, `BackendError`."""
        if variant.path is None or not variant.path.is_file():
            where = f"{variant.artifact.model_id} {variant.artifact.scheme}"
            raise SpecError.single(where, f"there is no ONNX file at {variant.path}", "the onnx runtime runs files")
        threads = resolve_threads(controls.threads)
        options = asdict(self._options)
        options |= {
            "model": str(variant.path.absolute()),
            "image_folder": str(self._options.image_folder.absolute()),
            "threads": threads,
            "providers": list(usable_providers(self._options.providers)),
        }
        cores = resolve_cores(controls.affinity_policy, threads)
        return OnnxSession(variant.artifact, options, cores, load_timeout_seconds)


def usable_providers(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the execution providers that this machine has, in the wanted order. Raises `PrerequisiteError` when it has none."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PrerequisiteError("ONNX Runtime is not installed", "Install it with `pip install 'fewbits[detection]'`.") from error
    available = onnxruntime.get_available_providers()
    usable = tuple(name for name in wanted if name in available)
    if not usable:
        what = f"ONNX Runtime has none of the providers {', '.join(wanted)} here"
        raise PrerequisiteError(what, f"It has {', '.join(available)}.")
    return usable
