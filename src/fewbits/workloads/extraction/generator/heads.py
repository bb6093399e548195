"""The top of a page: laboratory, title and the patient's block, in three arrangements; and what stands below the results."""

from __future__ import annotations

import random

from fewbits.workloads.extraction.generator.content import Content
from fewbits.workloads.extraction.generator.paper import Colour, Paper

MARGIN = 42.0
"""Points around the page."""
GREY: Colour = (95, 95, 100)
PALE: Colour = (232, 235, 240)


def centred_head(paper: Paper, content: Content, accent: Colour, rng: random.Random) -> float:
    """Draw the laboratory in the middle and two columns of fields between lines; return the baseline below."""
    middle = paper.width / 2
    name, address, contact = content.laboratory
    paper.text(middle, 52, name, 17, heavy=True, colour=accent, align="center")
    paper.text(middle, 67, address, 8.5, colour=GREY, align="center")
    paper.text(middle, 79, contact, 8.5, colour=GREY, align="center")
    paper.text(middle, 101, content.title, 12, heavy=True, align="center")
    paper.line(MARGIN, 110, paper.width - MARGIN, 110, thick=0.8)
    bottom = _grid(paper, content.fields, 126, columns=2, rng=rng)
    paper.line(MARGIN, bottom - 6, paper.width - MARGIN, bottom - 6, thick=0.8)
    return bottom + 12


def sided_head(paper: Paper, content: Content, accent: Colour, rng: random.Random) -> float:
    """Draw the laboratory on the left, its address on the right, the fields in a box; return the baseline below."""
    right = paper.width - MARGIN
    name, address, contact = content.laboratory
    paper.rectangle(MARGIN, 34, MARGIN + 5, 66, fill=accent)
    paper.text(MARGIN + 14, 50, name, 15, heavy=True, room=paper.width * 0.46)
    paper.text(MARGIN + 14, 64, content.title, 9.5, colour=GREY)
    paper.text(right, 47, address, 8, colour=GREY, align="right", room=paper.width * 0.36)
    paper.text(right, 59, contact, 8, colour=GREY, align="right", room=paper.width * 0.36)
    rows = -(-len(content.fields) // 2)
    paper.rectangle(MARGIN, 78, right, 90 + rows * 15.5, outline=GREY)
    return _grid(paper, content.fields, 94, columns=2, rng=rng, inset=8) + 14


def stacked_head(paper: Paper, content: Content, accent: Colour) -> float:
    """Draw a band with the laboratory, then small labels above their texts in three columns; return the baseline below."""
    name, address, contact = content.laboratory
    paper.rectangle(0, 0, paper.width, 60, fill=accent)
    paper.text(MARGIN, 32, name, 17, heavy=True, colour=(255, 255, 255))
    paper.text(MARGIN, 48, f"{address}   {contact}", 8, colour=(240, 240, 245), room=paper.width - 2 * MARGIN)
    paper.text(MARGIN, 84, content.title, 12.5, heavy=True)
    step = (paper.width - 2 * MARGIN) / 3
    bottom = 104.0
    for place, (label, text) in enumerate(content.fields):
        x, top = MARGIN + (place % 3) * step, 104 + (place // 3) * 31.0
        paper.text(x, top, label, 7.5, colour=GREY)
        paper.text(x, top + 12.5, text, 10, heavy=place == 0, room=step - 8)
        bottom = top + 12.5
    paper.line(MARGIN, bottom + 9, paper.width - MARGIN, bottom + 9, colour=accent, thick=1.2)
    return bottom + 30


def _grid(
    paper: Paper, fields: tuple[tuple[str, str], ...], top: float, *, columns: int, rng: random.Random, inset: float = 0
) -> float:
    """Draw `label: text` in columns, texts aligned below each other; return the baseline below."""
    size, leading = 9.5, 15.5
    step = (paper.width - 2 * (MARGIN + inset)) / columns
    heavy_labels, downwards = rng.random() < 0.4, rng.random() < 0.5
    rows = -(-len(fields) // columns)
    widest = max(paper.text_width(label + ":", size, heavy=heavy_labels) for label, _ in fields)
    for place, (label, text) in enumerate(fields):
        column, row = divmod(place, rows) if downwards else (place % columns, place // columns)
        x, y = MARGIN + inset + column * step, top + row * leading
        paper.text(x, y, label + ":", size, heavy=heavy_labels)
        paper.text(x + widest + 8, y, text, size, room=step - widest - 14)
    return top + rows * leading


def tail(paper: Paper, content: Content, baseline: float) -> None:
    """Draw remarks and comments below the results, and the closing line at the foot of the page."""
    y = baseline + 14
    room = paper.width - 2 * MARGIN
    for number, remark in enumerate(content.footnotes, start=1):
        y = paper.paragraph(MARGIN, y, f"({number}) {remark}", 8, room=room, colour=GREY)
    y += 4 if content.footnotes else 0
    for comment in content.comments:
        y = paper.paragraph(MARGIN, y, comment if comment.startswith(("*", "H =")) else f"Comment: {comment}", 8.5, room=room)
    paper.text(paper.width / 2, paper.height - 30, content.closing, 8, colour=GREY, align="center")


def tail_height(content: Content) -> float:
    """Return the points that `tail` may need, two lines for each text."""
    return 14 + 24.0 * len(content.comments) + 12.0 * len(content.footnotes) + 46
