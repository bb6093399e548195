"""Where the parts of a GGUF lie, and the header that the same file has once some of its tensors got another type."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES, GgmlType
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.gguf_scan import DEFAULT_ALIGNMENT, MAGIC, Cursor, GgufTensor, read_value
from fewbits.records.schemes import SCHEMES

FILE_TYPE_KEY = "general.file_type"
QUANTIZATION_VERSION_KEY = "general.quantization_version"
QUANTIZATION_VERSION = 2
"""Version of the block formats. Source: llama.cpp, `ggml/include/ggml.h` (GGML_QNT_VERSION)."""
_UINT32 = 4
_FIXED_BYTES = 24  # magic, version, number of tensors, number of metadata entries


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """One metadata entry: its key, and the bytes of the file that hold key, type and value."""

    key: str
    start: int
    stop: int


def read_entries(file: GgufFile) -> tuple[MetadataEntry, ...]:
    """Return where each metadata entry of a checked file lies, in file order. Remembered while size and time stay the same."""
    status = file.path.stat()
    return _entries(file.path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _entries(path: Path, _size: int, _modified: int) -> tuple[MetadataEntry, ...]:
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = Cursor(data)
        cursor.skip(_FIXED_BYTES - 8)
        found = []
        for _ in range(cursor.number("<Q")):
            start = cursor.at
            key = cursor.text()
            read_value(cursor, cursor.number("<I"))
            found.append(MetadataEntry(key, start, cursor.at))
        return tuple(found)


def alignment_of(file: GgufFile) -> int:
    """Return what the tensors of a file are aligned to, bytes."""
    value = file.header.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    return int(value)


def padded(size: int, alignment: int) -> int:
    """Return `size` rounded up to the alignment, bytes."""
    return -(-size // alignment) * alignment


def kind_after(tensor: GgufTensor, types: Mapping[str, str]) -> GgmlType:
    """Return the type of a tensor when `types` (tensor name -> ggml type) has been applied."""
    name = types.get(tensor.name)
    return tensor.kind if name is None else GGML_TYPES[name]


def bytes_as(tensor: GgufTensor, kind: GgmlType) -> int:
    """Return the bytes of a tensor's data in a type whose block divides its rows."""
    return tensor.weights // kind.weights * kind.bytes


def grafted_bytes(file: GgufFile, types: Mapping[str, str]) -> int:
    """Return the exact size of the file after a graft, bytes: header, tensors and padding."""
    alignment = alignment_of(file)
    metadata = sum(len(part) if isinstance(part, bytes) else part.stop - part.start for part in _metadata_after(file, types))
    table = sum(len(_table_row(tensor, tensor.kind, 0)) for tensor in file.tensors)
    data = sum(padded(bytes_as(tensor, kind_after(tensor, types)), alignment) for tensor in file.tensors)
    return padded(_FIXED_BYTES + metadata + table, alignment) + data


def grafted_header(file: GgufFile, types: Mapping[str, str]) -> bytes:
    """Return all bytes before the tensor data. Raises `OSError`.

    Metadata is copied byte for byte, but for `general.file_type`, which gets the number of the type that holds the most
    weights (unchanged where llama.cpp has none), and `general.quantization_version`, which is added where it is missing.
    Each tensor starts where the padded one before it ends, as llama.cpp's reader demands.
    """
    alignment = alignment_of(file)
    parts = _metadata_after(file, types)
    with file.path.open("rb") as handle:
        metadata = [part if isinstance(part, bytes) else _slice(handle.fileno(), part) for part in parts]
    head = MAGIC + struct.pack("<IQQ", file.header.version, len(file.tensors), len(parts))
    table = []
    offset = 0
    for tensor in file.tensors:
        kind = kind_after(tensor, types)
        table.append(_table_row(tensor, kind, offset))
        offset += padded(bytes_as(tensor, kind), alignment)
    whole = b"".join((head, *metadata, *table))
    return whole.ljust(padded(len(whole), alignment), b"\0")


def _slice(descriptor: int, entry: MetadataEntry) -> bytes:
    import os

    return os.pread(descriptor, entry.stop - entry.start, entry.start)


def _metadata_after(file: GgufFile, types: Mapping[str, str]) -> list[MetadataEntry | bytes]:
    """Return the metadata entries after a graft: new ones as bytes, copied ones as places in the file."""
    entries = read_entries(file)
    number = _file_type_after(file, types)
    parts: list[MetadataEntry | bytes] = [
        _uint32_entry(FILE_TYPE_KEY, number) if entry.key == FILE_TYPE_KEY and number is not None else entry for entry in entries
    ]
    keys = {entry.key for entry in entries}
    if FILE_TYPE_KEY not in keys and number is not None:
        parts.append(_uint32_entry(FILE_TYPE_KEY, number))
    if QUANTIZATION_VERSION_KEY not in keys:
        parts.append(_uint32_entry(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION))
    return parts


def _file_type_after(file: GgufFile, types: Mapping[str, str]) -> int | None:
    weights: Counter[str] = Counter()
    for tensor in file.tensors:
        weights[kind_after(tensor, types).name] += tensor.weights
    return file_type_number(max(weights, key=lambda name: (weights[name], name)))


def file_type_number(ggml_type: str) -> int | None:
    """Return llama.cpp's file type for a file that is mostly of one ggml type; `None` where it has none.

    Where several mixes are built on the type, the one named after it, else the smallest mix, which has the fewest tensors of
    other types (`Q4_K` -> Q4_K_S).
    """
    mixes = [scheme for scheme in SCHEMES if scheme.ggml_type == ggml_type]
    if not mixes:
        return None
    return min(mixes, key=lambda scheme: (scheme.tag != ggml_type, scheme.nominal_bits_per_weight)).ftype


def _uint32_entry(key: str, value: int) -> bytes:
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<II", _UINT32, value)


def _table_row(tensor: GgufTensor, kind: GgmlType, offset: int) -> bytes:
    name = tensor.name.encode("utf-8", "replace")
    shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind.number, offset)
