from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.quantizers.torch.coverage import group_modules, place_of, plan_coverage, spread_evenly
from fewbits.records.sensitivity import AutoQuantSettings, CoverageMode, ExclusionReason, PairSettings

LAYER = {"self_attn.q_proj": 16, "self_attn.k_proj": 8, "self_attn.v_proj": 8, "self_attn.o_proj": 16}
LAYER |= {"mlp.gate_proj": 32, "mlp.up_proj": 32, "mlp.down_proj": 32}


def model(layers: int = 2, *, vision: bool = False) -> dict[str, int]:
    weights: dict[str, int] = {}
    if vision:
        weights |= {"model.visual.blocks.0.attn.qkv": 48, "model.visual.merger.linear_fc1": 10}
    for layer in range(layers):
        weights |= {f"model.layers.{layer}.{name}": size for name, size in LAYER.items()}
    return weights | {"lm_head": 100}


def pair(**settings: Any) -> PairSettings:
    return PairSettings(name="p", weight="int8", activation="int8", format_name="INT8_DEFAULT_CFG", **settings)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.k_proj", ("attn_qkv", 3)),
        ("model.language_model.layers.12.mlp.up_proj", ("mlp_gate_up", 12)),
        ("model.layers.0.mlp.down_proj", ("mlp_down", 0)),
        ("model.layers.1.self_attn.o_proj", ("attn_o", 1)),
        ("lm_head", ("lm_head", None)),
        ("transformer.h.7.attn.c_attn", ("attn_qkv", 7)),
        ("model.layers.2.self_attn.qkv_proj", ("attn_qkv", 2)),
        ("model.visual.blocks.5.attn.qkv", ("qkv", 5)),
        ("model.visual.patch_embed.proj", ("proj", None)),
        ("model.layers.4.mlp.experts.17.up_proj", ("mlp_experts", 4)),
    ],
)
def test_a_module_name_tells_kind_and_layer(name: str, place: tuple[str, int | None]) -> None:
    assert place_of(name) == place


def test_q_k_v_and_gate_up_share_a_group_and_are_named_after_their_first_member() -> None:
    groups = group_modules(name for name in model(1) if name != "lm_head")
    assert {name.rsplit(".", 1)[1]: len(members) for name, members in groups.items()} == {
        "q_proj": 3,
        "o_proj": 1,
        "gate_proj": 2,
        "down_proj": 1,
    }


@pytest.mark.parametrize("mode", [CoverageMode.LM_ONLY, CoverageMode.LM_DEFAULT])
def test_language_model_coverage_leaves_vision_and_head_with_their_reasons(mode: CoverageMode) -> None:
    coverage = plan_coverage(model(vision=True), pair(coverage_mode=mode), AutoQuantSettings())
    reasons = {module.name: module.reason for module in coverage.excluded}
    assert reasons == {
        "model.visual.blocks.0.attn.qkv": ExclusionReason.VISION_TOWER,
        "model.visual.merger.linear_fc1": ExclusionReason.VISION_TOWER,
        "lm_head": ExclusionReason.OUTPUT_HEAD,
    }
    assert mode.value in coverage.excluded[0].detail
    assert coverage.excluded[-1].weights == 100


def test_the_head_is_covered_on_request() -> None:
    coverage = plan_coverage(model(), pair(), AutoQuantSettings(include_output_head=True))
    assert coverage.excluded == ()
    assert coverage.covered[-1] == "lm_head"


def test_full_coverage_covers_everything() -> None:
    weights = model(vision=True)
    assert plan_coverage(weights, pair(coverage_mode=CoverageMode.FULL), AutoQuantSettings()).covered == tuple(weights)


def test_a_pattern_takes_the_whole_group_along_and_says_so() -> None:
    coverage = plan_coverage(model(), pair(), AutoQuantSettings(disabled_layers=("*layers.0*k_proj",)))
    details = {module.name: module.detail for module in coverage.excluded if module.reason is ExclusionReason.PATTERN}
    assert set(details) == {f"model.layers.0.self_attn.{name}_proj" for name in "qkv"}
    assert details["model.layers.0.self_attn.k_proj"] == "matches '*layers.0*k_proj'"
    assert "shares its precision with model.layers.0.self_attn.k_proj" in details["model.layers.0.self_attn.q_proj"]


def test_a_pattern_that_matches_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(SpecError, match=r"disabled_layers\[1\].*matches no.*near names: .*down_proj") as caught:
        plan_coverage(model(), pair(), AutoQuantSettings(disabled_layers=("*q_proj", "*mlp.down_projection")))
    assert len(caught.value.problems) == 1


def test_nothing_left_to_quantize_is_refused() -> None:
    with pytest.raises(SpecError, match="nothing is left"):
        plan_coverage(model(), pair(), AutoQuantSettings(disabled_layers=("*",)))
    with pytest.raises(SpecError, match="no linear or convolution layer"):
        plan_coverage({}, pair(), AutoQuantSettings())


def test_a_quarter_of_eight_layers_are_two_spread_over_the_depth() -> None:
    coverage = plan_coverage(model(8), pair(coverage_fraction=0.25), AutoQuantSettings())
    assert {place_of(name)[1] for name in coverage.covered} == {2, 6}
    left_out = [module for module in coverage.excluded if module.reason is ExclusionReason.COVERAGE_FRACTION]
    assert len(left_out) == 6 * len(LAYER)
    assert "2 of 8 layers" in left_out[0].detail


def test_a_tiny_fraction_still_covers_one_layer() -> None:
    coverage = plan_coverage(model(5), pair(coverage_fraction=0.001), AutoQuantSettings())
    assert {place_of(name)[1] for name in coverage.covered} == {2}


@given(layers=st.integers(1, 12), fraction=st.floats(0.01, 1), head=st.booleans(), vision=st.booleans())
def test_coverage_reaches_its_fraction_and_splits_the_model(layers: int, fraction: float, head: bool, vision: bool) -> None:
    weights = model(layers, vision=vision)
    settings = AutoQuantSettings(include_output_head=head)
    everything = plan_coverage(weights, pair(), settings)
    coverage = plan_coverage(weights, pair(coverage_fraction=fraction), settings)
    excluded = [module.name for module in coverage.excluded]
    assert sorted([*coverage.covered, *excluded]) == sorted(weights)
    share = sum(weights[name] for name in coverage.covered) / sum(weights[name] for name in everything.covered)
    assert share >= fraction - 1e-9
    # whole groups only
    assert set(group_modules(coverage.covered).values()) <= set(group_modules(everything.covered).values())


@given(total=st.integers(1, 200), data=st.data())
def test_even_spreading_is_even(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    chosen = spread_evenly(count, total)
    assert len(set(chosen)) == count
    assert chosen[0] >= 0
    assert chosen[-1] < total
    gaps = [right - left for left, right in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1
