"""Outputs of an ONNX file against what they should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import BackendError, PrerequisiteError
from fewbits.records.base import Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.float32]]


class OutputAgreement(Record, frozen=True, kw_only=True):
    """How far outputs lie apart over some inputs: absolute differences, in the outputs' own unit."""

    inputs: int
    largest: float
    mean: float
    root_mean_square: float


def open_session(path: Path, threads: int) -> Any:
    """Open a file in ONNX Runtime on the CPU. Raises `PrerequisiteError` without it, `BackendError` for a bad graph."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PrerequisiteError("ONNX Runtime is not installed", "Install it with `pip install 'fewbits[detection]'`.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # threads that spin on after a run would disturb whatever runs beside it
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise BackendError("onnxruntime", f"{path.name} cannot be loaded: {error}") from error


def run_all(session: Any, inputs: Sequence[Arrays]) -> list[npt.NDArray[np.float32]]:
    """Return the first output for each input (name -> array). Raises `BackendError`."""
    try:
        return [session.run(None, dict(arrays))[0] for arrays in inputs]
    except Exception as error:  # as above
        raise BackendError("onnxruntime", f"the graph does not run: {error}") from error


def compare_arrays(expected: Sequence[npt.NDArray[np.float32]], found: Sequence[npt.NDArray[np.float32]]) -> OutputAgreement:
    """Compare outputs pair by pair. Raises `BackendError` where there is none, shapes differ, or values are not finite."""
    import numpy as np

    if not expected:
        raise BackendError("onnxruntime", "there is no output to compare")
    shapes = [(one.shape, other.shape) for one, other in zip(expected, found, strict=True) if one.shape != other.shape]
    if shapes:
        raise BackendError("onnxruntime", f"an output of shape {shapes[0][1]} was expected to have shape {shapes[0][0]}")
    if not all(np.isfinite(array).all() for array in (*expected, *found)):
        raise BackendError("onnxruntime", "an output holds values that are not finite, so there is no difference to measure")
    pairs = zip(expected, found, strict=True)
    apart = np.concatenate([np.abs(one.astype(np.float64) - other).ravel() for one, other in pairs])
    return OutputAgreement(
        inputs=len(found),
        largest=float(apart.max(initial=0.0)),
        mean=float(apart.mean()) if apart.size else 0.0,
        root_mean_square=float(np.sqrt(np.square(apart).mean())) if apart.size else 0.0,
    )


def compare_parts(
    expected: Sequence[npt.NDArray[np.float32]], found: Sequence[npt.NDArray[np.float32]], box_values: int = 4
) -> tuple[OutputAgreement, OutputAgreement]:
    """Compare boxes and scores apart: outputs `float[1, box_values + classes, points]`, boxes (pixels) first, then scores.

    Raises `BackendError` as `compare_arrays`.
    """
    boxes = compare_arrays([array[:, :box_values] for array in expected], [array[:, :box_values] for array in found])
    scores = compare_arrays([array[:, box_values:] for array in expected], [array[:, box_values:] for array in found])
    return boxes, scores
