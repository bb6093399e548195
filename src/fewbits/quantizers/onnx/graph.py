"""Reading and writing ONNX files: whole or not at all, with clear words for what is no ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.core.files import atomic_write

FILE_LIMIT_BYTES = 2 * 1024**3
"""What one protobuf message can hold; larger models keep their weights outside, which detectors do not need."""


def require_onnx() -> None:
    """Raise `PrerequisiteError` where the extra is missing."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise PrerequisiteError(
            "the onnx package is not installed", "Install it with `pip install 'fewbits[detection]'`."
        ) from error


def read_graph(path: Path) -> Any:
    """Return the parsed and checked `onnx.ModelProto`. Raises `SpecError` when it is missing, too large or invalid."""
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    hint = "give a file that an ONNX exporter wrote"
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT_BYTES:
            raise SpecError.single(str(path), f"{size} bytes is too large for one ONNX file", "at most 2 GiB")
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
    except OSError as error:
        raise SpecError.single(str(path), f"cannot be read: {error.strerror or error}", hint) from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        first = str(error).strip().splitlines()
        raise SpecError.single(
            str(path), f"is no valid ONNX file: {first[0] if first else type(error).__name__}", hint
        ) from error
    return model


def write_graph(model: Any, path: Path) -> None:
    """Write a model whole or not at all. Raises `StoreError`."""
    atomic_write(path, model.SerializeToString())


def constants(graph: Any) -> dict[str, Any]:
    """Return every constant tensor of a graph by name: initialisers, and the values of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def drop_constant_inputs(model: Any) -> None:
    """Take constants off the list of inputs: a runtime may not fold what a caller could still replace."""
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(kept)


def metadata(model: Any) -> dict[str, str]:
    """Return the file's own key and value texts."""
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(model: Any, entries: Mapping[str, str]) -> None:
    """Replace or add key and value texts, in place; keys come out sorted."""
    merged = {**metadata(model), **entries}
    del model.metadata_props[:]
    for key in sorted(merged):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, merged[key]


def io_contract(model: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the inputs and outputs: name, ONNX element type number, and shape (a text for a free dimension)."""
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    return {"inputs": [_value(value) for value in inputs], "outputs": [_value(value) for value in model.graph.output]}


def _value(value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim]
    return {"name": value.name, "dtype": tensor.elem_type, "shape": shape}
