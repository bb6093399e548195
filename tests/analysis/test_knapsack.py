"""The budgeted choice against brute force, and its laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.analysis.knapsack import Choice, Option, best_picks, choose, picked
from fewbits.core.errors import SpecError

Groups = dict[str, list[Option]]
BITS = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_0": 4.5, "Q4_K": 4.5, "Q5_0": 5.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}

costs = st.one_of(
    st.integers(0, 3).map(float),  # many ties
    st.floats(0, 1),
    st.floats(-6, 0).map(lambda power: 10.0**power),  # KLs span many orders of magnitude
)
options = st.lists(st.tuples(st.integers(1, 30), costs), min_size=1, max_size=4).map(
    lambda rows: [Option(f"t{place}", size, cost) for place, (size, cost) in enumerate(rows)]
)
instances = st.lists(options, min_size=1, max_size=5).map(lambda rows: {f"g{place}": row for place, row in enumerate(rows)})


def smallest(groups: Groups) -> int:
    return sum(min(option.bytes for option in options) for options in groups.values())


def brute_force(groups: Groups, budget: int) -> float:
    """Least cost above each group's cheapest within the budget."""
    excess = [
        [(option.cost - min(other.cost for other in options), option.bytes) for option in options] for options in groups.values()
    ]
    combinations = [
        (math.fsum(cost for cost, _ in combination), sum(size for _, size in combination))
        for combination in itertools.product(*excess)
    ]
    return min(cost for cost, size in combinations if size <= budget)


def cheapest(groups: Groups) -> float:
    return math.fsum(min(option.cost for option in options) for options in groups.values())


def model_like(seed: int, groups: int) -> Groups:
    """Groups as a model has them: block sizes, divergences that shrink about four times per bit."""
    random = np.random.default_rng(seed)
    found: Groups = {}
    for place in range(groups):
        weights = int(random.choice([576 * 576 * 6, 576 * 192 * 6, 576 * 1536 * 6]))
        scale = math.exp(random.normal(0, 1.2)) * weights
        found[f"g{place:03d}"] = [
            Option(name, int(weights * bits / 8), scale * 4 ** -(bits - 4) * math.exp(random.normal(0, 0.25)))
            for name, bits in BITS.items()
        ]
    return found


@settings(max_examples=200, deadline=None)
@given(groups=instances, spare=st.integers(0, 70))
def test_the_choice_is_the_best_one(groups: Groups, spare: int) -> None:
    budget = smallest(groups) + spare
    choice = choose(groups, budget)
    cost = brute_force(groups, budget)
    assert math.isclose(choice.cost, cost + cheapest(groups), rel_tol=1e-9)
    assert choice.bytes <= budget
    assert_consistent(groups, choice)


def assert_consistent(groups: Mapping[str, Sequence[Option]], choice: Choice) -> None:
    chosen = [next(option for option in options if option.name == choice.picks[name]) for name, options in groups.items()]
    assert choice.bytes == sum(option.bytes for option in chosen)
    assert choice.cost == math.fsum(option.cost for option in chosen)


@settings(max_examples=100, deadline=None)
@given(groups=instances, spares=st.tuples(st.integers(0, 70), st.integers(0, 70)))
def test_more_bytes_never_cost_more(groups: Groups, spares: tuple[int, int]) -> None:
    less, more = sorted(spares)
    base = smallest(groups)
    assert choose(groups, base + more).cost <= choose(groups, base + less).cost * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(groups=instances, spare=st.integers(0, 70), random=st.randoms(use_true_random=False))
def test_the_order_of_groups_and_options_never_matters(groups: Groups, spare: int, random: object) -> None:
    budget = smallest(groups) + spare
    shuffled = list(groups.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(groups, budget) == choose({name: options[::-1] for name, options in shuffled}, budget)


@pytest.mark.parametrize(("groups", "share"), [(8, 0.1), (8, 0.6), (36, 0.1), (36, 0.35), (36, 0.7)])
def test_both_exact_solvers_agree(groups: int, share: float) -> None:
    instance = model_like(groups, groups)
    least = smallest(instance)
    budget = int(least + share * (sum(options[-1].bytes for options in instance.values()) - least))
    choice = choose(instance, budget)
    table = np.array([[[option.cost for option in options] for options in instance.values()]])
    sizes = np.array([[option.bytes for option in options] for options in instance.values()])
    quick = float(picked(table, best_picks(table, sizes, budget))[0])
    assert choice.bytes <= budget
    assert math.isclose(choice.cost, quick, rel_tol=1e-8)


def test_budgets_in_whole_bytes_are_exact_at_any_size() -> None:
    large = 3_000_000_000_001
    groups = {
        "a": [Option("small", 1, 1.0), Option("large", large, 0.0)],
        "b": [Option("small", 1, 2.0), Option("large", large, 0.0)],
    }
    assert choose(groups, large + 1).picks == {"a": "small", "b": "large"}
    assert choose(groups, large).picks == {"a": "small", "b": "small"}
    assert choose(groups, 2 * large).cost == 0
    assert choose(groups, 2 * large - 1).cost == 1


def test_a_budget_that_only_the_smallest_types_meet() -> None:
    groups = model_like(1, 20)
    choice = choose(groups, smallest(groups))
    assert set(choice.picks.values()) == {"Q2_K"}
    assert choice.bytes == smallest(groups)


def test_too_few_bytes_name_the_minimum_and_the_largest_group() -> None:
    groups = {"attn_v/0-5": [Option("Q4_0", 100, 0.1)], "token_embd": [Option("Q8_0", 5000, 0.1), Option("Q5_1", 4000, 0.2)]}
    with pytest.raises(SpecError) as caught:
        choose(groups, 4099, where="--budget")
    (problem,) = caught.value.problems
    assert problem.path == "--budget"
    assert "4,099" in problem.message
    assert "4,100" in problem.message
    assert "token_embd" in problem.hint
    assert "Q5_1" in problem.hint
    assert choose(groups, 4100).bytes == 4100


def test_alike_groups_give_the_larger_type_to_the_first_name() -> None:
    options = [Option("Q4_0", 10, 1.0), Option("Q8_0", 20, 0.0)]
    assert choose(dict.fromkeys(("b", "c", "a"), options), 40).picks == {"a": "Q8_0", "b": "Q4_0", "c": "Q4_0"}


def test_costs_next_to_nothing_are_compared_all_the_same() -> None:
    tiny = 5e-324
    groups = {"a": [Option("x", 1, 0.0)], "b": [Option("x", 1, tiny), Option("y", 2, 0.0)], "c": [Option("x", 1, 1.0)]}
    assert choose(groups, 3).picks == {"a": "x", "b": "x", "c": "x"}
    assert choose(groups, 4).picks["b"] == "y"


def test_equal_options_go_to_the_first_name() -> None:
    assert choose({"g": [Option("Q5_0", 10, 1.0), Option("Q4_1", 10, 1.0)]}, 50).picks == {"g": "Q4_1"}


@pytest.mark.parametrize("bad", [[], [Option("Q4_0", 1, math.nan)], [Option("Q4_0", 1, math.inf)]])
def test_groups_without_a_usable_option_are_refused(bad: list[Option]) -> None:
    with pytest.raises(ValueError, match="'g'"):
        choose({"g": bad}, 100)


def test_nothing_to_choose_costs_nothing() -> None:
    assert choose({}, 0) == Choice({}, 0, 0.0)


def test_many_copies_at_once_are_each_solved_exactly() -> None:
    random = np.random.default_rng(5)
    table = random.random((40, 5, 4))
    table[:, 2, 3] = np.inf  # a group with three options
    sizes = random.integers(1, 30, size=(5, 4))
    budget = int(sizes.min(axis=1).sum()) + 25
    picks = best_picks(table, sizes, budget)
    assert (sizes[np.arange(5)[None, :], picks].sum(axis=1) <= budget).all()
    best = picked(table, picks)
    for copy, cost in zip(table, best, strict=True):
        groups = {
            f"g{group}": [Option(f"t{place}", int(sizes[group, place]), copy[group, place]) for place in range(4 - (group == 2))]
            for group in range(5)
        }
        assert math.isclose(cost, brute_force(groups, budget) + cheapest(groups), rel_tol=1e-9)


def test_copies_that_cannot_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        best_picks(np.ones((1, 1, 1)), np.array([[10]]), 9)


def test_a_large_model_takes_well_under_a_second() -> None:
    groups = model_like(3, 400)
    budget = int(1.6 * smallest(groups))
    choice = choose(groups, budget)
    assert budget - choice.bytes < 100_000  # it is spent to the last few blocks
