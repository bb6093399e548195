"""Verdicts: the step-down, the zones, and the error of a whole session in simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.race import Race
from fewbits.analysis.verdicts import Candidate, Claims, evidence_of, judge, verdict_detail, weighted_holm
from fewbits.records.plan import DecidePolicy, SelectionPolicy
from fewbits.records.summary import VerdictCode, VerdictReason

Floats = npt.NDArray[np.float64]
POLICY = SelectionPolicy()
LADDER = {"Q8": (0.02, 0.02), "Q6": (0.025, 0.025), "Q5": (0.1, 0.02), "Q4": (0.14, 0.02), "Q3": (0.22, 0.03), "Q2": (0.33, 0.03)}
"""Probabilities of a loss and of a gain on an item: two equivalent rungs, then 8, 12, 19 and 30 points of loss."""
RANKS = {tag: rank for rank, tag in enumerate(reversed(LADDER))}


def draw(rng: np.random.Generator, loss: float, gain: float, items: int) -> Floats:
    draws = rng.random(items)
    return np.where(draws < loss, -1.0, np.where(draws < loss + gain, 1.0, 0.0))


def candidates(
    data: dict[str, Floats], harm: dict[str, float] | None = None, policy: SelectionPolicy = POLICY
) -> list[Candidate]:
    return [
        Candidate(tag, RANKS.get(tag, place), evidence_of(differences, policy), (harm or {}).get(tag))
        for place, (tag, differences) in enumerate(data.items())
    ]


def claims(**changes: Any) -> Claims:
    base: dict[str, Any] = {"loss": False, "gain": False, "equivalent": False, "harm": False}
    levels = dict.fromkeys(("loss_level", "gain_level", "equivalent_level", "harm_level"), 0.05)
    return Claims(**(base | levels | changes))


class TestHolm:
    def test_by_hand(self) -> None:
        found = weighted_holm({"a": 0.01, "b": 0.02, "c": 0.2}, {"a": 1.0, "b": 1.0, "c": 1.0}, 0.05)
        assert found == {"a": (True, pytest.approx(0.05 / 3)), "b": (True, 0.025), "c": (False, 0.05)}

    def test_weights_decide_who_is_looked_at_first(self) -> None:
        found = weighted_holm({"a": 0.03, "b": 0.03}, {"a": 3.0, "b": 1.0}, 0.05)
        assert found["a"][0]
        assert found["a"][1] == pytest.approx(0.0375)
        assert found["b"] == (True, 0.05)
        assert not weighted_holm({"a": 0.04, "b": 0.03}, {"a": 3.0, "b": 1.0}, 0.05)["b"][0]

    @given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.floats(0, 1), min_size=1, max_size=6))
    def test_smaller_p_values_never_reject_less(self, p_values: dict[str, float]) -> None:
        weights = {tag: 0.5**place for place, tag in enumerate(sorted(p_values))}
        before = weighted_holm(p_values, weights, 0.05)
        after = weighted_holm({tag: p / 2 for tag, p in p_values.items()}, weights, 0.05)
        assert all(after[tag][0] for tag in p_values if before[tag][0])

    @given(st.permutations(list(LADDER)))
    def test_order_never_matters(self, order: list[str]) -> None:
        p_values = {tag: 0.004 * (place + 1) for place, tag in enumerate(LADDER)}
        weights = {tag: 0.5 ** RANKS[tag] for tag in LADDER}
        assert weighted_holm({tag: p_values[tag] for tag in order}, weights, 0.05) == weighted_holm(p_values, weights, 0.05)

    def test_family_wise_error_in_simulation(self) -> None:
        """Six true nulls with independent uniform p-values: any rejection in at most 5 % (and not far less)."""
        rng = np.random.default_rng(3)
        weights = {tag: 0.5 ** RANKS[tag] for tag in LADDER}
        draws = rng.random((4000, len(LADDER)))
        wrong = [
            any(hit for hit, _ in weighted_holm(dict(zip(LADDER, row, strict=True)), weights, 0.05).values()) for row in draws
        ]
        assert 0.04 <= np.mean(wrong) <= 0.06


class TestZones:
    def test_precedence(self) -> None:
        assert claims().verdict is VerdictCode.UNRESOLVED
        assert claims(loss=True).verdict is VerdictCode.WORSE
        assert claims(gain=True).verdict is VerdictCode.BETTER
        assert claims(equivalent=True, loss=True).verdict is VerdictCode.EQUIVALENT
        assert claims(equivalent=True, loss=True).reasons == (VerdictReason.INSIDE_MARGIN, VerdictReason.PAIRED_LOSS)
        assert claims(equivalent=True, harm=True).verdict is VerdictCode.WORSE

    def test_clear_cases(self) -> None:
        rng = np.random.default_rng(1)
        data = {"Q8": np.zeros(300), "Q4": draw(rng, 0.05, 0.3, 300), "Q2": draw(rng, 0.4, 0.02, 300)}
        found = judge(candidates(data), POLICY)
        assert {tag: one.verdict for tag, one in found.items()} == {
            "Q8": VerdictCode.EQUIVALENT,
            "Q4": VerdictCode.BETTER,
            "Q2": VerdictCode.WORSE,
        }

    def test_divergence_eliminates_what_the_tasks_accept(self) -> None:
        data = {"Q8": np.zeros(300), "Q6": np.zeros(300)}
        found = judge(candidates(data, {"Q6": 1e-6}), POLICY)
        assert found["Q6"].verdict is VerdictCode.WORSE
        assert found["Q6"].reasons == (VerdictReason.DIVERGENCE_HARM, VerdictReason.INSIDE_MARGIN)
        assert found["Q8"].verdict is VerdictCode.EQUIVALENT

    def test_an_undecided_variant_says_what_it_would_take(self) -> None:
        rng = np.random.default_rng(2)
        data = {"Q8": draw(rng, 0.08, 0.05, 40)}
        (candidate,) = candidates(data)
        detail = verdict_detail(candidate, judge([candidate], POLICY)["Q8"], data["Q8"], POLICY)
        assert detail.verdict is VerdictCode.UNRESOLVED
        assert detail.reasons == (VerdictReason.TOO_FEW_ITEMS,)
        assert detail.further_items is not None
        assert detail.further_items > 40
        assert detail.difference is not None
        assert detail.difference.low is not None
        assert detail.difference.low < detail.difference.value
        assert detail.minimum_detectable_effect is not None
        assert detail.minimum_detectable_effect > POLICY.equivalence_margin
        assert len(detail.tests) == 4

    def test_at_the_margin_no_number_of_items_is_promised(self) -> None:
        """A mean of exactly -margin: wealth against `mean <= -margin` does not grow, and against `mean >= 0` slowly."""
        differences = np.tile(np.r_[np.full(1, -1.0), np.zeros(19)], 3)
        (candidate,) = candidates({"Q8": differences})
        detail = verdict_detail(candidate, judge([candidate], POLICY)["Q8"], differences, POLICY)
        assert detail.verdict is VerdictCode.UNRESOLVED
        assert detail.further_items is not None  # the loss itself can be proven

    def test_without_items(self) -> None:
        (candidate,) = candidates({"Q8": np.array([], dtype=np.float64)})
        detail = verdict_detail(candidate, judge([candidate], POLICY)["Q8"], np.array([], dtype=np.float64), POLICY)
        assert (detail.verdict, detail.reasons) == (VerdictCode.UNRESOLVED, (VerdictReason.NO_PAIRED_ITEMS,))
        assert (detail.difference, detail.further_items, detail.minimum_detectable_effect) == (None, None, None)
        assert set(detail.unavailable) == {"difference", "further_items", "minimum_detectable_effect"}


def false_claims(rng: np.random.Generator, items: int) -> tuple[bool, bool, bool]:
    """One session of three variants without any difference, and one of three at the margin: was any claim false?"""
    equal = judge(candidates({tag: draw(rng, 0.05, 0.05, items) for tag in ("Q8", "Q4", "Q2")}), POLICY)
    apart = judge(candidates({tag: draw(rng, 0.07, 0.02, items) for tag in ("Q8", "Q4", "Q2")}), POLICY)
    return (
        any(one.loss for one in equal.values()),
        any(one.gain for one in equal.values()),
        any(one.equivalent for one in apart.values()),
    )


def test_any_false_claim_of_a_session_stays_within_its_level() -> None:
    rng = np.random.default_rng(5)
    worse, better, equivalent = np.mean([false_claims(rng, 300) for _ in range(400)], axis=0)
    assert worse <= POLICY.error_level
    assert better <= POLICY.error_level
    assert equivalent <= POLICY.error_level


def race_of(data: dict[str, Floats], **decide: Any) -> Race:
    race = Race({tag: RANKS[tag] for tag in data}, POLICY, DecidePolicy(enabled=True, **decide), {})
    for item in range(len(next(iter(data.values())))):
        if not race.live:
            break
        race.close_block(item, [{tag: float(data[tag][item]) for tag in race.live}])
    return race


class TestRace:
    def test_a_ladder_is_decided_early_and_as_the_full_matrix_would(self) -> None:
        rng = np.random.default_rng(7)
        trials, agreements, worst_items = [], 0, []
        for _ in range(20):
            data = {tag: draw(rng, *rung, 500) for tag, rung in LADDER.items()}
            race = race_of(data)
            full = judge(candidates(data), POLICY)
            agreements += {tag: one.verdict for tag, one in race.claims().items()} == {
                tag: one.verdict for tag, one in full.items()
            }
            asked = [len(race.differences(tag)) for tag in LADDER]
            trials.append((sum(asked) + max(asked)) / (500 * 7))
            worst_items.append(race.finished["Q2"].items)
        assert np.mean(trials) <= 0.5
        assert agreements >= 18
        assert np.mean(worst_items) <= 50  # 39 in 500 runs

    def test_decided_variants_get_no_more_items_and_keep_their_verdict(self) -> None:
        rng = np.random.default_rng(8)
        data = {"Q8": draw(rng, 0.03, 0.03, 200), "Q2": draw(rng, 0.5, 0.0, 200)}
        race = race_of(data)
        assert race.finished["Q2"].claims.verdict is VerdictCode.WORSE
        assert len(race.differences("Q2")) == race.finished["Q2"].items < 40
        assert race.claims()["Q2"].verdict is VerdictCode.WORSE
        assert race.decisions()[0].quant_tag == "Q2"

    def test_nobody_is_decided_before_the_minimum(self) -> None:
        race = race_of({"Q2": np.full(40, -1.0)}, minimum_items=25)
        assert race.finished["Q2"].items == 25

    def test_without_early_stopping_everyone_runs_to_the_end(self) -> None:
        race = race_of({"Q8": np.zeros(50), "Q2": np.full(50, -1.0)}, early_stop=False)
        assert race.live == ("Q2", "Q8")
        assert len(race.differences("Q2")) == 50
        assert race.decisions()[0].quant_tag == "Q2"

    def test_divergence_alone_decides_after_the_minimum(self) -> None:
        decide = DecidePolicy(enabled=True, minimum_items=5)
        race = Race({"Q2": 0, "Q8": 1}, POLICY, decide, {"Q2": 1e-9, "Q8": 0.9})
        for item in range(5):
            race.close_block(item, [{"Q2": 0.0, "Q8": 0.0}])
        assert race.live == ("Q8",)
        (decision,) = race.decisions()
        assert (decision.quant_tag, decision.verdict, decision.after_items) == ("Q2", VerdictCode.WORSE, 5)
        assert decision.p_value == 1e-9
