"""Tensors as numbers, and grains: one tensor's quantized bytes, made once by libgguf and kept on disk.

libgguf is the plain-C part of ggml's quantizers; for the types that a recipe may name it gives the same bytes as
llama-quantize, and needs no engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fewbits.core.codec import digest
from fewbits.core.engines import EngineTool, Wheel, find_wheel
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.core.files import sha256_file, storage_error
from fewbits.core.units import GIB
from fewbits.quantizers.llamacpp.ggml_types import GgmlType
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_layout import bytes_as
from fewbits.quantizers.llamacpp.gguf_scan import GgufTensor

Rows = npt.NDArray[np.float32]
"""Weights, `float32[rows, row width]`."""
Importance = npt.NDArray[np.float32]
"""Mean squared activation of each input, `float32[row width]`; of stacked experts one after the other."""

LIBGGUF = Wheel("libgguf", "_libgguf*.so")
GRAIN_FOLDER = "grains"
"""Where grains lie below the cache's root, for everyone who wants to share them."""
GRAIN_LIMIT_BYTES = 8 * GIB
"""What a folder of grains may hold unless its maker says otherwise, bytes."""
_GRAIN_SCHEMA = "fewbits.grain.v1"
# float32 numbers per slice: bounds memory at 64 MiB for the rows and about as much again while they are converted
_SLICE_WEIGHTS = 16 * 1024 * 1024


def require_libgguf() -> EngineTool:
    """Return the installed libgguf with version and digest. Raises `PrerequisiteError` that says how to get it."""
    tool = find_wheel("libgguf", LIBGGUF)
    if tool is None:
        raise PrerequisiteError(
            "libgguf, which quantizes single tensors, is not installed", "Install it with: pip install 'fewbits[llamacpp]'"
        )
    return tool


def row_count(tensor: GgufTensor) -> int:
    """Return the number of rows, over all matrices of a stack."""
    return tensor.weights // tensor.shape[0]


def read_rows(file: GgufFile, tensor: GgufTensor, first: int, count: int) -> Rows:
    """Return rows `first`..`first + count - 1` as numbers; quantized ones are dequantized.

    Raises `SpecError` for types that hold no weights, `OSError`, `PrerequisiteError` (quantized, and no libgguf).
    """
    width, kind = tensor.shape[0], tensor.kind
    row_bytes = width // kind.weights * kind.bytes
    start = file.header.data_start + tensor.offset + first * row_bytes
    raw = np.memmap(file.path, dtype=np.uint8, mode="r", offset=start, shape=(count, row_bytes))
    if kind.name == "F32":
        return np.array(raw.view("<f4"))
    if kind.name == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind.name == "BF16":
        # the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if not kind.is_quantized:
        raise SpecError.single(tensor.name, f"has type {kind.name}, which holds no weights", "leave it as it is")
    require_libgguf()
    import libgguf

    rows: Rows = libgguf.dequantize_rows(raw, kind.number, width)
    return rows


def row_slices(tensor: GgufTensor) -> Iterator[tuple[int, int]]:
    """Yield (first row, rows) over a tensor so that a slice fits into memory and never spans two matrices of a stack."""
    per_matrix = tensor.shape[1] if len(tensor.shape) > 1 else 1
    at_once = max(1, _SLICE_WEIGHTS // tensor.shape[0])
    for matrix in range(0, row_count(tensor), per_matrix):
        for first in range(matrix, matrix + per_matrix, at_once):
            yield first, min(at_once, matrix + per_matrix - first)


def quantize_tensor(file: GgufFile, tensor: GgufTensor, kind: GgmlType, importance: Importance | None, stream: BinaryIO) -> None:
    """Write a tensor's bytes in another type to `stream`, slice by slice.

    Raises `BackendError` for weights that are not finite: no block can hold them.
    """
    import libgguf

    width = tensor.shape[0]
    rows_per_matrix = tensor.shape[1] if len(tensor.shape) > 1 else 1
    for first, count in row_slices(tensor):
        rows = read_rows(file, tensor, first, count)
        if not np.isfinite(rows).all():
            raise BackendError("libgguf", f"{tensor.name} holds weights that are not finite")
        matrix = first // rows_per_matrix
        weights = None if importance is None else importance[matrix * width : (matrix + 1) * width]
        stream.write(np.ascontiguousarray(libgguf.quantize_rows(rows, kind.number, imatrix=weights)).data.cast("B"))


def round_trip(rows: Rows, kind: GgmlType) -> Rows:
    """Return rows as they are after being stored in a quantized type, `float32`. Needs libgguf."""
    import libgguf

    stored: Rows = libgguf.dequantize_rows(libgguf.quantize_rows(rows, kind.number), kind.number, rows.shape[-1])
    return stored


class GrainCache:
    """Grains in a folder, which processes may share; a folder that ends with this object when none is given.

    A grain's key is the source file's sha256, the tensor, the type, the importance of its inputs and libgguf's version. Grains
    that were used longest ago are removed beyond `limit_bytes`. They are no evidence: the folder can be deleted at any time.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int = GRAIN_LIMIT_BYTES) -> None:
        self._temporary = None if folder is not None else Path(tempfile.mkdtemp(prefix="fewbits-grains-"))
        self._folder = folder if folder is not None else self._temporary_folder()
        self._limit = limit_bytes
        self._digests: dict[tuple[Path, int, int, int], str] = {}

    def __enter__(self) -> GrainCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the grains lie."""
        return self._folder

    def close(self) -> None:
        """Remove the folder when it was made here."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def open(self, file: GgufFile, tensor: GgufTensor, kind: GgmlType, importance: Importance | None = None) -> BinaryIO:
        """Return the grain, opened for reading, making it where it is missing. Its caller closes it.

        Raises `StoreError`, `BackendError`, `PrerequisiteError` (no libgguf).
        """
        path = self._path(file, tensor, kind, importance)
        size = bytes_as(tensor, kind)
        try:
            if (found := _opened(path, size)) is not None:
                return found
            require_libgguf()
            return self._made(path, file, tensor, kind, importance)
        except OSError as error:
            raise storage_error(path, error) from error

    def _temporary_folder(self) -> Path:
        if self._temporary is None:
            msg = "no temporary folder was made"
            raise AssertionError(msg)
        return self._temporary

    def _path(self, file: GgufFile, tensor: GgufTensor, kind: GgmlType, importance: Importance | None) -> Path:
        key = digest(
            {
                "schema": _GRAIN_SCHEMA,
                "source_sha256": self._digest_of(file.path),
                "tensor": tensor.name,
                "type": kind.name,
                "importance_sha256": None if importance is None else hashlib.sha256(importance.tobytes()).hexdigest(),
                "libgguf": _libgguf_version(),
            }
        )
        return self._folder / key[:2] / f"{key}.grain"

    def _digest_of(self, path: Path) -> str:
        status = path.stat()
        identity = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        if identity not in self._digests:
            self._digests[identity] = sha256_file(path)
        return self._digests[identity]

    def _made(self, path: Path, file: GgufFile, tensor: GgufTensor, kind: GgmlType, importance: Importance | None) -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                quantize_tensor(file, tensor, kind, importance, stream)
                stream.flush()
                os.fsync(stream.fileno())
            # opened before others could remove it
            found = temporary.open("rb")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._prune()
        return found

    def _prune(self) -> None:
        """Remove the grains that were used longest ago until the folder is within its limit."""
        found = []
        for path in self._folder.glob("??/*.grain"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self._limit
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _opened(path: Path, size: int) -> BinaryIO | None:
    """Open a grain of the right size and mark it as used; `None` where there is none."""
    try:
        found = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(found.fileno()).st_size != size:
        found.close()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return found


def _libgguf_version() -> str:
    if importlib.util.find_spec("libgguf") is None:
        return ""
    return importlib.metadata.version("libgguf")
