"""The pictures: text that stays aligned, SVG that stays well-formed, and where labels go."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report.layout import Box, axis_over, cheapest, first_free
from fewbits.report.picture import COLUMNS, ROWS, render_frontier_text
from fewbits.report.scatter import scatter_document
from fewbits.report.svg import frontier_svg_name, render_frontier_svg

SVG = "{http://www.w3.org/2000/svg}"
SCORES = st.one_of(st.none(), st.floats(0, 1))
LATENCIES = st.one_of(st.none(), st.floats(0, 86_400))


def texts(document: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(document).iter(f"{SVG}text")]


def test_text_picture_shows_every_valid_row_once(summary: SweepSummary) -> None:
    picture = render_frontier_text(summary.sessions[0])
    assert "■ Q4_1" in picture
    assert "▲ Q8_0" in picture
    assert "○ Q2_K" in picture
    assert "F16 (reference)" in picture
    assert "limit 0.515" in picture
    assert picture.count("Q4_K_M") == 1  # only as "not drawn"


def test_marks_stand_where_their_numbers_say(new_session: Callable[..., Session], new_row: Callable[..., QuantRow]) -> None:
    rows = (
        new_row("A", adherence_score=1.0, total_latency=1.0),
        new_row("B", adherence_score=0.0, total_latency=2.0),
        new_row("C", adherence_score=0.5, total_latency=1.5),
    )
    lines = render_frontier_text(new_session("m", rows, minimum_adherence=None)).split("\n")[1 : ROWS + 1]
    assert lines[0] == "   1.0 ┤○ A"
    assert lines[ROWS // 2].index("○") == 8 + COLUMNS // 2
    assert lines[-1].rstrip().endswith("B ○")


@example(cells=[(0.0, 0.0, False, False)], name="", limit=1e-05)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.tuples(SCORES, LATENCIES, st.booleans(), st.booleans()), max_size=14),
    name=st.text(max_size=12),
    limit=SCORES,
)
def test_pictures_hold_for_any_numbers_and_names(
    cells: list[tuple[float | None, float | None, bool, bool]],
    name: str,
    limit: float | None,
    new_session: Callable[..., Session],
    new_row: Callable[..., QuantRow],
) -> None:
    rows = tuple(
        new_row(f"{index}{name}", adherence_score=score, total_latency=latency, valid=valid, on_frontier=member and valid)
        for index, (score, latency, valid, member) in enumerate(cells)
    )
    session = new_session(name, rows, minimum_adherence=limit)
    picture = render_frontier_text(session, include_invalid=True)
    assert "<" not in picture
    drawn = [row for row in rows if row.adherence_score is not None and row.total_latency is not None]
    if drawn:
        body = picture.split("\n")[1 : ROWS + 1]
        assert all(line[7] in "│┤" and len(line) <= 8 + COLUMNS for line in body)
        # Every variant is named: beside its mark, or in a note under the picture
        assert all(
            any(part.lstrip().startswith(str(i)) or f" {i}" in part for part in picture.split("\n")) for i in range(len(rows))
        )
    assert ElementTree.fromstring(render_frontier_svg(session, include_invalid=True)).tag == f"{SVG}svg"


def test_svg_names_everything_and_is_self_contained(summary: SweepSummary) -> None:
    document = render_frontier_svg(summary.sessions[0])
    words = texts(document)
    assert {"F16 (reference)", "Q8_0", "Q4_1", "Q2_K", "minimum viable · 210.0 MiB", "adherence limit 0.515"} <= set(words)
    assert "Not drawn: Q4_K_M (invalid)" in words
    assert "href" not in document
    assert "Q4_K_M" in texts(render_frontier_svg(summary.sessions[0], include_invalid=True))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><x a="', "a\x00b\x1b\u202e\ufffe", "&lt;", "]]>"])
def test_svg_escapes_names(name: str, new_session: Callable[..., Session], new_row: Callable[..., QuantRow]) -> None:
    root = ElementTree.fromstring(render_frontier_svg(new_session(name, (new_row(name),))))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {"svg", "title", "rect", "line", "text", "circle"}


def test_figure_name_is_one_safe_path_component() -> None:
    assert frontier_svg_name("smollm2-135m") == "sweep_frontier_smollm2-135m.svg"
    assert "/" not in frontier_svg_name("../../etc/passwd")
    assert frontier_svg_name("a/b") != frontier_svg_name("a_b")


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=6))
def test_axes_hold_their_values_with_few_round_ticks(values: list[float]) -> None:
    axis = axis_over(values, target_ticks=5, min_span=0.005)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(values)
    assert max(values) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 8
    assert len({axis.label(tick) for tick in axis.ticks}) == len(axis.ticks)


def test_axis_of_one_value_and_labels() -> None:
    axis = axis_over([0.25, 0.5], target_ticks=4, min_span=0.005)
    assert [axis.label(tick) for tick in axis.ticks] == ["0.2", "0.3", "0.4", "0.5"]
    assert axis_over([1.0], target_ticks=5, min_span=0.02, ceiling=1.0).high == 1.0
    assert math.isclose(axis_over([0.0], target_ticks=5, min_span=0.005).low, 0.0)


def test_labels_avoid_what_is_taken() -> None:
    bounds, taken = Box(0, 0, 10, 10), [Box(0, 0, 5, 5)]
    assert first_free([Box(4, 4, 6, 6), Box(9, 9, 11, 11), Box(5, 5, 7, 7)], taken, bounds) == Box(5, 5, 7, 7)
    assert first_free([Box(1, 1, 2, 2)], taken, bounds) is None
    crossing, far = (1.0, Box(6, 0, 8, 2)), (30.0, Box(6, 6, 8, 8))
    assert cheapest([crossing, far], hard=[], soft=[Box(7, 0, 7.5, 2)], bounds=bounds) == crossing[1]
    assert cheapest([crossing, far], hard=[Box(7, 0, 7.5, 2)], soft=[], bounds=bounds) == far[1]


def test_scatter_document(summary: SweepSummary) -> None:
    document = scatter_document(summary, "runs/demo/sweep_summary.json", include_invalid=False)
    assert list(document) == ["source_summary", "execution_lane", "vram_profile", "include_invalid", "points"]
    assert [point["quant_tag"] for point in document["points"]] == ["F16", "Q8_0", "Q4_1", "Q2_K"]
    viable = document["points"][2]
    assert viable["frontier_role"] == "minimum_viable"
    assert viable["adherence_low"] == 0.437
    assert document["points"][3]["adherence_low"] is None
    by_tag = {point["quant_tag"]: point for point in document["points"]}
    assert (by_tag["F16"]["verdict"], by_tag["Q8_0"]["verdict"], by_tag["Q2_K"]["verdict"]) == (None, "EQUIVALENT", "WORSE")
    assert by_tag["F16"]["latency_ratio"] is None
    everything = scatter_document(summary, "x", include_invalid=True)["points"]
    assert [point["valid"] for point in everything] == [True, True, False, True, True]
    assert everything[2]["generation_tps"] is None


def test_both_picks_share_a_role(new_summary: Callable[..., SweepSummary], new_session: Callable[..., Session]) -> None:
    session = new_session(best_value_quant_tag="Q4_1")
    roles = {point["quant_tag"]: point["frontier_role"] for point in scatter_document(new_summary((session,)), "x")["points"]}
    assert roles == {"F16": "", "Q8_0": "", "Q4_1": "minimum_viable+best_value", "Q2_K": ""}
