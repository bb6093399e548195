"""Extraction engines as people write them: `ocr`, `ocr-int8`, `ocr-int8-dynamic`, `ocr+chat-q4_k_m`, `vision-bf16`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fewbits.core.errors import SpecError
from fewbits.records.schemes import find_scheme
from fewbits.spec.ocr_schemes import ocr_scheme_tag, parse_ocr_scheme


class EngineKind(StrEnum):
    """What reads a page."""

    OCR = "ocr"
    """Text recognition and layout rules."""
    OCR_CHAT = "ocr+chat"
    """Text recognition, and a local chat model that puts the rows together."""
    VISION = "vision"
    """A vision-language model."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One variant: the kind and its precision (`fp32`, `int8-static`, `q4_k_m`, `bf16`)."""

    kind: EngineKind
    precision: str

    @property
    def tag(self) -> str:
        """The canonical spelling: kind and precision; of the OCR engine, the short words where there are some."""
        short = {scheme: word for word, scheme in _OCR_DEFAULTS.items()} if self.kind is EngineKind.OCR else {}
        return f"{self.kind}-{short.get(self.precision, self.precision)}".removesuffix("-")


_OCR_DEFAULTS = {"": "fp32", "int8": "int8-static"}
"""Short words of the OCR engine, and the scheme that each stands for."""
VISION_PRECISIONS = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "nf4": "nf4",
    "4bit": "nf4",
    "nf4-fp16": "nf4-fp16",
    "int8": "int8",
    "8bit": "int8",
}
_EXAMPLES = "for example ocr, ocr-int8, ocr-int8-dynamic, ocr+chat-q4_k_m, vision-bf16, vision-nf4"


def parse_engine(text: str, where: str) -> EngineChoice:
    """Read one engine. Raises `SpecError` at `where` for what is none."""
    word = text.strip().lower()
    for kind in (EngineKind.OCR_CHAT, EngineKind.VISION, EngineKind.OCR):
        if word == kind.value or word.startswith(f"{kind.value}-"):
            return EngineChoice(kind, _precision(kind, word[len(kind.value) + 1 :], text, where))
    raise SpecError.single(where, f"there is no engine {text!r:.60}", _EXAMPLES)


def _precision(kind: EngineKind, word: str, text: str, where: str) -> str:
    if kind is EngineKind.OCR_CHAT:
        try:
            return find_scheme(word).tag.lower()
        except SpecError as error:
            hint = "name the chat model's quantization: ocr+chat-q8_0, ocr+chat-q4_k_m"
            raise SpecError.single(where, f"{text!r:.60} names no quantization of a chat model", hint) from error
    if kind is EngineKind.OCR:
        return ocr_scheme_tag(parse_ocr_scheme(_OCR_DEFAULTS.get(word, word), where)).lower()
    if word not in VISION_PRECISIONS:
        usual = ", ".join(dict.fromkeys(VISION_PRECISIONS.values()))
        raise SpecError.single(where, f"{text!r:.60} names no precision of the {kind} engine", f"one of {usual}")
    return VISION_PRECISIONS[word]
