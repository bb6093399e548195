"""Engines as people write them."""

from __future__ import annotations

import pytest

from fewbits.core.errors import SpecError
from fewbits.spec.extraction_engines import EngineKind, parse_engine
from fewbits.spec.tags import canonical_tag


@pytest.mark.parametrize(
    ("text", "tag", "kind", "precision"),
    [
        ("ocr", "ocr", EngineKind.OCR, "fp32"),
        ("OCR-FP32", "ocr", EngineKind.OCR, "fp32"),
        ("ocr-int8", "ocr-int8", EngineKind.OCR, "int8-static"),
        ("ocr-int8-static", "ocr-int8", EngineKind.OCR, "int8-static"),
        ("ocr-int8-static-rec", "ocr-int8-static-rec", EngineKind.OCR, "int8-static-rec"),
        ("ocr-int8-dynamic", "ocr-int8-dynamic", EngineKind.OCR, "int8-dynamic"),
        ("ocr+chat-Q4-K-M", "ocr+chat-q4_k_m", EngineKind.OCR_CHAT, "q4_k_m"),
        ("vision-bfloat16", "vision-bf16", EngineKind.VISION, "bf16"),
        ("vision-4bit", "vision-nf4", EngineKind.VISION, "nf4"),
    ],
)
def test_every_spelling_has_one_tag(text: str, tag: str, kind: EngineKind, precision: str) -> None:
    choice = parse_engine(text, "--engines")
    assert (choice.tag, choice.kind, choice.precision) == (tag, kind, precision)
    assert parse_engine(choice.tag, "--engines") == choice
    assert canonical_tag(text, "extraction", "quants[0]") == (tag, None)


@pytest.mark.parametrize("text", ["", "tesseract", "ocrx", "ocr-int4", "ocr+chat", "ocr+chat-fp3", "vision", "vision-int2"])
def test_what_is_no_engine_is_refused_with_a_way_out(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_engine(text, "--engines")
    (problem,) = caught.value.problems
    assert problem.path == "--engines"
    assert problem.hint
