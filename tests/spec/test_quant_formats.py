from __future__ import annotations

import pytest

from fewbits.core.errors import SpecError
from fewbits.records.quant_formats import QUANT_FORMATS, find_quant_format, stored_weight_bits


def test_a_misspelt_format_is_refused_with_near_names() -> None:
    with pytest.raises(SpecError, match=r"quant_pair\.format_name.*did you mean INT8_DEFAULT_CFG"):
        find_quant_format("int8_defalt_cfg", "quant_pair.format_name")


def test_activation_bits_never_make_weights_cheaper() -> None:
    assert find_quant_format("FP8_WEIGHT_INT4_ACT_CFG", "x").weight_bits == 8
    assert find_quant_format("FP8_WEIGHT_INT4_ACT_CFG", "x").activation_bits == 4


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 4 + 16 / 128),
        ("NVFP4_WEIGHT_ONLY_CFG", 4 + 8 / 16),
        ("W4A8_NVFP4_FP8_CFG", 4 + 8 / 32),
        ("MXFP4_WEIGHT_ONLY_CFG", 4 + 8 / 32),
        ("INT8_DEFAULT_CFG", 8),
        ("FP8_DEFAULT_CFG", 8),
    ],
)
def test_block_scales_count(name: str, bits: float) -> None:
    assert find_quant_format(name, "x").weight_bits == bits


def test_every_four_bit_float_needs_a_gpu_and_nothing_else_does() -> None:
    assert {fmt.name for fmt in QUANT_FORMATS.values() if fmt.needs_cuda} == {
        fmt.name for fmt in QUANT_FORMATS.values() if fmt.weight == "fp4"
    }


def test_exact_bits_count_whole_scales_of_short_blocks_rows_and_tensors() -> None:
    int4, int8, fp8 = (
        find_quant_format(f"{name}_CFG", "x") for name in ("INT4_BLOCKWISE_WEIGHT_ONLY", "INT8_DEFAULT", "FP8_DEFAULT")
    )
    assert stored_weight_bits(int4, 576) == 4 + 5 * 16 / 576
    assert stored_weight_bits(int4, 1024) == int4.weight_bits
    assert stored_weight_bits(int8, 2048) == 8 + 16 / 2048
    assert stored_weight_bits(fp8, 64) == 8
    assert stored_weight_bits(fp8, 64, rows=4) == 8 + 32 / 256
