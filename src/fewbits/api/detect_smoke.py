"""Does an ONNX file load and run at all? One call on random numbers, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewbits.api.detect_providers import NO_GRAPH, Notice, choose_providers, no_onnx_file
from fewbits.core.codec import storable
from fewbits.core.errors import BackendError, SpecError
from fewbits.core.units import GIB
from fewbits.records.detector_run import SmokeRecord

IMAGE_SIZE = 640
_IMAGE_AXES = (1, 3)
"""Batch and channels of a picture; its sides are the image size."""
_INPUT_BYTES_LIMIT = 2 * GIB
_FLOATS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
_WHOLE = {
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(int64)": np.int64,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def smoke_onnx(
    path: Path,
    providers: tuple[str, ...] | None = None,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    notice: Notice = lambda _words: None,
) -> SmokeRecord:
    """Run a graph once, un-warmed, on random numbers: floats even in 0..1, whole numbers 0 or 1.

    Free sides become 1 picture, 3 channels and `image_size` in inputs of four axes, else 1. Raises `SpecError` (no ONNX file, a
    type or size of input that cannot be made up), `PrerequisiteError` (no provider of those wanted), `BackendError` (the graph
    does not load or run).
    """
    if image_size < 1 or seed < 0:
        raise SpecError.single("--imgsz" if image_size < 1 else "--seed", "this must not be negative", "usual are 640 and 0")
    session = _opened(path, choose_providers(providers, disable_cpu_fallback=False, notice=notice))
    rng = np.random.default_rng(seed)
    inputs = {value.name: _random(value, image_size, rng) for value in session.get_inputs()}
    began = time.perf_counter()
    try:
        outputs = session.run(None, inputs)
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise BackendError("onnxruntime", f"{path.name} does not run: {error}") from error
    runtime_ms = (time.perf_counter() - began) * 1000
    return SmokeRecord(
        model_name=storable(path.stem),
        model_path=storable(str(path)),
        providers=tuple(session.get_providers()),
        seed=seed,
        default_image_size=image_size,
        inputs=_described(session.get_inputs(), list(inputs.values())),
        outputs=_described(session.get_outputs(), outputs),
        runtime_ms=runtime_ms,
        is_finite=all(_is_finite(output) for output in outputs),
    )


def _opened(path: Path, providers: tuple[str, ...]) -> Any:
    import onnxruntime

    if not path.is_file():
        raise SpecError.single(str(path), "there is no such file", "give a file that an ONNX exporter wrote")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # as above
        if path.stat().st_size == 0 or any(words in str(error) for words in NO_GRAPH):
            raise no_onnx_file(path) from error
        raise BackendError("onnxruntime", f"{path.name} cannot be loaded: {error}") from error


def _random(value: Any, image_size: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    kind = _FLOATS.get(value.type) or _WHOLE.get(value.type)
    if kind is None:
        raise SpecError.single(f"input {value.name}", f"no random numbers are known for {value.type}")
    defaults = (*_IMAGE_AXES, image_size, image_size) if len(value.shape) == 4 else (1,) * len(value.shape)
    shape = tuple(
        side if isinstance(side, int) and side > 0 else default for side, default in zip(value.shape, defaults, strict=True)
    )
    if math.prod(shape) * np.dtype(kind).itemsize > _INPUT_BYTES_LIMIT:
        raise SpecError.single(f"input {value.name}", f"{list(shape)} is too large to try out")
    if value.type in _FLOATS:
        return rng.random(shape, dtype=np.float32).astype(kind)
    return rng.integers(0, 2, shape).astype(kind)


def _described(values: Sequence[Any], arrays: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Return name, type and the shape that was really used; `null` for an output that is no tensor."""
    return tuple(
        {"name": storable(value.name), "type": value.type, "shape": list(array.shape) if isinstance(array, np.ndarray) else None}
        for value, array in zip(values, arrays, strict=True)
    )


def _is_finite(output: Any) -> bool:
    return not isinstance(output, np.ndarray) or output.dtype.kind != "f" or bool(np.isfinite(output).all())
