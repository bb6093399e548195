from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fewbits.analysis.counterfactual import would_change
from fewbits.analysis.rows import RowInput, build_row
from fewbits.analysis.trial_table import Group
from fewbits.analysis.uncertainty import PickShare, SelectionUncertainty
from fewbits.records.estimate import Estimate
from fewbits.records.plan import PolicyName, QualityPolicy, SelectionPolicy
from fewbits.records.summary import QuantRow, VerdictCode, VerdictDetail

THREE_ZONE = SelectionPolicy()
THRESHOLD = SelectionPolicy(name=PolicyName.THRESHOLD)


def row(tag: str, rank: int, difference: float | None, verdict: VerdictCode = VerdictCode.EQUIVALENT, **changes: Any) -> QuantRow:
    source = RowInput(
        quant_tag=tag, rank=rank, artifact=None, group=Group(()), expected_runs=1, policy=QualityPolicy(), include_invalid=False
    )
    detail = None
    if difference is not None:
        detail = VerdictDetail(
            verdict=verdict,
            reasons=(),
            difference=Estimate(value=difference, low=None, high=None, level=0.95, method="m", n=9, reason="r"),
            margin=0.05,
            method="m",
            items_used=9,
            minimum_detectable_effect=None,
            further_items=None,
            tests=(),
        )
    return msgspec.structs.replace(build_row(source).row, verdict=detail, **changes)


ROWS = (
    row("F16", 3, None, is_reference=True, adherence_score=0.8, total_latency=1.0),
    row("Q8_0", 2, -0.04, adherence_score=0.77, total_latency=0.8),
    row("Q6_K", 1, -0.071, VerdictCode.WORSE, adherence_score=0.729, total_latency=0.6),
    row("Q4_K", 0, -0.02, VerdictCode.UNRESOLVED, adherence_score=0.78, total_latency=0.6),
    row("Q3_K", -1, -0.03, VerdictCode.WORSE, adherence_score=0.77, total_latency=0.6),
)


def said(
    smallest: dict[str, float], best: dict[str, float], picks: tuple[str | None, str | None], policy: SelectionPolicy
) -> str:
    def race(shares: dict[str, float]) -> tuple[PickShare, ...]:
        return tuple(PickShare(tag, share) for tag, share in shares.items())

    uncertainty = SelectionUncertainty(rows={}, minimum_viable=race(smallest), best_value=race(best), resamples=1000, tasks=60)
    return would_change(uncertainty, ROWS, minimum_viable=picks[0], best_value=picks[1], policy=policy)


@pytest.mark.parametrize(
    ("smallest", "best", "picks", "policy", "expected"),
    [
        (
            {"Q8_0": 0.69, "Q6_K": 0.31},
            {"Q8_0": 0.8, "Q6_K": 0.2},
            ("Q8_0", "Q8_0"),
            THREE_ZONE,
            "Drawn anew, 31 % of the samples of items pick Q6_K instead of Q8_0 for the fewest bits: "
            "Q6_K lies 2.1 points outside the margin's edge.",
        ),
        (
            {"Q8_0": 0.69, "F16": 0.31},
            {"Q8_0": 1.0},
            ("Q8_0", "Q8_0"),
            THREE_ZONE,
            "Drawn anew, 31 % of the samples of items pick F16 instead of Q8_0 for the fewest bits: "
            "Q8_0 lies only 1 point inside the margin's edge.",
        ),
        (
            {"Q4_K": 0.98, "Q8_0": 0.02},
            {"Q4_K": 0.98},
            ("Q8_0", "Q8_0"),
            THREE_ZONE,
            "Drawn anew, 98 % of the samples of items pick Q4_K instead of Q8_0 for the fewest bits: "
            "Q4_K lies 3 points inside the margin's edge, which is not proven yet.",
        ),
        (
            {"Q3_K": 0.6, "Q8_0": 0.4},
            {"Q8_0": 1.0},
            ("Q8_0", "Q8_0"),
            THREE_ZONE,
            "Drawn anew, 60 % of the samples of items pick Q3_K instead of Q8_0 for the fewest bits: "
            "Q3_K lies 2 points inside the margin's edge, but it is proven worse.",
        ),
        (
            {"Q8_0": 1.0},
            {"F16": 0.6, "Q8_0": 0.4},
            ("Q8_0", "F16"),
            THREE_ZONE,
            "Drawn anew, 40 % of the samples of items pick Q8_0 instead of F16 for the best value: "
            "it takes 20 % less time a task.",
        ),
        (
            {"Q8_0": 1.0},
            {"F16": 0.6, "Q8_0": 0.4},
            ("Q8_0", "F16"),
            THRESHOLD,
            "Drawn anew, 40 % of the samples of items pick Q8_0 instead of F16 for the best value: "
            "it gives 20 % more quality per second.",
        ),
        (
            {"Q8_0": 0.9, "Q6_K": 0.1},
            {"Q8_0": 1.0},
            ("Q8_0", "Q8_0"),
            THRESHOLD,
            "Drawn anew, 10 % of the samples of items pick Q6_K instead of Q8_0 for the fewest bits: "
            "Q6_K lies 3.1 points below the bar.",
        ),
        (
            {"Q4_K": 0.4},
            {"Q4_K": 0.4},
            (None, None),
            THREE_ZONE,
            "Drawn anew, 40 % of the samples of items would pick Q4_K for the fewest bits: "
            "Q4_K lies 3 points inside the margin's edge, which is not proven yet.",
        ),
        (
            {"Q8_0": 1.0},
            {"Q8_0": 1.0},
            ("Q8_0", "Q8_0"),
            THREE_ZONE,
            "Drawn anew, all 1,000 samples of items pick Q8_0 again: only another margin, another machine or other work "
            "would change it.",
        ),
        (
            {"Q8_0": 0.9},
            {"F16": 0.9},
            ("Q8_0", "F16"),
            THRESHOLD,
            "Drawn anew, some of 1,000 samples of items leave no variant that qualifies, and all others pick Q8_0 and F16 again.",
        ),
        (
            {},
            {},
            (None, None),
            THREE_ZONE,
            "Drawn anew, none of 1,000 samples of items gives a variant that qualifies: only other limits or other work "
            "would change that.",
        ),
    ],
)
def test_sentences(
    smallest: dict[str, float],
    best: dict[str, float],
    picks: tuple[str | None, str | None],
    policy: SelectionPolicy,
    expected: str,
) -> None:
    assert said(smallest, best, picks, policy) == expected


def test_nothing_to_say_without_resamples() -> None:
    assert would_change(None, ROWS, minimum_viable="Q8_0", best_value="Q8_0", policy=THREE_ZONE) == ""
