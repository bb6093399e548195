from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.records.quant_formats import QUANT_FORMATS, find_quant_format
from fewbits.spec.quant_overlay import check_budget, check_overlay, merge_overlay, overlaid_format

W, A = "*weight_quantizer", "*input_quantizer"
PER_TOKEN = {"type": "dynamic", "block_sizes": {-1: None}}


def problems(name: str, overrides: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in check_overlay(find_quant_format(name, "x"), overrides, "quant_granularity")]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("INT8_DEFAULT_CFG", {}),
        ("INT8_DEFAULT_CFG", {W: {"axis": None}}),
        ("INT8_DEFAULT_CFG", {W: {"axis": 1}, A: PER_TOKEN}),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {"-1": 64}}}),
        ("FP8_DEFAULT_CFG", {A: {"type": "static", "axis": None}}),
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", {W: {"axis": 0}}),
        ("W4A8_NVFP4_FP8_CFG", {A: PER_TOKEN}),
    ],
)
def test_overlays_that_make_sense_have_no_problem(name: str, overrides: dict[str, Any]) -> None:
    assert problems(name, overrides) == []


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("INT8_DEFAULT_CFG", {"*weights": {"axis": 0}}, "unsupported key"),
        ("INT8_DEFAULT_CFG", {"default": {"axis": 0}}, "`default` has no effect"),
        ("INT8_DEFAULT_CFG", {W: 3}, "expected a table"),
        ("INT8_DEFAULT_CFG", {W: {}}, "changes nothing"),
        ("INT8_DEFAULT_CFG", {W: {"axes": 0}}, "did you mean 'axis'"),
        ("INT8_DEFAULT_CFG", {W: {"num_bits": 4}}, "belongs to the format"),
        ("INT8_DEFAULT_CFG", {W: {"axis": 0, "block_sizes": {-1: 64}}}, "exclude each other"),
        ("INT8_DEFAULT_CFG", {W: {"axis": 2}}, "unsupported axis"),
        ("INT8_DEFAULT_CFG", {W: {"axis": True}}, "unsupported axis"),
        ("INT8_DEFAULT_CFG", {W: {"type": "dynamic"}}, "their scales are static"),
        ("INT8_DEFAULT_CFG", {A: {"type": "sometimes"}}, "unknown type"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {-1: 0}}}, "unsupported block size"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {-1: "64"}}}, "unsupported block size"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {-1: None}}}, "unsupported block size"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {0: 64}}}, "last axis"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {"x": 64}}}, "no axis"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": {-1: 64, "scale_bits": 8}}}, "belongs to the format"),
        ("INT8_DEFAULT_CFG", {W: {"block_sizes": None}}, "expected a table"),
        ("INT8_DEFAULT_CFG", {A: {"block_sizes": {-1: 64}}}, "not supported on activations"),
        ("INT8_DEFAULT_CFG", {A: {"block_sizes": {-1: None}}}, "add `type: dynamic`"),
        ("INT8_DEFAULT_CFG", {A: {"axis": 0}}, "unsupported axis"),
        ("NVFP4_WEIGHT_ONLY_CFG", {W: {"axis": 0}}, "scaled in blocks of 16 by definition"),
        ("MXFP4_WEIGHT_ONLY_CFG", {W: {"block_sizes": {-1: 64}}}, "scaled in blocks of 32 by definition"),
        ("INT8_WEIGHT_ONLY_CFG", {A: PER_TOKEN}, "does not quantize activations"),
    ],
)
def test_overlays_that_cannot_work_are_refused_at_their_place(name: str, overrides: dict[str, Any], words: str) -> None:
    found = problems(name, overrides)
    assert len(found) == 1, found
    assert words in found[0]
    assert found[0].startswith("quant_granularity.")


def test_every_problem_is_reported_at_once() -> None:
    assert len(problems("INT8_WEIGHT_ONLY_CFG", {W: {"axis": 7, "axes": 1}, A: {"axis": None}, "other": {}})) == 4


BASE: list[dict[str, Any]] = [
    {"quantizer_name": "*", "enable": False},
    {"quantizer_name": W, "cfg": {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}},
    {"quantizer_name": A, "cfg": {"num_bits": 8, "axis": None}},
    {"quantizer_name": "*lm_head*", "enable": False},
]


def test_blocks_are_merged_key_by_key_and_an_axis_replaces_them() -> None:
    merged = merge_overlay(BASE, {W: {"block_sizes": {"-1": 64}}})
    assert merged[1]["cfg"] == {"num_bits": 4, "block_sizes": {-1: 64, "type": "static"}}
    assert merge_overlay(BASE, {W: {"axis": 0}})[1]["cfg"] == {"num_bits": 4, "axis": 0}
    assert merge_overlay(BASE, {A: PER_TOKEN})[2]["cfg"] == {"num_bits": 8, "type": "dynamic", "block_sizes": {-1: None}}


def test_every_part_of_a_sequence_of_quantizers_gets_the_overlay() -> None:
    base = [{"quantizer_name": W, "cfg": [{"num_bits": 4, "axis": 0}, {"num_bits": 8}]}]
    assert merge_overlay(base, {W: {"axis": 1}})[0]["cfg"] == [{"num_bits": 4, "axis": 1}, {"num_bits": 8, "axis": 1}]


def test_an_overlay_without_a_rule_to_go_into_is_refused() -> None:
    with pytest.raises(SpecError, match="no such quantizer"):
        merge_overlay([{"quantizer_name": A, "enable": False}], {A: PER_TOKEN})


OVERLAYS = st.sampled_from(
    [{}, {W: {"axis": 0}}, {W: {"block_sizes": {-1: 32}}}, {A: PER_TOKEN}, {W: {"axis": None}, A: PER_TOKEN}]
)


@given(OVERLAYS)
def test_the_base_is_never_changed_and_shares_nothing_with_the_result(overrides: dict[str, Any]) -> None:
    base = copy.deepcopy(BASE)
    merged = merge_overlay(base, overrides)
    for rule in merged:
        rule.setdefault("cfg", {})["num_bits"] = 99
        rule["cfg"].setdefault("block_sizes", {})["x"] = 1
    assert base == BASE


@given(st.sampled_from(sorted(QUANT_FORMATS)), OVERLAYS)
def test_an_overlay_changes_scales_and_never_the_number_format(name: str, overrides: dict[str, Any]) -> None:
    fmt = find_quant_format(name, "x")
    if check_overlay(fmt, overrides, "x"):
        return
    after = overlaid_format(fmt, overrides)
    assert (after.weight, after.activation, after.activation_bits) == (fmt.weight, fmt.activation, fmt.activation_bits)
    own = {"int8": 8, "fp8": 8, "int4": 4, "fp4": 4}[fmt.weight]
    assert after.weight_bits == own + (after.scale_bits / after.block if after.block else 0)


def test_a_budget_below_the_format_names_the_smallest_that_works() -> None:
    int8 = find_quant_format("INT8_DEFAULT_CFG", "x")
    assert check_budget(int8, {}, 8.0, "autoquant.effective_bits") == []
    (problem,) = check_budget(int8, {W: {"block_sizes": {-1: 64}}}, 8.0, "autoquant.effective_bits")
    assert "8.25" in str(problem)
    assert check_budget(int8, {W: {"block_sizes": {-1: 64}}}, 8.25, "autoquant.effective_bits") == []
