"""Six ways to arrange results. Each prints all of the content, and nothing that could be read as more."""

from __future__ import annotations

import random

from fewbits.workloads.extraction.generator.content import Content
from fewbits.workloads.extraction.generator.heads import GREY, MARGIN, PALE, centred_head, sided_head, stacked_head, tail
from fewbits.workloads.extraction.generator.paper import BLACK, Colour, Paper
from fewbits.workloads.extraction.generator.results import Row
from fewbits.workloads.extraction.generator.table import (
    BODY,
    Column,
    Shares,
    columns_of,
    draw_heading,
    draw_row_parts,
    leading_for,
    part_text,
)

ACCENTS: tuple[Colour, ...] = ((22, 62, 110), (120, 28, 36), (20, 90, 80), (45, 45, 50))
RULED: Shares = (
    ("test", 0.36, "left"),
    ("value", 0.14, "left"),
    ("flag", 0.09, "left"),
    ("unit", 0.17, "left"),
    ("range", 0.24, "left"),
)
ALIGNED: Shares = (
    ("test", 0.38, "left"),
    ("value", 0.13, "right"),
    ("unit", 0.16, "left"),
    ("range", 0.23, "left"),
    ("flag", 0.1, "left"),
)
HALF: Shares = (("test", 0.38, "left"), ("value_flag", 0.17, "left"), ("unit", 0.21, "left"), ("range", 0.24, "left"))
SECTIONS: Shares = (
    ("flag", 0.09, "left"),
    ("test", 0.38, "left"),
    ("value", 0.15, "left"),
    ("range", 0.22, "left"),
    ("unit", 0.16, "left"),
)
LEADERS: Shares = (("test", 0.48, "left"), ("value_unit", 0.22, "left"), ("flag", 0.08, "left"), ("range", 0.22, "left"))
COMPACT: Shares = (("test", 0.44, "left"), ("value_unit", 0.24, "left"), ("flag", 0.08, "left"))
BRACKETED: Shares = (*COMPACT, ("bracketed", 0.24, "left"))


def draw_ruled(paper: Paper, content: Content, rng: random.Random) -> None:
    """Draw a table with all its lines."""
    accent = rng.choice(ACCENTS)
    top = centred_head(paper, content, accent, rng) - 8
    width = paper.width - 2 * MARGIN
    columns = columns_of(RULED, MARGIN + 5, width)
    step = leading_for(paper, content, top, sum(len(panel.rows) + 2 for panel in content.panels))
    bold, y = rng.random() < 0.5, top
    for panel in content.panels:
        paper.rectangle(MARGIN, y, paper.width - MARGIN, y + step, fill=PALE, outline=GREY)
        paper.text(paper.width / 2, y + step * 0.72, panel.title, BODY, heavy=True, align="center")
        lines_from, y = y + step, y + step
        draw_heading(paper, columns, content, y + step * 0.72, size=BODY * 0.92, colour=accent)
        for row in panel.rows:
            y += step
            paper.line(MARGIN, y, paper.width - MARGIN, y, colour=GREY)
            draw_row_parts(paper, columns, row, y + step * 0.72, BODY, bold_marked=bold)
        y += step
        for x in (MARGIN, *(column.x - 5 for column in columns[1:]), paper.width - MARGIN):
            paper.line(x, lines_from, x, y, colour=GREY)
        paper.line(MARGIN, y, paper.width - MARGIN, y, colour=GREY)
        y += 6
    tail(paper, content, y)


def draw_aligned(paper: Paper, content: Content, rng: random.Random) -> None:
    """Draw plain columns without lines, marks at the right end."""
    top = centred_head(paper, content, ACCENTS[3], rng)
    width = paper.width - 2 * MARGIN
    columns = columns_of(ALIGNED, MARGIN, width)
    step = leading_for(paper, content, top, sum(len(panel.rows) + 1.6 for panel in content.panels) + 1.2)
    draw_heading(paper, columns, content, top, size=BODY * 0.95, colour=BLACK)
    paper.line(MARGIN, top + 5, paper.width - MARGIN, top + 5)
    bold, y = rng.random() < 0.5, top + step * 1.2
    for panel in content.panels:
        paper.text(MARGIN, y, panel.title.upper(), BODY, heavy=True)
        for row in panel.rows:
            y += step
            draw_row_parts(paper, columns, row, y, BODY, bold_marked=bold)
        y += step * 1.6
    tail(paper, content, y - step * 1.2)


def draw_side_by_side(paper: Paper, content: Content, rng: random.Random) -> None:
    """Draw two panels next to each other, in smaller type."""
    accent = rng.choice(ACCENTS)
    top = sided_head(paper, content, accent, rng)
    gap, size = 22.0, 8.6
    half = (paper.width - 2 * MARGIN - gap) / 2
    step = min(16.0, leading_for(paper, content, top, max(len(panel.rows) for panel in content.panels) + 3))
    bold, bottom = rng.random() < 0.5, top
    for place, panel in enumerate(content.panels):
        left = MARGIN + place * (half + gap)
        columns = columns_of(HALF, left, half)
        paper.text(left, top, panel.title, 10.5, heavy=True, colour=accent)
        draw_heading(paper, columns, content, top + step * 1.1, size=size * 0.9, colour=GREY)
        paper.line(left, top + step * 1.35, left + half, top + step * 1.35, colour=accent)
        for number, row in enumerate(panel.rows):
            draw_row_parts(paper, columns, row, top + step * (2.3 + number), size, bold_marked=bold)
        bottom = max(bottom, top + step * (2.3 + len(panel.rows)))
    middle = MARGIN + half + gap / 2
    paper.line(middle, top - 8, middle, bottom - step * 0.6, colour=GREY)
    tail(paper, content, bottom)


def draw_compact(paper: Paper, content: Content, rng: random.Random) -> None:
    """Draw value and unit in one, the range in brackets: beside them, or small on a line of its own below."""
    top = stacked_head(paper, content, rng.choice(ACCENTS))
    below, bold = rng.random() < 0.5, rng.random() < 0.5
    width = paper.width - 2 * MARGIN
    columns = columns_of(COMPACT if below else BRACKETED, MARGIN, width)
    lines = sum((2 if below else 1) * len(panel.rows) + 2 for panel in content.panels)
    step, y = leading_for(paper, content, top, lines), top
    for panel in content.panels:
        paper.text(MARGIN, y, panel.title, 11.5, heavy=True)
        for row in panel.rows:
            y += step * 1.05
            draw_row_parts(paper, columns, row, y, BODY, bold_marked=bold)
            if below and (reference := part_text(row, "bracketed")):
                y += step * 0.85
                paper.text(columns[1].x, y, reference, 8.2, colour=GREY)
        y += step * 1.9
    tail(paper, content, y - step * 1.4)


def draw_sections(paper: Paper, content: Content, rng: random.Random) -> None:
    """Draw each panel under a bar, with the marks left of the names, and units last."""
    accent = rng.choice(ACCENTS)
    top = sided_head(paper, content, accent, rng)
    width = paper.width - 2 * MARGIN
    columns = columns_of(SECTIONS, MARGIN + 4, width)
    step = leading_for(paper, content, top, sum(len(panel.rows) + 2.6 for panel in content.panels))
    bold, striped, y = rng.random() < 0.5, rng.random() < 0.5, top
    for panel in content.panels:
        paper.rectangle(MARGIN, y - 11, paper.width - MARGIN, y + 4, fill=accent)
        paper.text(MARGIN + 4, y, panel.title, BODY, heavy=True, colour=(255, 255, 255))
        y += step * 1.1
        draw_heading(paper, columns, content, y, size=BODY * 0.88, colour=GREY)
        for number, row in enumerate(panel.rows):
            y += step
            if striped and number % 2:
                paper.rectangle(MARGIN, y - step * 0.72, paper.width - MARGIN, y + step * 0.28, fill=PALE)
            draw_row_parts(paper, columns, row, y, BODY, bold_marked=bold)
        y += step * 1.5
    tail(paper, content, y - step)


def draw_leaders(paper: Paper, content: Content, rng: random.Random) -> None:
    """Draw dots from the name to the value, then unit, mark and range, without headings."""
    top = stacked_head(paper, content, ACCENTS[3]) if rng.random() < 0.5 else centred_head(paper, content, ACCENTS[3], rng)
    left, width = MARGIN + 6, paper.width - 2 * MARGIN - 12
    columns = columns_of(LEADERS, left, width)
    step = leading_for(paper, content, top, sum(len(panel.rows) + 1.7 for panel in content.panels))
    bold, y = rng.random() < 0.5, top
    for panel in content.panels:
        paper.text(MARGIN, y, panel.title, 11, heavy=True)
        for row in panel.rows:
            y += step
            draw_row_parts(paper, columns, row, y, BODY, bold_marked=bold)
            _dots(paper, row, columns, y)
        y += step * 1.7
    tail(paper, content, y - step * 1.3)


def _dots(paper: Paper, row: Row, columns: tuple[Column, ...], baseline: float) -> None:
    """Fill the gap between name and value with dots."""
    start = columns[0].x + min(paper.text_width(row.name, BODY), columns[0].width - 4) + (18 if row.footnote is not None else 5)
    dot = paper.text_width(" .", BODY)
    count = int((columns[1].x - 6 - start) / dot)
    if count > 1:
        paper.text(start, baseline, " ." * count, BODY, colour=GREY)
