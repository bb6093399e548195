"""From a model in torch to one ONNX graph form: the same input, the same output, the same opset for every variant."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import BackendError
from fewbits.quantizers.brevitas.library_methods import quiet_brevitas

if TYPE_CHECKING:
    from torch import nn

INPUT_NAME = "images"
OUTPUT_NAME = "output0"
OPSET = 17
"""ONNX operator set. Per-channel QuantizeLinear and DequantizeLinear need 13 at least."""


def export_detector(model: nn.Module, output: Path, image_size: int, *, quantized: bool) -> None:
    """Write a model as ONNX: `images` float32[1, 3, size, size] to `output0` float32[1, 4 + classes, points].

    Quantized layers become QuantizeLinear, Clip and DequantizeLinear (Brevitas' QCDQ form): weights below 8 bits are stored
    as INT8 with a Clip at their true range. Raises `BackendError` where the exporter fails; then nothing is left behind.
    """
    import torch

    example = torch.zeros(1, 3, image_size, image_size)
    names: dict[str, Any] = {"input_names": [INPUT_NAME], "output_names": [OUTPUT_NAME], "opset_version": OPSET, "dynamo": False}
    try:
        with quiet_exporter(), torch.no_grad():
            if quantized:
                from brevitas.export import export_onnx_qcdq

                export_onnx_qcdq(model, args=example, export_path=str(output), **names)
            else:
                torch.onnx.export(model, (example,), str(output), **names)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        output.unlink(missing_ok=True)
        raise BackendError("torch.onnx", f"the model could not be exported: {error}") from error


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's chatter (tracer warnings, progress on stdout) away from people."""
    with warnings.catch_warnings(), quiet_brevitas(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx.*")
        warnings.filterwarnings("ignore", message=".*TracerWarning.*")
        yield
