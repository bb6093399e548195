"""Drawn pages: nothing overlaps or is cut, everything that the truth holds is there."""

from __future__ import annotations

import numpy as np
import pytest

from fewbits.workloads.extraction.generator.content import Content
from fewbits.workloads.extraction.generator.fonts import FAMILIES, has_glyph, runs
from fewbits.workloads.extraction.generator.layouts import LAYOUTS, Layout, drawn_page, layout_for
from fewbits.workloads.extraction.generator.paper import Paper, TooWideError
from fewbits.workloads.extraction.generator.seeds import page_seed

PAGES = 12


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.name)
def drawn(request: pytest.FixtureRequest) -> list[tuple[Paper, Content]]:
    layout: Layout = request.param
    return [drawn_page(layout, page_seed("samples", 11, layout.name, index)) for index in range(PAGES)]


def test_no_text_touches_another_or_leaves_the_paper(drawn: list[tuple[Paper, Content]]) -> None:
    for paper, _ in drawn:
        boxes = np.array([ink.box for ink in paper.ink])
        assert boxes[:, :2].min() > 0
        assert boxes[:, 2].max() < paper.image.width
        assert boxes[:, 3].max() < paper.image.height
        across = (boxes[:, None, 0] < boxes[None, :, 2]) & (boxes[None, :, 0] < boxes[:, None, 2])
        down = (boxes[:, None, 1] < boxes[None, :, 3]) & (boxes[None, :, 1] < boxes[:, None, 3])
        touching = np.argwhere(np.triu(across & down, k=1))
        assert [(paper.ink[a].text, paper.ink[b].text) for a, b in touching] == []


def test_everything_that_the_truth_holds_is_drawn(drawn: list[tuple[Paper, Content]]) -> None:
    for paper, content in drawn:
        texts = [ink.text for ink in paper.ink]
        whole = "\n".join(texts)
        for panel in content.panels:
            for row in panel.rows:
                assert row.name in texts
                assert any(text.split(" ")[0] == row.value.split(" ")[0] for text in texts)
                assert all(part in whole for part in (row.value, row.unit or "", row.mark or ""))
                assert row.reference is None or (row.reference.text or "") in whole
        assert content.laboratory[0] in texts
        assert {text for _, text in content.fields} <= set(texts)


def test_rows_are_in_reading_order(drawn: list[tuple[Paper, Content]]) -> None:
    for paper, content in drawn:
        for panel in content.panels:
            names, order = [row.name for row in panel.rows], iter(ink.text for ink in paper.ink)
            assert all(name in order for name in names)


def test_layouts_differ_and_pages_are_of_a_scanners_size(drawn: list[tuple[Paper, Content]]) -> None:
    assert len({layout.name for layout in LAYOUTS}) >= 6
    assert {paper.dots_per_inch for paper, _ in drawn} <= {150, 170, 200}
    assert all(1200 < paper.image.width < 1710 for paper, _ in drawn)


def test_equal_seeds_give_equal_pixels() -> None:
    first, second = (drawn_page(layout_for("ruled"), 77)[0].image.tobytes() for _ in range(2))
    assert first == second
    assert first != drawn_page(layout_for("ruled"), 78)[0].image.tobytes()


def test_characters_that_a_font_lacks_are_drawn_otherwise() -> None:
    assert not has_glyph("aileron", False, "µ")
    assert runs("10³/µL", "aileron", False) == (
        ("10", "aileron", False),
        ("3", "aileron", True),
        ("/", "aileron", False),
        ("µ", "roboto", False),
        ("L", "aileron", False),
    )
    assert all(has_glyph("roboto", False, character) for character in "\u00b5\u00d7\u00b2\u00b3\u2076\u2079\u2013")
    assert {"roboto", "source-sans", "source-serif", "hanken"} == set(FAMILIES)


def test_a_text_that_does_not_fit_is_set_smaller_or_refused() -> None:
    paper = Paper(300, 100, 100, "roboto")
    width = paper.text_width("Thyroid Stimulating Hormone", 10)
    assert paper.text(10, 50, "Thyroid Stimulating Hormone", 10, room=width * 0.9) <= width * 0.92
    with pytest.raises(TooWideError, match="points wide, its place 20"):
        paper.text(10, 80, "Thyroid Stimulating Hormone", 10, room=20)
