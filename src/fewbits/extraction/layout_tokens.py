"""From pieces to tokens: what can carry one meaning in a row, however the detector merged it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fewbits.extraction.layout_geometry import Piece
from fewbits.extraction.layout_spelling import is_power
from fewbits.extraction.units import normalized_unit

_LEADER = re.compile(r"(?:[.·•…_\-=,:]\s?){4,}|(?:[.·•…_]\s?){3,}|…+")
"""Dots or strokes that lead the eye from the name to the value."""
_NUMBER = r"[<>≤≥]?=?\s?\d[\d.,]*"
_GLUED = (
    re.compile(rf"(?P<a>{_NUMBER})(?P<b>HH|LL|[HLAN]|High|Low|[*!↑↓▲▼]+)"),
    re.compile(rf"(?P<a>HH|LL|[HL]|[*!↑↓▲▼]+)(?P<b>{_NUMBER})"),
    re.compile(r"(?P<a>[A-Za-z#%)][^\d]{2,})(?P<b>[<>≤≥]?\d+\.\d+.*)"),
    re.compile(r"(?P<a>[^\d]{4,}[A-Za-z)%#])(?P<b>[<>≤≥]?\d{1,4})"),
    re.compile(r"(?P<a>.*[^\s(\[])(?P<b>[(\[].+[)\]])"),
    re.compile(r"(?P<a>.*[A-Za-z)])(?P<b>%|#)"),
    re.compile(r"(?P<a>[1-4]?\++|[A-Za-z]*[a-z])(?P<b>[AHL])"),
    re.compile(r"(?P<a>[^*]+?)(?P<b>\*+)"),
    re.compile(r"(?P<a>\*+)(?P<b>[^*]+)"),
    re.compile(r"(?P<a>[A-Za-z./ -]+:)(?P<b>\S.*)"),
)
"""What may be printed without a space between two columns, or be read so."""
_NUMBER_AND_REST = re.compile(rf"(?P<a>{_NUMBER})(?P<b>[A-Za-zµμ%/×x].*)")  # noqa: RUF001 - what pages print
_NUMBER_AND_POWER = re.compile(r"(?P<a>[<>≤≥]?\d+(?:\.\d+)?)(?P<b>[x×]?10[\^Ee*°³⁶⁹¹].*)")  # noqa: RUF001 - what pages print
_UNIT_AND_REST = re.compile(r"(?P<a>[A-Za-zµμ%/×^³⁹][^\s(]*?)(?P<b>[(<>≤≥]?=?\d[\d.,]*\s?[-–].*|[<>≤≥]=?\s?\d.*)")  # noqa: RUF001 - what pages print


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text that is not divided further; places in usual text heights. `space` says whether one was read before it;
    `leader` whether dots lead to it; `first` whether it begins a recognised piece.
    """

    text: str
    left: float
    right: float
    middle: float
    height: float
    confidence: float
    space: bool
    leader: bool
    first: bool


def tokens_of(line: Sequence[Piece]) -> list[Token]:
    """Return the tokens of a line from left to right."""
    tokens = [token for piece in line for token in _of_piece(piece)]
    return sorted(tokens, key=lambda token: token.left)


def joined(tokens: Sequence[Token]) -> str:
    """Return the text of neighbouring tokens, with the spaces that were read between them."""
    return "".join((" " if index and token.space else "") + token.text for index, token in enumerate(tokens))


def gap(before: Token, after: Token) -> float:
    """Return the white space between two tokens in text heights of the smaller one; leaders count as wide."""
    if after.leader:
        return 9.0
    return (after.left - before.right) / min(before.height, after.height)


def _of_piece(piece: Piece) -> Iterator[Token]:
    leaders = list(_LEADER.finditer(piece.text))
    led = [match.span() for match in leaders]
    place, first, leader = 0, True, False
    for match in re.finditer(r"\S+", _blanked(piece.text, led)):
        leader = any(place <= start and end <= match.start() + 1 for start, end in led)
        for start, end in parts(match[0]):
            begin, stop = match.start() + start, match.start() + end
            yield Token(
                text=piece.text[begin:stop],
                left=piece.edges[begin][0],
                right=piece.edges[stop - 1][1],
                middle=piece.middle,
                height=piece.height,
                confidence=piece.confidence,
                space=start == 0,
                leader=leader and start == 0,
                first=first,
            )
            first = False
        place = match.end()


def _blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in spans:
        text = text[:start] + " " * (end - start) + text[end:]
    return text


@lru_cache(maxsize=8192)
def parts(text: str) -> tuple[tuple[int, int], ...]:
    """Return where a text without spaces may be divided: `13.5H`, `mg/dL(70-100)`, `RATIO3.5`. Whole units stay whole."""
    if normalized_unit(text) is not None or len(text) < 2:
        return ((0, len(text)),)
    cut = _cut(text)
    if cut is None:
        return ((0, len(text)),)
    right = tuple((start + cut, end + cut) for start, end in parts(text[cut:]))
    return (*parts(text[:cut]), *right)


def _cut(text: str) -> int | None:
    for pattern in (_NUMBER_AND_REST, _NUMBER_AND_POWER):
        match = pattern.fullmatch(text)
        if match is not None and (normalized_unit(match["b"]) is not None or is_power(match["b"])):
            return match.end("a")
    match = _UNIT_AND_REST.fullmatch(text)
    if match is not None and normalized_unit(match["a"]) is not None:
        return match.end("a")
    for pattern in _GLUED:
        match = pattern.fullmatch(text)
        if match is not None:
            return match.end("a")
    return None
