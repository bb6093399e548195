"""Cleaning a graph up without losing a single quantization node: checked, not hoped for."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fewbits.core.errors import BackendError, PrerequisiteError
from fewbits.quantizers.onnx.agreement import OutputAgreement, compare_arrays, open_session, run_all
from fewbits.quantizers.onnx.census import census_of
from fewbits.quantizers.onnx.graph import constants, drop_constant_inputs, metadata, read_graph, set_metadata, write_graph
from fewbits.records.base import Record
from fewbits.records.onnx_graph import QuantCensus

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from fewbits.quantizers.onnx.agreement import Arrays

PASSES: tuple[str, ...] = (
    "eliminate_deadend",
    "eliminate_identity",
    "eliminate_nop_dropout",
    "eliminate_nop_pad",
    "eliminate_nop_transpose",
    "eliminate_unused_initializer",
    "fuse_consecutive_transposes",
    "fuse_consecutive_squeezes",
    "fuse_consecutive_unsqueezes",
    "set_unique_name_for_nodes",
)
"""Passes that neither fold constants nor merge operators: folding would dissolve the quantized weights."""
TOLERANCE = 1e-4
"""Largest change of any output value that a clean-up may cause, relative to the largest output (float sums in another order)."""
_THREADS = 1
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip"})


class CleanupReport(Record, frozen=True, kw_only=True):
    """What a clean-up did."""

    nodes_before: int
    nodes_after: int
    census: QuantCensus
    agreement: OutputAgreement
    """Outputs after against before."""


class SlimReport(Record, frozen=True, kw_only=True):
    """What onnxslim would do with the same file; nothing of it is kept."""

    nodes_before: int
    nodes_after: int
    quantize_linear: tuple[int, int]
    """Before, after."""
    dequantize_linear: tuple[int, int]
    clip: tuple[int, int]
    agreement: OutputAgreement | None
    """`None` where the slimmed graph does not run (`failure` says why)."""
    failure: str = ""


def clean_up(source: Path, output: Path, inputs: Sequence[Arrays]) -> CleanupReport:
    """Write a cleaned copy of `source` to `output`, compared with it on `inputs` (each: input name -> array; at least one).

    Raises `BackendError` when a Q, DQ or Clip node would be lost, a quantized weight, scale or bound would change, or outputs
    would differ by more than the tolerance or are not finite; `output` is left as it was then. Raises `SpecError` when `source`
    is no ONNX file.
    """
    model = read_graph(source)
    before = census_of(model, source.stat().st_size)
    cleaned = _optimised(model)
    drop_constant_inputs(cleaned)
    set_metadata(cleaned, metadata(model))
    after = census_of(cleaned, cleaned.ByteSize())
    _require_same_quantization(source, before, after)
    if _quantization_constants(model) != _quantization_constants(cleaned):
        raise BackendError("onnxoptimizer", f"the clean-up of {source.name} would change quantized weights, scales or bounds")
    expected = run_all(open_session(source, _THREADS), inputs)
    agreement = compare_arrays(expected, _outputs_of(cleaned, inputs))
    allowed = TOLERANCE * max(float(abs(array).max(initial=0.0)) for array in expected)
    if agreement.largest > allowed:
        msg = f"cleaned, {source.name} answers differently: by {agreement.largest:.3g}, where {allowed:.3g} would be noise"
        raise BackendError("onnxoptimizer", msg)
    write_graph(cleaned, output)
    census = msgspec.structs.replace(after, file_bytes=output.stat().st_size)
    return CleanupReport(
        nodes_before=len(model.graph.node), nodes_after=len(cleaned.graph.node), census=census, agreement=agreement
    )


def _outputs_of(model: Any, inputs: Sequence[Arrays]) -> list[npt.NDArray[np.float32]]:
    """Run a model that is not on disk yet."""
    with tempfile.TemporaryDirectory(prefix="fewbits-onnx-") as folder:
        candidate = Path(folder) / "candidate.onnx"
        write_graph(model, candidate)
        return run_all(open_session(candidate, _THREADS), inputs)


def _quantization_constants(model: Any) -> Counter[tuple[str, ...]]:
    """Return what every Q, DQ and Clip node is given as constants: its type and, by place, a digest of type, shape and values."""
    found = constants(model.graph)
    behind = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}

    def content(name: str) -> str:
        while name in behind:
            name = behind[name]
        return _content_digest(found[name]) if name in found else ""

    nodes = [node for node in model.graph.node if node.op_type in _QUANTIZATION]
    return Counter((node.op_type, *(content(name) for name in node.input)) for node in nodes)


def _content_digest(tensor: Any) -> str:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    return hashlib.sha256(f"{tensor.data_type} {values.shape} ".encode() + values.tobytes()).hexdigest()


def _optimised(model: Any) -> Any:
    try:
        import onnxoptimizer
    except ImportError as error:
        raise PrerequisiteError(
            "onnxoptimizer is not installed", "Install it with `pip install 'fewbits[detection]'`."
        ) from error
    try:
        return onnxoptimizer.optimize(model, list(PASSES))
    except Exception as error:  # its errors come from C++ without a type of their own
        raise BackendError("onnxoptimizer", f"the clean-up failed: {error}") from error


def _require_same_quantization(source: Path, before: QuantCensus, after: QuantCensus) -> None:
    lost = [
        f"{name} {getattr(before, name)} before, {getattr(after, name)} after"
        for name in ("quantize_linear", "dequantize_linear", "clip", "quantized_inputs")
        if getattr(before, name) != getattr(after, name)
    ]
    if [tensor.level_bits for tensor in before.weight_tensors] != [tensor.level_bits for tensor in after.weight_tensors]:
        lost.append("weights are stored differently")
    if lost:
        raise BackendError("onnxoptimizer", f"the clean-up of {source.name} would change its quantization: {'; '.join(lost)}")


def slim_effect(source: Path, inputs: Sequence[Arrays]) -> SlimReport:
    """Tell what onnxslim would make of a file.

    Raises `SpecError` for no ONNX file, `PrerequisiteError` without onnxslim, `BackendError` where it fails.
    """
    model = read_graph(source)
    nodes_before = len(model.graph.node)
    before = census_of(model, source.stat().st_size)
    slim = _slimmer()
    expected = run_all(open_session(source, _THREADS), inputs)
    try:
        slimmed = slim(model)
    except Exception as error:  # what it raises has no type of its own
        raise BackendError("onnxslim", f"it fails on {source.name}: {error}") from error
    after = census_of(slimmed, slimmed.ByteSize())
    agreement: OutputAgreement | None = None
    failure = ""
    try:
        agreement = compare_arrays(expected, _outputs_of(slimmed, inputs))
    except BackendError as error:
        failure = str(error)
    return SlimReport(
        nodes_before=nodes_before,
        nodes_after=len(slimmed.graph.node),
        quantize_linear=(before.quantize_linear, after.quantize_linear),
        dequantize_linear=(before.dequantize_linear, after.dequantize_linear),
        clip=(before.clip, after.clip),
        agreement=agreement,
        failure=failure,
    )


def _slimmer() -> Callable[[Any], Any]:
    try:
        import onnxslim
    except ImportError as error:
        raise PrerequisiteError("onnxslim is not installed", "Install it with `pip install 'fewbits[detection]'`.") from error
    slim: Callable[[Any], Any] = onnxslim.slim
    return slim
