"""Recognised words: what an OCR engine hands to the layout rules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of text in one line, with its place: `corners` float[4][2] clockwise from the top left, pixels of the page as
    it was read; `confidence` is the mean probability of its characters, 0..1. `characters`, where the engine tells them, are
    the left and right edges (pixels) of each character of `text`.
    """

    text: str
    corners: tuple[tuple[float, float], ...]
    confidence: float
    characters: tuple[tuple[float, float], ...] | None = None
