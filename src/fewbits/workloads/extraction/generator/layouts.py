"""The layouts: an arrangement with its fonts and its room; and a page drawn in one of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fewbits.workloads.extraction.generator import arrangements
from fewbits.workloads.extraction.generator.content import Content, Room, draw_content
from fewbits.workloads.extraction.generator.paper import Paper, TooWideError
from fewbits.workloads.extraction.generator.seeds import stream

LETTER, A4 = (612.0, 792.0), (595.3, 841.9)
"""Paper sizes in points."""
RESOLUTIONS = (150, 170, 200)
"""Dots per inch: what office scanners are set to for text."""
ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Layout:
    """One arrangement: what it has room for, its fonts, and how it draws."""

    name: str
    room: Room
    families: tuple[str, ...]
    draw: Callable[[Paper, Content, random.Random], None]


def drawn_page(layout: Layout, seed: int) -> tuple[Paper, Content]:
    """Draw the page with this seed and return it with what it says.

    Now and then a text does not fit its place (a long synonym in half a page's width): then the next content is drawn.
    """
    for attempt in range(ATTEMPTS):
        content = draw_content(seed, layout.room, attempt)
        try:
            return _drawn(layout, content, stream(seed, f"layout {attempt}")), content
        except TooWideError:
            continue
    msg = f"no content fits the layout {layout.name}: seed {seed}"
    raise TooWideError(msg)


def _drawn(layout: Layout, content: Content, rng: random.Random) -> Paper:
    """Draw a page: paper size, resolution and font from `rng`, everything else from the content."""
    width, height = rng.choice((LETTER, A4))
    paper = Paper(width, height, rng.choice(RESOLUTIONS), rng.choice(layout.families))
    layout.draw(paper, content, rng)
    return paper


LAYOUTS = (
    Layout("ruled", Room(28, (1, 1, 2), 34), ("roboto", "source-sans"), arrangements.draw_ruled),
    Layout("aligned", Room(28, (1, 1, 2), 36), ("source-serif", "roboto"), arrangements.draw_aligned),
    Layout("side_by_side", Room(44, (2,), 26), ("source-sans", "hanken"), arrangements.draw_side_by_side),
    Layout("compact", Room(16, (1,), 40), ("hanken", "source-sans"), arrangements.draw_compact),
    Layout("sections", Room(28, (1, 2, 2), 36), ("roboto", "hanken"), arrangements.draw_sections),
    Layout("leaders", Room(24, (1,), 40), ("aileron", "source-serif"), arrangements.draw_leaders),
)


def layout_for(name: str) -> Layout:
    """Return the layout of that name. Raises `KeyError` for another."""
    return {layout.name: layout for layout in LAYOUTS}[name]
