from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.frontier import FrontierPoint, pareto_frontier


def test_a_small_ladder() -> None:
    points = [
        FrontierPoint("F16", 0.80, 1.0, 300, 270),
        FrontierPoint("Q8_0", 0.80, 0.6, 170, 145),
        FrontierPoint("Q4_0", 0.70, 0.5, 110, 90),
        FrontierPoint("Q4_K_M", 0.75, 0.5, 115, 100),
        FrontierPoint("Q2_K", 0.60, 0.7, 120, 88),
    ]
    found = pareto_frontier(points)
    assert found.members == ("Q4_0", "Q4_K_M", "Q8_0")
    assert found.dominated_by["F16"] == ("Q8_0",)
    assert found.dominated_by["Q2_K"] == ("Q4_0", "Q4_K_M")
    assert found.objectives == ("adherence_score:max", "total_latency:min", "peak_memory_rss:min")


def test_memory_axis_is_the_same_for_all() -> None:
    measured, unmeasured = FrontierPoint("A", 0.5, 1.0, 10, 200), FrontierPoint("B", 0.5, 1.0, None, 100)
    found = pareto_frontier([measured, unmeasured])
    assert found.objectives[-1] == "variant_bytes:min"
    assert found.dominated_by["A"] == ("B",)
    assert pareto_frontier([measured, FrontierPoint("C", 0.5, 1.0)]).members == ("A", "C")
    assert pareto_frontier([]).members == ()


def test_repeated_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        pareto_frontier([FrontierPoint("A", 1.0, 1.0), FrontierPoint("A", 1.0, 1.0)])


values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
memory = st.none() | st.integers(1, 4)
bodies = st.lists(st.tuples(values, values, memory, memory), max_size=12)


@given(bodies, st.randoms())
def test_laws(found: list[tuple[float, float, int | None, int | None]], shuffler: object) -> None:
    points = [FrontierPoint(f"q{i}", *body) for i, body in enumerate(found)]
    frontier = pareto_frontier(points)
    mixed = list(points)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    assert pareto_frontier(mixed) == frontier
    assert bool(points) == bool(frontier.members)

    def beats(one: FrontierPoint, other: FrontierPoint) -> bool:
        axes = [(one.adherence_score, other.adherence_score), (-one.latency_seconds, -other.latency_seconds)]
        if len(frontier.objectives) == 3:
            name = frontier.objectives[2].partition(":")[0]
            axes.append((-getattr(one, name), -getattr(other, name)))
        return all(a >= b for a, b in axes) and any(a > b for a, b in axes)

    by_tag = {point.quant_tag: point for point in points}
    for point in points:
        dominators = frontier.dominated_by[point.quant_tag]
        if dominators:
            assert all(beats(by_tag[tag], point) and tag in frontier.members for tag in dominators)
        else:
            assert not any(beats(other, point) for other in points)
