"""The networks of an OCR engine as one file, so that one sha256 is the identity of all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fewbits.core.archive import open_archive, write_archive
from fewbits.spec.ocr_schemes import DETECTION_FILE, MANIFEST_FILE, OCR_ARCHIVE, ORIENTATION_FILE, RECOGNITION_FILE

DETECTION, RECOGNITION, ORIENTATION, MANIFEST = DETECTION_FILE, RECOGNITION_FILE, ORIENTATION_FILE, MANIFEST_FILE
MEMBERS = OCR_ARCHIVE


def write_ocr_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the members (`MEMBERS`, each of them) whole or not at all. Raises as `core.archive.write_archive`."""
    write_archive(path, files, MEMBERS)


def open_ocr_archive(path: Path) -> dict[str, bytes]:
    """Return the members of an archive: name -> bytes. Raises `SpecError` for anything else."""
    return open_archive(path, MEMBERS, "OCR engine")
