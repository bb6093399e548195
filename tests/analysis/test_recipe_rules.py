from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.recipe_rules import RuleGroup, pure_recipe, simple_recipe

BITS = {"Q4_0": 4.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5}


def group(name: str, depth: float | None = 0.5, weights: int = 3200, types: Sequence[str] = tuple(BITS)) -> RuleGroup:
    kind = name.partition("/")[0]
    return RuleGroup(name, kind, depth, weights, {one: int(weights * BITS[one] / 8) for one in types})


def total(groups: Sequence[RuleGroup], chosen: dict[str, str]) -> int:
    return sum(one.options[chosen[one.name]] for one in groups)


MODEL = [group("token_embd", None, 9600), group("attn_v"), group("attn_q"), group("ffn_down/0", 0.0), group("ffn_gate")]
ROOM = 22400


def test_pure_takes_the_largest_type_that_fits() -> None:
    budget = int(ROOM * 5.6 / 8)
    assert pure_recipe(MODEL, budget) == ("Q5_0", {one.name: "Q5_0" for one in MODEL})
    assert pure_recipe(MODEL, ROOM * 9 // 8) == ("Q8_0", {one.name: "Q8_0" for one in MODEL})
    assert pure_recipe(MODEL, ROOM * 4 // 8) is None


def test_a_group_without_the_type_gets_its_next_smaller_one() -> None:
    groups = [group("attn_q"), group("ffn_down", types=("Q4_0", "Q5_1"))]
    found = pure_recipe(groups, int(6400 * 5.5 / 8))
    assert found == ("Q5_0", {"attn_q": "Q5_0", "ffn_down": "Q4_0"})


def test_the_rule_favours_values_then_the_embedding() -> None:
    chosen = simple_recipe(MODEL, int(ROOM * 5.6 / 8))
    assert chosen is not None
    assert BITS[chosen["attn_v"]] >= BITS[chosen["token_embd"]] >= BITS[chosen["ffn_gate"]]
    assert BITS[chosen["ffn_down/0"]] >= BITS[chosen["ffn_gate"]]


def test_what_is_left_is_spent_in_order() -> None:
    chosen = simple_recipe(MODEL, total(MODEL, {one.name: "Q8_0" for one in MODEL}))
    assert chosen == {one.name: "Q8_0" for one in MODEL}


def test_nothing_fits() -> None:
    assert simple_recipe(MODEL, 10) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("attn_v", "attn_q", "ffn_down", "ffn_gate", "token_embd", "new_kind")),
            st.floats(0, 0.99),
            st.integers(1, 40),
            st.lists(st.sampled_from(tuple(BITS)), min_size=1, unique=True),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 30_000),
)
def test_rules_keep_to_the_budget_and_to_the_options(rows: list[tuple[str, float, int, list[str]]], budget: int) -> None:
    groups = [group(f"{kind}/{place}", depth, 32 * size, types) for place, (kind, depth, size, types) in enumerate(rows)]
    smallest = sum(min(one.options.values()) for one in groups)
    simple, pure = simple_recipe(groups, budget), pure_recipe(groups, budget)
    assert (simple is None) == (smallest > budget)
    for chosen in (simple, pure[1] if pure else None):
        if chosen is not None:
            assert set(chosen) == {one.name for one in groups}
            assert total(groups, chosen) <= budget
    if simple is not None:
        left = budget - total(groups, simple)
        for one in groups:
            larger = [size for size in one.options.values() if size > one.options[simple[one.name]]]
            assert not larger or min(larger) - one.options[simple[one.name]] > left
    assert simple_recipe(list(reversed(groups)), budget) == simple
