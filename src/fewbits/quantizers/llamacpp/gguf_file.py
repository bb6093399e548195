"""What a GGUF file really holds: its census of tensor types, measured bits per weight, and the model's shape."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewbits.core.errors import SpecError
from fewbits.core.units import format_bytes
from fewbits.quantizers.llamacpp.gguf_scan import MAGIC, GgufHeader, GgufTensor, MalformedGgufError, SkippedArray, scan_header
from fewbits.records.schemes import Scheme, scheme_for_ftype
from fewbits.records.variant import IMATRIX_DATASET, Artifact, TensorTypeCount, Variant

# written by llama-quantize. Source: llama.cpp, tools/quantize/quantize.cpp
_IMATRIX_DATASET_KEY = "quantize.imatrix.dataset"
_SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_FLOAT_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
# Source: ggml, docs/gguf.md (keys below the architecture's name)
_SHAPE_KEYS = {
    "n_layers": "block_count",
    "n_ctx_train": "context_length",
    "n_embd": "embedding_length",
    "n_head": "attention.head_count",
    "n_head_kv": "attention.head_count_kv",
    "n_embd_head_k": "attention.key_length",
    "n_embd_head_v": "attention.value_length",
    "n_vocab": "vocab_size",
}
# first bytes -> what such a file is, for people who brought the wrong one
_LOOKS_LIKE = (
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint or a wheel"),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not downloaded (git lfs pull)"),
    (b"lmgg", "a GGML file from before GGUF: convert the model again with a current llama.cpp"),
    (b"tjgg", "a GGJT file from before GGUF: convert the model again with a current llama.cpp"),
    (b"fmgg", "a GGMF file from before GGUF: convert the model again with a current llama.cpp"),
    (b"FUGG", "a GGUF file whose bytes were swapped"),
)


@dataclass(frozen=True)
class GgufFile:
    """A checked GGUF file: readable header, and as many bytes as its tensor table promises."""

    path: Path
    bytes: int
    header: GgufHeader

    @property
    def tensors(self) -> tuple[GgufTensor, ...]:
        """The tensor table, in file order."""
        return self.header.tensors

    @cached_property
    def census(self) -> tuple[TensorTypeCount, ...]:
        """Tensors, weights and bytes per ggml type, largest number of weights first."""
        rows: dict[str, list[int]] = {}
        for tensor in self.tensors:
            row = rows.setdefault(tensor.kind.name, [0, 0, 0])
            row[0] += 1
            row[1] += tensor.weights
            row[2] += tensor.bytes
        counts = [TensorTypeCount(ggml_type=name, tensors=row[0], weights=row[1], bytes=row[2]) for name, row in rows.items()]
        return tuple(sorted(counts, key=lambda count: (-count.weights, count.ggml_type)))

    @property
    def weights(self) -> int:
        """Number of elements in all tensors."""
        return sum(count.weights for count in self.census)

    @property
    def bits_per_weight(self) -> float:
        """8 x bytes of all tensor data / number of weights in all tensors; metadata not counted."""
        return 8 * sum(count.bytes for count in self.census) / self.weights

    @property
    def dominant_type(self) -> str:
        """The ggml type that holds the most weights."""
        return self.census[0].ggml_type

    @cached_property
    def is_quantized(self) -> bool:
        """True when any tensor has a block type, so that part of the original precision is already gone."""
        return any(tensor.kind.is_quantized for tensor in self.tensors)

    @property
    def architecture(self) -> str | None:
        """`general.architecture` (`llama`, `qwen2`); `None` when the file does not tell."""
        value = self.header.metadata.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def file_type(self) -> int | None:
        """`general.file_type`, a number of llama.cpp's `enum llama_ftype`; `None` when the file does not tell."""
        value = self.header.metadata.get("general.file_type")
        return value if isinstance(value, int) else None

    @cached_property
    def scheme(self) -> Scheme | None:
        """The scheme that the file itself has; `None` when it cannot be told.

        Of a file without quantized tensors the tensors tell it; of another one the file type, unless that claims floats.
        """
        if not self.is_quantized:
            number = _FLOAT_FILE_TYPES.get(self.dominant_type)
            return scheme_for_ftype(number) if number is not None else None
        named = scheme_for_ftype(self.file_type) if self.file_type is not None else None
        return named if named is not None and not named.is_float else None

    @cached_property
    def parameters(self) -> dict[str, int | str]:
        """Model shape: n_layers, n_ctx_train, n_embd, n_head, n_head_kv, n_embd_head_k, n_embd_head_v, n_vocab,
        file_type, imatrix_dataset: those it tells.

        Per-layer values are given only where all layers agree.
        """
        found: dict[str, int | str] = {}
        for name, key in _SHAPE_KEYS.items():
            value = _one_number(self.header.metadata.get(f"{self.architecture}.{key}"))
            if value is not None:
                found[name] = value
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        if "n_vocab" not in found and tokens is not None:
            found["n_vocab"] = tokens.length if isinstance(tokens, SkippedArray) else len(tokens)
        if (
            "n_head_kv" not in found
            and "n_head" in found
            and f"{self.architecture}.attention.head_count_kv" not in self.header.metadata
        ):
            # ggml's docs: when the key is absent, the model has one key-value head per head
            found["n_head_kv"] = found["n_head"]
        if self.file_type is not None:
            found["file_type"] = self.file_type
        dataset = self.header.metadata.get(_IMATRIX_DATASET_KEY)
        if isinstance(dataset, str) and dataset:
            found[IMATRIX_DATASET] = dataset
        return found


def _one_number(value: Any) -> int | None:
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_gguf(path: Path, where: str | None = None) -> GgufFile:
    """Read and check a GGUF file without touching its weights.

    Raises `SpecError` at `where` (default: the path): missing, a folder, empty, unreadable, not a GGUF (and what it looks
    like), another version, corrupt, truncated, one part of a split file, no tensors.
    """
    place = where or str(path)
    size = _regular_file_size(path, place)
    try:
        header = scan_header(path)
    except MalformedGgufError as error:
        hint = _looks_like(path) if str(error) == "not a GGUF file" else "download or convert the file again"
        raise SpecError.single(place, f"{path.name} is {error}", hint) from error
    except OSError as error:
        raise SpecError.single(place, f"cannot read {path.name}: {error.strerror or error}", "check its permissions") from error
    _refuse_split(path, header, place)
    if not any(tensor.weights for tensor in header.tensors):
        raise SpecError.single(place, f"{path.name} holds no tensors, only metadata", "bring the file with the model's weights")
    expected = header.data_start + max(tensor.offset + tensor.bytes for tensor in header.tensors)
    if size < expected:
        message = f"{path.name} is truncated: its tensors need {expected} bytes, the file has {size}"
        raise SpecError.single(place, message, f"{format_bytes(expected - size)} are missing; download or copy it again")
    return GgufFile(path=path, bytes=size, header=header)


def describe_file(file: GgufFile, sha256: str, model_id: str, scheme: str) -> Variant:
    """Describe a file that is there already as a variant: measured from the file itself, built by nobody here."""
    artifact = Artifact(
        model_id=model_id,
        scheme=scheme,
        sha256=sha256,
        bytes=file.bytes,
        weights=file.weights,
        bits_per_weight=file.bits_per_weight,
        census=file.census,
        source_sha256=sha256,
        source_scheme=file.dominant_type,
        built=False,
        architecture=file.architecture,
        parameters=file.parameters,
    )
    return Variant(artifact=artifact, path=file.path)


def _regular_file_size(path: Path, place: str) -> int:
    try:
        if path.is_dir():
            raise SpecError.single(place, f"{path} is a folder, not a GGUF file", "name the .gguf file inside it")
        if not path.exists():
            raise SpecError.single(place, f"{path} does not exist", "check the path")
        if not path.is_file():
            raise SpecError.single(place, f"{path} is not a regular file", "name a .gguf file")
        size = path.stat().st_size
    except OSError as error:
        raise SpecError.single(place, f"cannot look at {path}: {error.strerror or error}", "check the path") from error
    if size == 0:
        raise SpecError.single(place, f"{path.name} is empty (0 bytes)", "download or copy it again")
    return size


def _refuse_split(path: Path, header: GgufHeader, place: str) -> None:
    match = _SPLIT_NAME.search(path.name)
    count = header.metadata.get("split.count")
    parts = int(match.group(2)) if match else count if isinstance(count, int) else 1
    if parts > 1:
        message = f"{path.name} is one of {parts} parts of a split GGUF"
        raise SpecError.single(place, message, "join the parts first: llama-gguf-split --merge FIRST-PART OUTPUT")


def _looks_like(path: Path) -> str:
    with path.open("rb") as handle:
        head = handle.read(512)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "it looks like a safetensors file: convert the model with llama.cpp's convert_hf_to_gguf.py"
    for start, meaning in _LOOKS_LIKE:
        if head.startswith(start):
            return f"it looks like {meaning}"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "it looks like a web page: the download gave an error page instead of the model"
    if text.startswith((b"{", b"[")):
        return "it looks like JSON text"
    if not head.strip(b"\0"):
        return "its first bytes are all zero: the download did not finish"
    return f"it begins with {head[:4]!r}, a GGUF begins with {MAGIC!r}"
