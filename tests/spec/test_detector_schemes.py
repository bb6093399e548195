"""Tags of detector variants."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.records.detector_quant import Recipe, Step
from fewbits.spec.detector_schemes import ladder, parse_scheme, scheme_tag


def recipe(tag: str) -> Recipe:
    found = parse_scheme(tag)
    assert found is not None
    return found


def test_float_is_no_recipe() -> None:
    assert parse_scheme("FP32") is None
    assert scheme_tag(None) == "FP32"


def test_a_bare_tag_takes_the_best_known_steps() -> None:
    four = recipe("W4A8")
    assert (four.weight_bits, four.activation_bits, four.budget_bits, four.tuned) == (4, 8, None, False)
    assert {Step.GPTQ, Step.TARGET, Step.BIAS, Step.SPARE_DISTRIBUTION, Step.UNSIGNED} <= set(four.steps)
    assert Step.GPTQ not in recipe("W8A8").steps
    assert Step.UNSIGNED not in recipe("W4A16").steps


def test_naive_takes_none_and_steps_are_added_in_their_own_order() -> None:
    assert recipe("W4A8-naive").steps == ()
    assert recipe("W4A8-naive+per-channel+fold").steps == (Step.FOLD, Step.PER_CHANNEL)
    mixed = recipe("W3A8-mixed4.5-qat")
    assert (mixed.weight_bits, mixed.budget_bits, mixed.tuned) == (3, 4.5, True)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("W9A8", "is no detector scheme"),
        ("W4A4", "is no detector scheme"),
        ("V4A8", "is no detector scheme"),
        ("W4A8+fold", "write W4A8-naive+fold"),
        ("W4A8-naive+folt", "did you mean fold"),
        ("W4A8-naive+fold+fold", "twice"),
        ("W4A8-naive+gptq", "needs per-channel"),
        ("W4A8-naive+bias", "needs fold"),
        ("W4A8-naive+fold+per-channel+gptq+brevitas-gptq", "both round the weights"),
        ("W4A8-naive+fold+bias+brevitas-bias", "both correct biases"),
        ("W4A16-naive+unsigned", "has no effect"),
        ("W4A8-naive-mixed5", "needs per-channel"),
        ("W4A8-mixed3.9", "not between 4 and 8"),
        ("W4A8-naive-qat", "training needs fold"),
    ],
)
def test_unusable_tags_say_why(tag: str, said: str) -> None:
    with pytest.raises(SpecError, match=said.replace("+", r"\+")):
        parse_scheme(tag)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_scheme("W4A16-naive+gptq+bias+unsigned+nonsense")
    assert len(caught.value.problems) == 4


@given(
    st.integers(2, 8),
    st.sampled_from([8, 16]),
    st.sets(st.sampled_from(list(Step))),
    st.none() | st.sampled_from([4.5, 5.0, 6.25]),
    st.booleans(),
)
def test_whatever_reads_is_written_back_the_same(
    bits: int, activations: int, steps: set[Step], budget: float | None, tuned: bool
) -> None:
    tag = f"W{bits}A{activations}-naive" + "".join(f"+{step}" for step in sorted(steps)) + (f"-mixed{budget:g}" if budget else "")
    try:
        found = parse_scheme(tag + ("-qat" if tuned else ""))
    except SpecError:
        return
    assert parse_scheme(scheme_tag(found)) == found


def test_the_ladder_changes_one_thing_at_a_time_and_ends_at_the_best() -> None:
    rows = ladder(4, 8)
    main = [row for row in rows if row.beside is None]
    assert main[0].recipe == recipe("W4A8-naive")
    assert main[-1].recipe == recipe("W4A8")
    for before, after in pairwise(main):
        assert set(after.recipe.steps) - set(before.recipe.steps) == {after.adds}
    for row in rows:
        assert parse_scheme(scheme_tag(row.recipe)) == row.recipe
        if row.beside is not None:
            rival = next(line.recipe for line in main if line.adds is row.beside)
            assert set(rival.steps) ^ set(row.recipe.steps) == {row.adds, row.beside}


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("w4a8", "W4A8"),
        ("fp32", "FP32"),
        ("w4A8-Naive+FOLD", "W4A8-naive+fold"),
        ("W3a8-MIXED4.5-Qat", "W3A8-mixed4.5-qat"),
    ],
)
def test_tags_are_read_in_any_case_and_written_in_one(written: str, tag: str) -> None:
    assert parse_scheme(written) == parse_scheme(tag)
    assert scheme_tag(parse_scheme(written)) == tag


@pytest.mark.parametrize("tag", ["W\u2074A8", "W4A8\n", " W4A8", "\u24cc4A8", "FP\u00b32", "fp16"])
def test_letters_and_digits_of_other_scripts_are_none(tag: str) -> None:
    with pytest.raises(SpecError, match="is no detector scheme"):
        parse_scheme(tag)


def test_problems_quote_the_tag_as_it_was_written() -> None:
    with pytest.raises(SpecError, match=r"'w4a8\+Fold' adds steps to nothing \(write w4a8-naive\+Fold\)"):
        parse_scheme("w4a8+Fold")
