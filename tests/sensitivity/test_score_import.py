"""AutoQuant scores as costs of GGUF types: names, weight errors, the scaling rule, and what no score covers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sensitivity_samples as samples
from fewbits.core.errors import SpecError
from fewbits.records.quant_formats import QUANT_FORMATS, QuantFormat, ScaleShare
from fewbits.records.sensitivity import (
    CandidateScore,
    GranularitySettings,
    GroupSensitivity,
    ModelSettings,
    RunStatus,
    SensitivityManifest,
)
from fewbits.sensitivity.score_import import SampledErrors, complete_costs, format_round_trip, gguf_tensor, import_scores

INT8, INT4 = "INT8_WEIGHT_ONLY_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"
Rows = npt.NDArray[np.float32]


@pytest.mark.parametrize(
    ("module", "tensor"),
    [
        ("model.layers.3.self_attn.q_proj", "blk.3.attn_q.weight"),
        ("model.layers.0.self_attn.k_proj", "blk.0.attn_k.weight"),
        ("model.layers.29.self_attn.v_proj", "blk.29.attn_v.weight"),
        ("model.layers.3.self_attn.o_proj", "blk.3.attn_output.weight"),
        ("model.layers.3.mlp.gate_proj", "blk.3.ffn_gate.weight"),
        ("model.layers.3.mlp.up_proj", "blk.3.ffn_up.weight"),
        ("model.layers.3.mlp.down_proj", "blk.3.ffn_down.weight"),
        ("model.language_model.layers.11.self_attn.q_proj", "blk.11.attn_q.weight"),
        ("language_model.model.layers.11.mlp.down_proj", "blk.11.ffn_down.weight"),
        ("model.layers.2.self_attn.qkv_proj", "blk.2.attn_qkv.weight"),
        ("model.layers.2.mlp.experts.7.up_proj", "blk.2.ffn_up_exps.weight"),
        ("lm_head", "output.weight"),
        ("model.visual.blocks.3.attn.qkv", None),
        ("model.visual.layers.3.mlp.up_proj", None),
        ("model.layers.3.self_attn.strange_proj", None),
        ("model.layers.3.mlp.router", None),
        ("../../etc/passwd", None),
    ],
)
def test_names(module: str, tensor: str | None) -> None:
    assert gguf_tensor(module, tied=False) == tensor


def test_a_tied_head_is_the_embedding() -> None:
    assert gguf_tensor("lm_head", tied=True) == "token_embd.weight"


def some_rows(seed: int, shape: tuple[int, int] = (16, 200)) -> Rows:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def squared(rows: Rows, fmt: QuantFormat) -> float:
    return float(np.square(format_round_trip(rows, fmt) - rows, dtype=np.float64).sum())


def test_int8_has_one_step_per_row() -> None:
    rows = some_rows(0)
    rows[3] *= 1000
    stored = format_round_trip(rows, QUANT_FORMATS[INT8])
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert np.abs(stored - rows).max() <= step.max() / 2 * 1.001
    assert (np.abs(stored - rows) <= step / 2 * 1.001).all()
    np.testing.assert_allclose(stored / step, np.rint(stored / step), atol=1e-3)


def test_int4_has_one_step_per_block_and_keeps_a_short_last_block() -> None:
    fmt = QUANT_FORMATS[INT4]
    assert fmt.block == 128
    rows = some_rows(1, (4, 200))  # the second block holds 72 weights
    rows[:, 128:] *= 100
    stored = format_round_trip(rows, fmt)
    assert stored.shape == rows.shape
    for block in (slice(0, 128), slice(128, 200)):
        step = np.abs(rows[:, block]).max(axis=1, keepdims=True) / 7
        assert (np.abs(stored[:, block] - rows[:, block]) <= step / 2 * 1.001).all()


def test_the_error_follows_the_theory_of_rounding() -> None:
    """Uniform weights: the squared error of a step s is s^2 / 12 each."""
    rows = np.random.default_rng(2).uniform(-1, 1, (8, 4096)).astype(np.float32)
    expected = (1 / 127) ** 2 / 12 * rows.size
    assert squared(rows, QUANT_FORMATS[INT8]) == pytest.approx(expected, rel=0.03)


def test_a_scale_per_tensor_is_coarser_than_one_per_row() -> None:
    rows = some_rows(3)
    rows[0] *= 50
    fmt = QUANT_FORMATS[INT8]
    whole = msgspec.structs.replace(fmt, scale_share=ScaleShare.TENSOR)
    assert squared(rows, whole) > 10 * squared(rows, fmt)


def test_fp8_rounds_to_e4m3() -> None:
    values = np.array([[448.0, 1.0, 1.0624, 1.0626, 17.0, 18.0, -0.3, 2.0**-9, 2.0**-11, 0.0]], dtype=np.float32)
    stored = format_round_trip(values, QUANT_FORMATS["FP8_WEIGHT_ONLY_CFG"])
    # halves go to even: 17 lies between 16 and 18
    np.testing.assert_array_equal(stored, [[448, 1, 1, 1.125, 16, 18, -0.3125, 2.0**-9, 0, 0]])


@pytest.mark.parametrize("name", [INT8, INT4, "FP8_WEIGHT_ONLY_CFG"])
def test_rows_of_zeros_stay_zeros(name: str) -> None:
    assert not format_round_trip(np.zeros((2, 130), dtype=np.float32), QUANT_FORMATS[name]).any()


def test_fp4_is_refused_with_a_way_out() -> None:
    with pytest.raises(SpecError, match="int8, int4 or FP8"):
        format_round_trip(some_rows(0), QUANT_FORMATS["NVFP4_WEIGHT_ONLY_CFG"])


@given(seed=st.integers(0, 50), factor=st.floats(1e-3, 1e3))
def test_errors_scale_with_the_square_of_the_weights(seed: int, factor: float) -> None:
    rows = some_rows(seed, (2, 128))
    larger = (rows * np.float32(factor)).astype(np.float32)
    assert squared(larger, QUANT_FORMATS[INT4]) == pytest.approx(factor**2 * squared(rows, QUANT_FORMATS[INT4]), rel=1e-2)


class Errors:
    """Sums of squared errors: 1 / 4^bits times the tensor's own factor."""

    BITS: ClassVar = {"Q4_0": 4.0, "Q5_0": 5.0, "Q8_0": 8.0, INT8: 8.0, INT4: 4.0, "INT8_DEFAULT_CFG": 8.0}

    def __init__(self, factors: dict[str, float] | None = None, exact: frozenset[str] = frozenset()) -> None:
        self.factors, self.exact = factors or {}, exact

    def of_type(self, tensor: str, ggml_type: str) -> float:
        return 0.0 if ggml_type in self.exact else self.factors.get(tensor, 1.0) * 4 ** -self.BITS[ggml_type]

    def of_format(self, tensor: str, fmt: QuantFormat) -> float:
        return self.of_type(tensor, fmt.name)


def a_group(members: tuple[str, ...], scores: dict[str, float]) -> GroupSensitivity:
    candidates = [
        CandidateScore(format=name, weight_bits=8.0, activation_bits=16.0, score=score, cost_bytes=1.0)
        for name, score in scores.items()
    ]
    free = CandidateScore(format="NONE", weight_bits=16.0, activation_bits=16.0, score=0.0, cost_bytes=2.0)
    return GroupSensitivity(
        members=members,
        kind="any",
        depth=0,
        weights=1,
        candidates=(*candidates, free),
        selected="NONE",
        importance=max(scores.values(), default=0.0),
        rank=1,
    )


def a_manifest(groups: dict[tuple[str, ...], dict[str, float]], **changes: Any) -> SensitivityManifest:
    return samples.sample_manifest(
        layer_sensitivity={members[0]: a_group(members, scores) for members, scores in groups.items()}, **changes
    )


O_PROJ, DOWN = ("model.layers.0.self_attn.o_proj",), ("model.layers.0.mlp.down_proj",)
QKV = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
OUTPUT_GROUP = {"attn_output/0": ("blk.0.attn_output.weight",)}
TYPES = ("Q4_0", "Q5_0", "Q8_0")


def types_of(groups: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(groups, TYPES)


def test_scores_scale_with_the_squared_error() -> None:
    found = import_scores([a_manifest({O_PROJ: {INT4: 0.8}})], OUTPUT_GROUP, types_of(OUTPUT_GROUP), Errors())
    costs = found.costs["attn_output/0"]
    assert costs["Q4_0"] == pytest.approx(0.8)
    assert costs["Q5_0"] == pytest.approx(0.8 / 4)
    assert costs["Q8_0"] == pytest.approx(0.8 / 256)
    assert found.uncovered == {}
    assert found.warnings == ()
    assert found.formats == (INT4,)


def test_the_format_with_the_nearest_error_is_scaled() -> None:
    pairs = [a_manifest({O_PROJ: {INT4: 0.8}}), a_manifest({O_PROJ: {INT8: 0.002}})]
    costs = import_scores(pairs, OUTPUT_GROUP, types_of(OUTPUT_GROUP), Errors()).costs["attn_output/0"]
    assert costs == {"Q4_0": pytest.approx(0.8), "Q5_0": pytest.approx(0.2), "Q8_0": pytest.approx(0.002)}


def test_modules_scored_together_share_the_score_by_their_error() -> None:
    factors = {"blk.0.attn_q.weight": 6.0, "blk.0.attn_k.weight": 3.0, "blk.0.attn_v.weight": 1.0}
    groups = {tensor.split(".")[2]: (tensor,) for tensor in factors}
    costs = import_scores([a_manifest({QKV: {INT4: 1.0}})], groups, types_of(groups), Errors(factors)).costs
    assert [costs[name]["Q4_0"] for name in ("attn_q", "attn_k", "attn_v")] == pytest.approx([0.6, 0.3, 0.1])


def test_a_band_of_layers_costs_what_its_layers_cost() -> None:
    layers: dict[tuple[str, ...], dict[str, float]] = {
        (f"model.layers.{layer}.mlp.down_proj",): {INT4: 0.1 * (layer + 1)} for layer in range(3)
    }
    bands = {"ffn_down/0-2": tuple(f"blk.{layer}.ffn_down.weight" for layer in range(3))}
    costs = import_scores([a_manifest(layers)], bands, types_of(bands), Errors()).costs
    assert costs["ffn_down/0-2"]["Q4_0"] == pytest.approx(0.6)


def test_groups_without_scores_are_named_and_cost_nothing_made_up() -> None:
    groups = OUTPUT_GROUP | {
        "token_embd": ("token_embd.weight",),
        "ffn_down/0-1": ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
    }
    found = import_scores([a_manifest({O_PROJ: {INT4: 0.8}, DOWN: {INT4: 0.1}})], groups, types_of(groups), Errors())
    assert set(found.costs) == {"attn_output/0"}
    assert "token_embd.weight" in found.uncovered["token_embd"]
    assert "blk.1.ffn_down.weight" in found.uncovered["ffn_down/0-1"]  # half a band is no score for the band


def test_a_score_shared_with_what_the_file_lacks_is_not_used() -> None:
    mixed = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.unknown")
    groups = OUTPUT_GROUP | {"attn_q/0": ("blk.0.attn_q.weight",)}
    found = import_scores([a_manifest({O_PROJ: {INT4: 0.8}, mixed: {INT4: 0.5}})], groups, types_of(groups), Errors())
    assert "attn_q/0" in found.uncovered


def test_a_format_that_is_exact_scales_nothing() -> None:
    groups = OUTPUT_GROUP | {"ffn_down/0": ("blk.0.ffn_down.weight",)}
    both = a_manifest({O_PROJ: {INT8: 0.8}, DOWN: {INT4: 0.1}})
    found = import_scores([both], groups, types_of(groups), Errors(exact=frozenset({INT8})))
    assert "exactly" in found.uncovered["attn_output/0"]
    assert found.costs["ffn_down/0"]["Q4_0"] > 0


def test_quantized_activations_are_warned_about() -> None:
    found = import_scores([samples.sample_manifest()], *sample_groups(), Errors())
    assert "INT8_DEFAULT_CFG" in found.warnings[0]
    assert len(found.costs) == samples.LAYERS  # Qwen3-VL's names


def sample_groups() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    groups = {
        f"layer{layer}": tuple(
            f"blk.{layer}.{kind}.weight"
            for kind in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        )
        for layer in range(samples.LAYERS)
    }
    return groups, types_of(groups)


def test_every_manifest_that_cannot_be_used_is_named() -> None:
    good = a_manifest({O_PROJ: {INT4: 0.8}})
    spec = good.spec
    bad = [
        msgspec.structs.replace(good, status=RunStatus.FAILED),
        msgspec.structs.replace(good, method="kl_div"),
        msgspec.structs.replace(good, spec=msgspec.structs.replace(spec, model=ModelSettings(name="other", path="x"))),
        msgspec.structs.replace(
            good,
            spec=msgspec.structs.replace(
                spec, quant_granularity=GranularitySettings(name="block", quant_cfg_overrides={"weight": {"block": 64}})
            ),
        ),
    ]
    with pytest.raises(SpecError) as caught:
        import_scores([good, *bad], OUTPUT_GROUP, types_of(OUTPUT_GROUP), Errors())
    assert [problem.path[:9] for problem in caught.value.problems] == [f"scores[{place}]" for place in (1, 2, 3, 4)]


def test_no_manifest_and_manifests_of_another_model_are_refused() -> None:
    with pytest.raises(SpecError, match="no manifest"):
        import_scores([], OUTPUT_GROUP, types_of(OUTPUT_GROUP), Errors())
    elsewhere = {"attn_output/9": ("blk.9.attn_output.weight",)}
    with pytest.raises(SpecError, match="cover no group"):
        import_scores([a_manifest({O_PROJ: {INT4: 0.8}})], elsewhere, types_of(elsewhere), Errors())


def imported() -> Any:
    groups = OUTPUT_GROUP | {"ffn_down/0": ("blk.0.ffn_down.weight",), "token_embd": ("token_embd.weight",)}
    manifest = a_manifest({O_PROJ: {INT4: 0.8}, DOWN: {INT4: 0.4}})
    return import_scores([manifest], groups, types_of(groups), Errors())


def test_uncovered_groups_are_pinned() -> None:
    costs = complete_costs(imported(), {}, {"token_embd": "Q8_0"})
    assert costs["token_embd"] == {"Q8_0": 0.0}
    assert set(costs["attn_output/0"]) == set(TYPES)


def test_probes_of_an_uncovered_group_are_brought_to_the_unit_of_the_scores() -> None:
    probed = {"token_embd": {"Q4_0": 0.05, "Q8_0": 0.001}, "attn_output/0": {"Q4_0": 0.008, "Q5_0": 0.002}}
    costs = complete_costs(imported(), probed, {})
    assert costs["attn_output/0"]["Q4_0"] == pytest.approx(0.8)  # the score stays
    assert costs["token_embd"] == {"Q4_0": pytest.approx(5.0), "Q8_0": pytest.approx(0.1)}  # 0.01 nats per unit of score


def test_groups_that_are_neither_are_named() -> None:
    with pytest.raises(SpecError, match="token_embd: has no costs"):
        complete_costs(imported(), {}, {})


def test_probes_alone_cannot_be_compared_with_scores() -> None:
    with pytest.raises(SpecError, match="token_embd: its probes are in nats"):
        complete_costs(imported(), {"token_embd": {"Q4_0": 0.05}}, {})


def test_sampled_errors_are_scaled_to_the_whole_tensor_and_kept() -> None:
    rows = some_rows(5, (8, 128))
    asked: list[str] = []

    def rows_of(tensor: str) -> Rows:
        asked.append(tensor)
        return rows

    errors = SampledErrors(rows_of, lambda values, _: values + np.float32(0.5), {"t": rows.size * 10})
    assert errors.of_type("t", "Q4_0") == pytest.approx(0.25 * rows.size * 10, rel=1e-5)
    assert errors.of_format("t", QUANT_FORMATS[INT4]) == pytest.approx(10 * squared(rows, QUANT_FORMATS[INT4]))
    assert math.isclose(errors.of_type("t", "Q4_0"), errors.of_type("t", "Q4_0"))
    assert asked == ["t", "t"]
