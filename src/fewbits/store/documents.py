"""Documents of a run folder: read strictly, with one remedy for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from fewbits.core.codec import decode
from fewbits.core.errors import StoreError
from fewbits.records.base import Record

R = TypeVar("R", bound=Record)

DAMAGED = "It was damaged or edited: restore it, or start over with --fresh."


def read_document(path: Path, type_: type[R], remedy: str = DAMAGED) -> R | None:
    """Read a document whose type has a `schema_version`; `None` without the file.

    Raises `StoreError` for one that cannot be read, is damaged (with the remedy), or has another schema version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise StoreError(msg) from error
    try:
        found = decode(data, type_, str(path))
    except StoreError as error:
        msg = f"{error}. {remedy}"
        raise StoreError(msg) from error
    ours = next(field.default for field in msgspec.structs.fields(type_) if field.name == "schema_version")
    if (version := getattr(found, "schema_version", None)) != ours:
        msg = f"{path} has schema {version!s:.60}, this fewbits reads {ours}: update fewbits."
        raise StoreError(msg)
    return found
