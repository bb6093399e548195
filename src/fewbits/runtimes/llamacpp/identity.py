"""Proof that the serving process holds the very file that was hashed, not merely one of the same name."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbits.core.errors import IdentityError
from fewbits.records.variant import Artifact, ServedIdentity

_MAPS_FIELDS = 6


def mapped_files(pid: int | str) -> set[tuple[str, int]]:
    """The (device, inode) pairs of files that a process maps, as its memory map spells them; empty where there is no /proc.

    Source: proc(5), /proc/pid/maps: address, permissions, offset, device, inode, pathname.
    """
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    rows = [line.split(maxsplit=_MAPS_FIELDS - 1) for line in lines]
    return {(row[3], int(row[4])) for row in rows if len(row) == _MAPS_FIELDS and row[4] != "0"}


def file_as_mapped(path: Path) -> set[tuple[str, int]]:
    """How this file appears in a memory map: by `stat`, and by mapping one page of it ourselves.

    The two differ on layered file systems (overlayfs), where the map shows the lower file.
    """
    status = path.stat()
    seen = {(f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino)}
    if status.st_size == 0:
        return seen
    before = mapped_files("self")
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 1, access=mmap.ACCESS_READ):
        return seen | (mapped_files("self") - before)


def prove(pid: int, path: Path, artifact: Artifact, served_name: str, report: Mapping[str, Any]) -> ServedIdentity:
    """Prove what the process `pid` serves.

    `report` holds what the server says: `model_path`, `model_ftype` (`/props`), `n_params` (`/v1/models`), each may be missing.
    Raises `IdentityError` when the file changed, or when neither the memory map nor the reported path is the variant's file.
    """
    _check_size(path, artifact)
    quantization = report.get("model_ftype")
    quantization = quantization if isinstance(quantization, str) and quantization else None
    weights_note, weights_differ = _compare_weights(report.get("n_params"), artifact)
    if file_as_mapped(path) & mapped_files(pid):
        proof = "weights_inode"
        detail = f"process {pid} maps the artifact's inode"
    else:
        proof = "model_path"
        detail = _compare_path(report.get("model_path"), path)
        if weights_differ:
            msg = f"the engine serves other weights than {artifact.model_id} {artifact.scheme}: {weights_note}"
            raise IdentityError(msg)
    return ServedIdentity(
        served_name=served_name,
        proof=proof,
        artifact_sha256=artifact.sha256,
        quantization=quantization,
        detail="; ".join(note for note in (detail, weights_note) if note),
    )


def _check_size(path: Path, artifact: Artifact) -> None:
    size = path.stat().st_size
    if artifact.bytes is not None and size != artifact.bytes:
        msg = (
            f"{path.name} has {size} bytes, but the manifest of {artifact.model_id} {artifact.scheme} says {artifact.bytes}: "
            "the file was changed after it was hashed. Remove it from the cache and run again."
        )
        raise IdentityError(msg)


def _compare_path(reported: object, path: Path) -> str:
    """Accept the path that the server reports as proof, or raise `IdentityError`."""
    if not isinstance(reported, str) or not reported:
        msg = f"the engine neither maps {path.name} nor reports which file it loaded: its identity cannot be proved"
        raise IdentityError(msg)
    if os.path.realpath(reported) != os.path.realpath(path):
        msg = f"the engine serves {reported}, not {path}"
        raise IdentityError(msg)
    return "the engine reports the artifact's path; its memory map does not show the file"


def _compare_weights(reported: object, artifact: Artifact) -> tuple[str, bool]:
    """Compare numbers of weights where both are known: a note for people, and whether they differ.

    A difference alone refutes nothing: engines skip tensors that they do not use (draft heads), so the caller decides.
    """
    if not isinstance(reported, int) or artifact.weights is None:
        return "", False
    if reported == artifact.weights:
        return f"{reported} weights, as in the file", False
    return f"the engine counts {reported} weights, the file holds {artifact.weights}", True
