"""The `onnx` runtime: detectors as ONNX files, each variant in a child process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewbits.core.errors import PrerequisiteError, Problem, SpecError
from fewbits.records.plan import Controls
from fewbits.records.runtime import RuntimeCapabilities
from fewbits.records.variant import Variant
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.onnx.session import OnnxSession
from fewbits.runtimes.placement import resolve_cores, resolve_threads

_SCORES = ("auto", "probabilities", "logits")
_HEADS = ("auto", "one-to-one", "one-to-many")


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
        """Raise `SpecError` with every option that makes no sense."""
        if problems := _problems(options):
            raise SpecError(problems)
        self._options = options

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime reports: times and threads; there are no tokens."""
        return CAPABILITIES["onnx"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> OnnxSession:
        """Start a child with this variant.

        Raises `SpecError` (no file, bad affinity, a graph that takes no such images), `PrerequisiteError` (no provider of those
        wanted is there, or none of them could be used), `BackendError`.
        """
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
        session = OnnxSession(variant.artifact, options, cores, load_timeout_seconds)
        try:
            require_wanted_provider(self._options.providers, session.description["providers"])
            require_images(variant.path, session.description["inputs"], self._options.image_size)
        except BaseException:
            session.close()
            raise
        return session


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


def require_wanted_provider(wanted: tuple[str, ...], used: list[str]) -> None:
    """Raise `PrerequisiteError` where ONNX Runtime fell back to a provider that nobody asked for (a driver is missing)."""
    if not set(wanted) & set(used):
        what = f"ONNX Runtime could use none of the providers {', '.join(wanted)} and fell back to {', '.join(used)}"
        raise PrerequisiteError(what, "Install what the provider needs (driver, CUDA, cuDNN), or choose CPUExecutionProvider.")


def require_images(path: Path, inputs: list[list[Any]], image_size: int) -> None:
    """Raise `SpecError` unless a graph has one input and that takes one picture, float or float16 `[1, 3, size, size]`.

    `inputs` are `[name, type, shape]`; free dimensions (names) fit every size.
    """
    wanted = (1, 3, image_size, image_size)
    found = "; ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs)
    if len(inputs) == 1:
        _, kind, shape = inputs[0]
        fits = len(shape) == len(wanted) and all(
            not isinstance(side, int) or side == size for side, size in zip(shape, wanted, strict=True)
        )
        if fits and kind in ("tensor(float)", "tensor(float16)"):
            return
    hint = "choose the image size that the model was exported with"
    raise SpecError.single(str(path), f"the graph takes {found or 'nothing'}, not one picture of shape {list(wanted)}", hint)


def _problems(options: DetectorOptions) -> list[Problem]:
    ids = options.category_ids
    checks = (
        (not ids, "category_ids", "there is no class", "name the data set's category of each class"),
        (len(set(ids)) != len(ids), "category_ids", "two classes have the same category", ""),
        (options.image_size < 1, "image_size", f"{options.image_size} pixels are no image", "the usual size is 640"),
        (not 0 <= options.confidence <= 1, "confidence", f"{options.confidence:g} does not lie in 0..1", ""),
        (not 0 < options.iou < 1, "iou", f"{options.iou:g} does not lie between 0 and 1", ""),
        (options.max_detections < 1, "max_detections", "at least one detection must be kept", ""),
        (options.pre_nms_limit < 1, "pre_nms_limit", "at least one box must be kept", ""),
        (options.scores not in _SCORES, "scores", f"{options.scores!r} is none of {', '.join(_SCORES)}", ""),
        (options.head not in _HEADS, "head", f"{options.head!r} is none of {', '.join(_HEADS)}", ""),
        (not options.providers, "providers", "there is no provider", "CPUExecutionProvider is always there"),
    )
    return [Problem(where, message, hint) for wrong, where, message, hint in checks if wrong]
