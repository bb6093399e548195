from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewbits.core.errors import SpecError
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.ladder import (
    estimate_file_bytes,
    estimate_from_counts,
    fallback_tensors,
    refuse_unbuildable,
    warnings_for,
)
from fewbits.records.schemes import SCHEMES, find_scheme
from fewbits.records.variant import WarningCode

MakeGguf = Callable[..., Path]


def codes(source: GgufFile, variant: GgufFile, tag: str) -> list[WarningCode]:
    return [warning.code for warning in warnings_for(source, variant, find_scheme(tag))]


def test_f32_of_a_half_precision_source_is_lossless_by_construction(make_gguf: MakeGguf) -> None:
    half, full = read_gguf(make_gguf("h.gguf", kind="F16")), read_gguf(make_gguf("f.gguf"))
    assert codes(half, full, "F32") == [WarningCode.LOSSLESS_BY_CONSTRUCTION]
    assert codes(full, half, "F16") == []
    assert codes(full, full, "F32") == []


def test_the_same_grid_again_says_little(make_gguf: MakeGguf) -> None:
    # a Q4_K_M-labelled file whose weights are Q8_0, made into Q8_0: nearly nothing changes
    source = read_gguf(make_gguf("s.gguf", kind="Q8_0", file_type=15))
    variant = read_gguf(make_gguf("v.gguf", kind="Q8_0"))
    assert codes(source, variant, "Q8_0") == [WarningCode.SOURCE_ALREADY_QUANTIZED, WarningCode.LOSSLESS_BY_CONSTRUCTION]


def test_fallbacks_are_counted_from_the_file(make_gguf: MakeGguf) -> None:
    wide, narrow = read_gguf(make_gguf("w.gguf", kind="Q8_0")), read_gguf(make_gguf("n.gguf", kind="Q8_0", width=288))
    assert fallback_tensors(wide, find_scheme("Q8_0")) == 0
    assert fallback_tensors(narrow, find_scheme("Q8_0")) == 0
    assert fallback_tensors(narrow, find_scheme("Q4_K_M")) == 9
    assert fallback_tensors(narrow, find_scheme("Q4_0")) == 9, "Q8_0 instead of Q6_K, because rows of 288 do not fit"
    assert fallback_tensors(wide, find_scheme("Q4_0")) == 0
    assert fallback_tensors(narrow, find_scheme("F16")) == 0


def test_a_scheme_without_its_own_type_is_told(make_gguf: MakeGguf) -> None:
    source, variant = read_gguf(make_gguf("s.gguf")), read_gguf(make_gguf("v.gguf", kind="Q8_0"))
    (warning,) = warnings_for(source, variant, find_scheme("MXFP4_MOE"))
    assert warning.code is WarningCode.FALLBACK_TYPES
    assert "not one is MXFP4" in warning.message


def test_estimates_grow_with_nominal_bits(make_gguf: MakeGguf) -> None:
    source = read_gguf(make_gguf())
    buildable = sorted((s for s in SCHEMES if s.tag != "MXFP4_MOE"), key=lambda s: s.nominal_bits_per_weight)
    counts = [estimate_from_counts(source.weights, scheme) for scheme in buildable]
    assert counts == sorted(counts)
    assert estimate_file_bytes(source, find_scheme("F32")) == pytest.approx(source.bytes, abs=64)


def test_refusals_have_a_reason(make_gguf: MakeGguf) -> None:
    source = read_gguf(make_gguf())
    refused = {scheme.tag for scheme in SCHEMES if scheme.refusal}
    assert refused == {"NVFP4", "Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
    for scheme in SCHEMES:
        if scheme.refusal:
            with pytest.raises(SpecError, match="cannot be built"):
                refuse_unbuildable(source, scheme)
        else:
            refuse_unbuildable(source, scheme)
