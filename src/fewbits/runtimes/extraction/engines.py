"""From a variant to a loaded engine: which one, from which files, with what to tell about it."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Literal

from fewbits.core.errors import SpecError
from fewbits.runtimes.extraction.pipeline import ExtractionEngine
from fewbits.spec.extraction_engines import EngineKind, parse_engine

if TYPE_CHECKING:
    from fewbits.runtimes.extraction.vision_census import PrecisionCensus

_VISION: dict[str, tuple[Literal["bfloat16", "float16", "float32"], Literal[4, 8] | None]] = {
    "bf16": ("bfloat16", None),
    "fp16": ("float16", None),
    "fp32": ("float32", None),
    "nf4": ("bfloat16", 4),
    "nf4-fp16": ("float16", 4),
    "int8": ("float16", 8),
}
"""Precision -> type that is computed in, and bits of the linear layers. LLM.int8 computes in float16 (bitsandbytes)."""


def load_engine(options: dict[str, Any]) -> tuple[ExtractionEngine, dict[str, Any]]:
    """Load the engine that `options` name, and describe it: engine, version, sha256 of the loaded files, threads.

    Raises `SpecError`, `PrerequisiteError`, `BackendError`.
    """
    choice = parse_engine(options["engine"], "engine")
    if choice.kind is EngineKind.OCR:
        return _load_ocr(options)
    if choice.kind is EngineKind.VISION:
        return _load_vision(options, choice.precision)
    raise SpecError.single("engine", f"{choice.tag} is put together from two engines", "load them one by one")


def _load_ocr(options: dict[str, Any]) -> tuple[ExtractionEngine, dict[str, Any]]:
    from fewbits.runtimes.extraction.ocr import OcrEngine, load_reader

    reader, description = load_reader(options)
    return OcrEngine(reader, options["engine"]), description | {"sampled": False}


def _load_vision(options: dict[str, Any], precision: str) -> tuple[ExtractionEngine, dict[str, Any]]:
    import torch

    from fewbits.runtimes.extraction.vision import Sampling, VisionModel
    from fewbits.runtimes.extraction.vision_engine import VisionEngine
    from fewbits.runtimes.extraction.vision_load import VisionOptions

    torch.set_num_threads(options["threads"])
    dtype, bits = _VISION[precision]
    model = VisionModel(
        VisionOptions(
            model=options["artifact"],
            device=options["device"],
            dtype=dtype,
            weight_bits=bits,
            max_new_tokens=options["max_new_tokens"],
        )
    )
    temperature = options["temperature"]
    sampling = Sampling(temperature, options["seed"]) if temperature > 0 else None
    description = {
        "engine": "transformers",
        "version": f"{importlib.metadata.version('transformers')} ({_precision_in_words(model.describe().census)})",
        "sha256": model.digest,
        "threads": torch.get_num_threads(),
        "sampled": sampling is not None,
    }
    return VisionEngine(model, options["engine"], retries=options["max_retries"], sampling=sampling), description


def _precision_in_words(census: PrecisionCensus) -> str:
    """Say how the weights are really stored, counted from the tensors: it stands in every trial."""
    stored = ", ".join(f"{name} {part.parameters}" for name, part in sorted(census.storage.items()))
    bits = census.bits_per_parameter
    return f"{stored} parameters" + (f", {bits:.2f} bits each" if bits is not None else "")
