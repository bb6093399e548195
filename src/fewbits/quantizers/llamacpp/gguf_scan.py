"""Read the header of a GGUF file with every length checked: metadata scalars and the tensor table, never the weights.

The `gguf` package's reader builds a numpy view per vocabulary entry (seconds for a 49k vocabulary) and answers a
truncated file with an IndexError. This one skips what nobody asks for and says what is wrong.

Source: ggml, docs/gguf.md (file structure, versions 2 and 3).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbits.quantizers.llamacpp.ggml_types import TYPE_BY_NUMBER, GgmlType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
# arrays up to this length are kept (per-layer head counts); longer ones (vocabularies) are skipped, only their length stays
_KEPT_ARRAY_LENGTH = 4096


class MalformedGgufError(ValueError):
    """The bytes are not a GGUF that can be used; the message is one clause for people."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table: `shape[0]` is the row width, `offset` counts from the start of the tensor data."""

    name: str
    kind: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.weights // self.kind.weights * self.kind.bytes


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array in the metadata that was stepped over; only its length is known."""

    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the tensor data. `data_start` is where the tensor data begins, in bytes from the file's start."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int


class Cursor:
    """A reading position in bytes; every read is checked against the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._end = len(data)
        self.at = 0

    def _advance(self, count: int) -> int:
        start = self.at
        if count > self._end - start:
            msg = f"truncated: it ends inside its header, after {self._end} bytes"
            raise MalformedGgufError(msg)
        self.at = start + count
        return start

    def number(self, layout: str) -> Any:
        """Read one number of a `struct` layout."""
        return struct.unpack_from(layout, self._data, self._advance(struct.calcsize(layout)))[0]

    def take(self, count: int) -> bytes:
        """Read `count` bytes."""
        start = self._advance(count)
        return self._data[start : start + count]

    def text(self) -> str:
        """Read a string: its length, then UTF-8 (what is not, is replaced)."""
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        """Step over `count` bytes."""
        self._advance(count)

    def skip_texts(self, count: int) -> None:
        """Step over `count` strings."""
        # the one hot loop: vocabularies and merges have hundreds of thousands of entries
        data, end, at, length_at = self._data, self._end, self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > end - 8:
                break
            at += 8 + length_at(data, at)[0]
        else:
            self.skip(at - self.at)
            return
        self.skip(end - self.at + 1)

    def require_room(self, count: int, each: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, before looping over it."""
        if count * each > self._end - self.at:
            msg = f"truncated or corrupt: its header claims {count} {what}, more than the file can hold"
            raise MalformedGgufError(msg)


def scan_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file. Raises `MalformedGgufError` (never anything else for bad bytes) and `OSError`."""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = Cursor(data)
        if cursor.take(4) != MAGIC:
            msg = "not a GGUF file"
            raise MalformedGgufError(msg)
        version = cursor.number("<I")
        _check_version(version)
        tensor_count, pair_count = cursor.number("<Q"), cursor.number("<Q")
        cursor.require_room(pair_count, 13, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = cursor.text()
            metadata[key] = read_value(cursor, cursor.number("<I"))
        cursor.require_room(tensor_count, 24, "tensors")
        tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            msg = f"corrupt: its alignment {alignment!r} is not a power of two"
            raise MalformedGgufError(msg)
        return GgufHeader(version, metadata, tensors, -(-cursor.at // alignment) * alignment)


def _check_version(version: int) -> None:
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0:
        msg = "a big-endian GGUF, which engines on this machine do not load; convert it to little-endian"
    else:
        msg = f"GGUF version {version}, but only versions 2 and 3 are supported; convert the model again with a current llama.cpp"
    raise MalformedGgufError(msg)


def read_value(cursor: Cursor, type_number: int, depth: int = 0) -> Any:
    """Read a metadata value of a type; a long array is stepped over. Raises `MalformedGgufError`."""
    if layout := _SCALARS.get(type_number):
        return cursor.number(layout)
    if type_number == _STRING:
        return cursor.text()
    if type_number != _ARRAY or depth > 2:
        msg = f"corrupt: metadata of unknown type {type_number}"
        raise MalformedGgufError(msg)
    item_type, length = cursor.number("<I"), cursor.number("<Q")
    layout = _SCALARS.get(item_type)
    cursor.require_room(length, struct.calcsize(layout) if layout else 8, "array items")
    if length <= _KEPT_ARRAY_LENGTH:
        return [read_value(cursor, item_type, depth + 1) for _ in range(length)]
    if layout:
        cursor.skip(length * struct.calcsize(layout))
    elif item_type == _STRING:
        cursor.skip_texts(length)
    else:
        for _ in range(length):
            read_value(cursor, item_type, depth + 1)
    return SkippedArray(length)


def _tensor(cursor: Cursor) -> GgufTensor:
    name = cursor.text()
    dimensions = cursor.number("<I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        msg = f"corrupt: tensor {name!r} claims {dimensions} dimensions"
        raise MalformedGgufError(msg)
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    number = cursor.number("<I")
    kind = TYPE_BY_NUMBER.get(number)
    if kind is None:
        msg = f"tensor {name!r} has type number {number}, which fewbits does not know: a removed or a newer ggml type"
        raise MalformedGgufError(msg)
    if shape[0] % kind.weights:
        msg = f"corrupt: rows of tensor {name!r} are {shape[0]} wide, which {kind.name} blocks of {kind.weights} do not divide"
        raise MalformedGgufError(msg)
    return GgufTensor(name, kind, shape, cursor.number("<Q"))
