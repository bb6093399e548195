"""Held-out text for measuring what quantization really does: cut into samples, and kept apart from the calibration text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fewbits.core.errors import SpecError
from fewbits.quantizers.torch.coverage import spread_evenly
from fewbits.quantizers.torch.library import quiet_library

LOGITS_BYTES = 256 * 1024 * 1024
"""Bound on one batch's logits in float32; about three times as much is held while two models are compared."""
LINE_CHARACTERS = 20
"""Shorter lines (headings, single words) may occur in any two texts."""
SHARED_LINES_LIMIT = 0.5
"""Two texts of which the shorter has more than this share of its lines from the other are one text."""


@dataclass(frozen=True, slots=True)
class SampleShape:
    """How held-out text is cut."""

    samples: int
    tokens: int
    """Length of a sample, a beginning-of-text token included; 2 or more."""


def cut_samples(model: Any, tokenizer: Any, text: str, shape: SampleShape) -> list[dict[str, Any]]:
    """Cut `shape.samples` samples spread evenly over the text, in batches like those of `quantizers.torch.batches`, unpadded.

    A sample starts with the beginning-of-text token where the tokenizer puts one before every text. Batches lie on the model's
    device and are small enough for their logits to stay within `LOGITS_BYTES`. Raises `SpecError` when the text is too short.
    """
    import torch

    with quiet_library(show=False):  # "sequence is longer than the model's maximum": it is cut right below
        stream = tokenizer(text, add_special_tokens=False)["input_ids"]
        opening = tokenizer("a")["input_ids"][:1]
    start = opening if tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id] else []
    step = shape.tokens - len(start)
    available = len(stream) // step
    if available < shape.samples:
        message = f"has {len(stream)} tokens, {shape.samples} samples of {shape.tokens} tokens need {shape.samples * step}"
        raise SpecError.single("text", message, "use a longer text, or fewer or shorter samples")
    places = [index * step for index in spread_evenly(shape.samples, available)]
    samples = torch.tensor([[*start, *stream[place : place + step]] for place in places], dtype=torch.int64)
    head = model.get_output_embeddings()
    vocabulary = len(tokenizer) if head is None else head.weight.shape[0]
    at_once = max(1, LOGITS_BYTES // (4 * vocabulary * shape.tokens))
    parts = samples.to(model.device).split(at_once)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in parts]


def shares_text(one: str, other: str) -> bool:
    """Tell whether two texts are one: most of the longer lines of the shorter text are in the other, blanks aside.

    A copy with other line ends, an excerpt and a shuffled file are recognised; a paraphrase is not.
    """
    lines, others = _lines(one), _lines(other)
    if len(lines) > len(others):
        lines, others, other = others, lines, one
    if not lines:
        return False
    whole = " ".join(other.split())
    shared = sum(1 for line in lines if line in others or line in whole)
    return shared > SHARED_LINES_LIMIT * len(lines)


def _lines(text: str) -> set[str]:
    return {line for line in _squeezed(text.splitlines()) if len(line) >= LINE_CHARACTERS}


def _squeezed(lines: Iterable[str]) -> Iterable[str]:
    return (" ".join(line.split()) for line in lines)
