"""Tags of OCR variants: `FP32`, `INT8-dynamic`, `INT8-static`, and with `-det` or `-rec` for one network alone.

Tags are read in any case; `ocr_scheme_tag` writes the one spelling that files and reports have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fewbits.core.errors import SpecError

FLOAT_TAG = "FP32"
DETECTION_FILE, RECOGNITION_FILE, ORIENTATION_FILE = "det.onnx", "rec.onnx", "cls.onnx"
MANIFEST_FILE = "manifest.json"
OCR_ARCHIVE = (MANIFEST_FILE, DETECTION_FILE, RECOGNITION_FILE, ORIENTATION_FILE)
"""What the file of an OCR engine holds, in order."""
_TAG = re.compile(r"int8-(?P<method>dynamic|static)(?:-(?P<network>det|rec))?")


class OcrNetwork(StrEnum):
    """The networks of an OCR engine that are quantized. The classifier of upside-down lines stays float."""

    DETECTION = "det"
    RECOGNITION = "rec"


class OcrMethod(StrEnum):
    """When the ranges of activations are fixed."""

    DYNAMIC = "dynamic"
    """At run time, for each input anew."""
    STATIC = "static"
    """Beforehand, from calibration pages."""


@dataclass(frozen=True, slots=True)
class OcrScheme:
    """A quantization of an OCR engine: how, and which of its networks (at least one)."""

    method: OcrMethod
    networks: tuple[OcrNetwork, ...]


def parse_ocr_scheme(tag: str, where: str = "--schemes") -> OcrScheme | None:
    """Read a tag in any case; `None` is the float engine. Raises `SpecError`."""
    if tag.upper() == FLOAT_TAG:
        return None
    found = _TAG.fullmatch(tag.lower())
    if found is None:
        hint = "known: FP32, INT8-dynamic, INT8-static; -det or -rec at the end for one network alone"
        raise SpecError.single(where, f"{tag!r} is no OCR scheme", hint)
    networks = (OcrNetwork(found["network"]),) if found["network"] else tuple(OcrNetwork)
    return OcrScheme(OcrMethod(found["method"]), networks)


def ocr_scheme_tag(scheme: OcrScheme | None) -> str:
    """Write a scheme's tag."""
    if scheme is None:
        return FLOAT_TAG
    alone = f"-{scheme.networks[0]}" if len(scheme.networks) == 1 else ""
    return f"INT8-{scheme.method}{alone}"
