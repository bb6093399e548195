"""Recognised words as lines of text, for a model that reads instead of sees."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.extraction.layout_geometry import Piece, lines_of
from fewbits.extraction.layout_tokens import Token, gap, tokens_of
from fewbits.extraction.words import Word

_COLUMN_GAP = 0.8
"""White space from which two texts count as two columns, in text heights. A space between words is about 0.3."""
_COLUMNS = " | "


def page_lines(words: Sequence[Word]) -> tuple[str, ...]:
    """Return a page's lines from top to bottom, columns parted by ` | `; leaders (`.....`) are left out. A bar that the page
    prints becomes `/`, so that it cannot pass for the edge of a column.
    """
    lines = (_line(line) for line in lines_of(words))
    return tuple(line for line in lines if line)


def _line(pieces: Sequence[Piece]) -> str:
    tokens = tokens_of(pieces)
    text = ""
    for index, token in enumerate(tokens):
        text += (_between(tokens[index - 1], token) if index else "") + token.text.replace("|", "/")
    return text


def _between(before: Token, after: Token) -> str:
    if gap(before, after) > _COLUMN_GAP:
        return _COLUMNS
    return " " if after.space or after.first else ""
