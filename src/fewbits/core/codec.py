"""One strict codec: canonical JSON, digests, and decoding with one clear error.

Canonical JSON here means: UTF-8, keys sorted, no insignificant space, shortest round-trip floats, NaN and infinities
refused. The same value has the same bytes on every machine, so a digest of it is an identity.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, TypeVar

import msgspec

from fewbits.core.errors import StoreError

T = TypeVar("T")

_CANONICAL = msgspec.json.Encoder(order="sorted")


def refuse_non_finite(value: object, path: str = "$") -> None:
    """Raise `ValueError` naming the first NaN or infinity inside a builtin tree.

    msgspec would write them as `null`, which would turn "computed wrongly" into "missing".
    """
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"{path}: {value} is not a number that JSON can hold"
        raise ValueError(msg)
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_non_finite(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            refuse_non_finite(item, f"{path}[{index}]")


def to_builtins(value: object) -> Any:
    """Return `value` (structs, enums, tuples) as plain dicts, lists and scalars; NaN is refused."""
    tree = msgspec.to_builtins(value, order="sorted")
    refuse_non_finite(tree)
    return tree


def encode_canonical(value: object) -> bytes:
    """Encode to canonical JSON bytes, without a trailing newline. Raises `ValueError` on NaN or infinity."""
    return _CANONICAL.encode(to_builtins(value))


def encode_pretty(value: object) -> bytes:
    """Encode to canonical JSON, indented by two spaces, with a trailing newline: for files that people open."""
    return msgspec.json.format(encode_canonical(value), indent=2) + b"\n"


def digest(value: object) -> str:
    """Return the sha256 (64 hex digits) of a value's canonical JSON."""
    return hashlib.sha256(encode_canonical(value)).hexdigest()


def text_digest(text: str) -> str:
    """Return the sha256 (64 hex digits) of a text's UTF-8 bytes (lone surrogates are kept, not refused)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def decode(data: bytes, type_: type[T], where: str) -> T:
    """Decode JSON bytes into `type_`. Raises `StoreError` naming `where`, the path inside, and what was wrong."""
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{where}: {error}"
        raise StoreError(msg) from error


def convert(tree: object, type_: type[T], where: str) -> T:
    """Convert a builtin tree into `type_`, as strictly as `decode`. Raises `StoreError` naming `where` and the path inside."""
    try:
        return msgspec.convert(tree, type=type_)
    except msgspec.ValidationError as error:
        msg = f"{where}: {error}"
        raise StoreError(msg) from error


def storable(text: str) -> str:
    """Return a path or message as text that JSON can hold, whatever bytes the path's name has."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
