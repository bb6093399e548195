from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES, NARROW_FALLBACK
from fewbits.records.schemes import ALIASES, SCHEMES, Scheme, find_scheme, scheme_for_ftype


@given(st.sampled_from(SCHEMES), st.randoms(use_true_random=False))
def test_every_tag_is_found_in_any_case(scheme: Scheme, random: Random) -> None:
    spelled = "".join(random.choice((letter.lower(), letter)) for letter in scheme.tag)
    assert find_scheme(f" {spelled.replace('_', random.choice('_-'))} ") == scheme


def test_tags_and_numbers_are_unique_and_round_trip() -> None:
    assert len({scheme.tag for scheme in SCHEMES}) == len({scheme.ftype for scheme in SCHEMES}) == len(SCHEMES)
    assert all(scheme_for_ftype(scheme.ftype) == scheme for scheme in SCHEMES)
    assert scheme_for_ftype(4) is None
    assert all(find_scheme(alias).tag == tag for alias, tag in ALIASES.items())


def test_numbers_agree_with_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    theirs = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value for kind in gguf.LlamaFileType}
    ours = {scheme.tag: scheme.ftype for scheme in SCHEMES}
    common = theirs.keys() & ours.keys()
    assert len(common) >= 33
    assert {tag: ours[tag] for tag in common} == {tag: theirs[tag] for tag in common}
    assert theirs.keys() - ours.keys() == {"GUESSED"}


def test_block_sizes_agree_with_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for kind, (weights, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":
            continue  # never stored in files; the package still counts its old float scales, ggml-common.h has halves
        ours = GGML_TYPES[kind.name]
        assert (ours.number, ours.weights, ours.bytes) == (kind.value, weights, size)


def test_every_scheme_has_a_known_tensor_type_that_is_not_larger_than_nominal() -> None:
    for scheme in SCHEMES:
        # IQ1..IQ3, TQ and the like mix in larger types; nothing averages below its own type by more than rounding
        assert GGML_TYPES[scheme.ggml_type].bits_per_weight <= scheme.nominal_bits_per_weight + 0.04, scheme.tag
    assert set(NARROW_FALLBACK) | set(NARROW_FALLBACK.values()) <= set(GGML_TYPES)


@pytest.mark.parametrize(("text", "near"), [("Q4_KM", "Q4_K_M"), ("q8", "Q8_0"), ("INT4", "known tags"), ("", "known tags")])
def test_unknown_tag_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(SpecError, match="unknown quant tag") as caught:
        find_scheme(text, "quants[1]")
    assert caught.value.problems[0].path == "quants[1]"
    assert near in caught.value.problems[0].hint
