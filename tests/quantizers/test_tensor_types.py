"""Groups of tensors, what they could be, and llama-quantize's way of saying it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.gguf_scan import GgufHeader, GgufTensor
from fewbits.quantizers.llamacpp.tensor_types import (
    DEFAULT_TYPES,
    TensorGroup,
    candidate_types,
    complete_types,
    group_bytes,
    group_tensors,
    is_quantizable,
    tensor_type_flags,
    tensor_type_lines,
)
from fewbits.records.recipe import ExcludedOption

MakeGguf = Callable[..., Path]


def tensor(name: str, *shape: int, kind: str = "F16") -> GgufTensor:
    return GgufTensor(name, GGML_TYPES[kind], shape or (64, 8), 0)


def file_of(*tensors: GgufTensor) -> GgufFile:
    return GgufFile(path=Path("model.gguf"), bytes=1, header=GgufHeader(3, {}, tensors, 0))


def layered(layers: int, *kinds: str) -> GgufFile:
    rows = [tensor(f"blk.{layer}.{kind}.weight") for layer in range(layers) for kind in kinds]
    return file_of(tensor("token_embd.weight"), *rows, tensor("output.weight"))


def group_of(*tensors: GgufTensor, layer: int | None = 0) -> TensorGroup:
    return TensorGroup("g", "g", layer, layer, tensors)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (tensor("blk.0.attn_q.weight"), True),
        (tensor("token_embd.weight"), True),
        (tensor("blk.0.ffn_up_exps.weight", 64, 8, 4), True),
        (tensor("blk.0.attn_q.weight", kind="Q4_1"), True),
        (tensor("blk.0.attn_norm.weight", 64), False),
        (tensor("blk.0.attn_q.weight", 64, 1, 1), False),
        (tensor("blk.0.attn_q.bias", 64, 8), False),
        (tensor("blk.0.attn_q_norm.weight", 64, 8), False),
        (tensor("blk.0.ffn_gate_inp.weight", 64, 8), False),
        (tensor("blk.0.ssm_conv1d.weight", 64, 8), False),
        (tensor("position_embd.weight", 64, 8), False),
        (tensor("v.position_embd.weight", 64, 8), False),
        (tensor("ids.weight", 64, 8, kind="I32"), False),
    ],
)
def test_what_llama_cpp_leaves_alone_stays(row: GgufTensor, expected: bool) -> None:
    assert is_quantizable(row) is expected


def test_the_tensors_that_llama_quantize_quantized_are_those(make_gguf: MakeGguf) -> None:
    file = read_gguf(make_gguf(kind="Q8_0"))
    assert [is_quantizable(row) for row in file.tensors] == [row.kind.is_quantized for row in file.tensors]


def test_groups_are_kinds_in_bands_and_the_rest_alone() -> None:
    groups = group_tensors(layered(30, "attn_v", "ffn_down"), 5)
    assert [group.name for group in groups[:4]] == ["token_embd", "output", "attn_v/0-5", "attn_v/6-11"]
    assert [group.name for group in groups[-2:]] == ["ffn_down/18-23", "ffn_down/24-29"]
    assert (groups[2].kind, groups[2].first_layer, groups[2].last_layer, groups[2].weights) == ("attn_v", 0, 5, 6 * 512)
    assert (groups[0].kind, groups[0].first_layer) == ("token_embd", None)
    alone = group_tensors(layered(3, "attn_v"), 0)
    assert [group.name for group in alone] == ["token_embd", "output", "attn_v/0", "attn_v/1", "attn_v/2"]


@given(layers=st.integers(1, 60), bands=st.integers(0, 70))
def test_every_tensor_is_in_exactly_one_group_and_bands_are_even(layers: int, bands: int) -> None:
    file = layered(layers, "attn_v", "ffn_up")
    groups = group_tensors(file, bands)
    names = [row.name for group in groups for row in group.tensors]
    assert sorted(names) == sorted(row.name for row in file.tensors)
    assert len({group.name for group in groups}) == len(groups)
    sizes = {len(group.tensors) for group in groups if group.first_layer is not None}
    assert max(sizes) - min(sizes) <= 1
    for group in groups:
        if group.first_layer is not None and group.last_layer is not None:
            held = [int(row.name.split(".")[1]) for row in group.tensors]
            assert held == list(range(group.first_layer, group.last_layer + 1))
    expected = min(bands, layers) or layers
    assert len(groups) == 2 + 2 * expected


def test_stacks_of_an_encoder_and_a_decoder_are_apart() -> None:
    file = file_of(*(tensor(f"{stack}.blk.{layer}.attn_q.weight") for stack in ("enc", "dec") for layer in range(4)))
    assert [group.name for group in group_tensors(file, 2)] == [
        "enc.attn_q/0-1",
        "enc.attn_q/2-3",
        "dec.attn_q/0-1",
        "dec.attn_q/2-3",
    ]


def test_a_model_without_matrices_and_negative_bands_are_refused() -> None:
    with pytest.raises(SpecError, match="no tensor that can be quantized"):
        group_tensors(file_of(tensor("a.bias", 64)), 2)
    with pytest.raises(SpecError, match="negative"):
        group_tensors(layered(2, "attn_q"), -1)


class TestCandidates:
    def rows(self, group: TensorGroup, **changes: object) -> dict[str, tuple[int, ExcludedOption | None, str]]:
        options = {"has_imatrix": False, "source_types": frozenset(), "wanted": DEFAULT_TYPES} | changes
        found = candidate_types(group, **options)  # type: ignore[arg-type]
        assert [row[1] for row in found] == sorted(row[1] for row in found)
        return {row[0]: row[1:] for row in found}

    def test_bytes_are_those_of_the_blocks(self) -> None:
        group = group_of(tensor("blk.0.a.weight", 512, 10), tensor("blk.1.a.weight", 512, 10))
        rows = self.rows(group)
        assert rows["Q4_0"] == (2 * 10 * 16 * 18, None, "")
        assert rows["Q6_K"][0] == 2 * 10 * 2 * 210 == group_bytes(group, "Q6_K")
        assert len(rows) == len(DEFAULT_TYPES)

    def test_rows_must_be_whole_blocks_in_every_tensor(self) -> None:
        group = group_of(tensor("blk.0.a.weight", 512, 10), tensor("blk.0.b.weight", 576, 10))
        assert group.row_width == 64
        excluded, detail = self.rows(group)["Q4_K"][1:]
        assert excluded is ExcludedOption.ROW_WIDTH
        assert "64" in detail
        assert "256" in detail
        assert self.rows(group)["Q5_1"][1] is None

    def test_importance_is_needed_and_covers_layers_only(self) -> None:
        wanted = ("IQ2_S", "IQ3_S", "Q2_K")
        inside, outside = group_of(tensor("x", 256, 2)), group_of(tensor("token_embd.weight", 256, 2), layer=None)
        assert self.rows(inside, wanted=wanted)["IQ2_S"][1] is ExcludedOption.NEEDS_IMATRIX
        assert self.rows(inside, wanted=wanted, has_imatrix=True)["IQ2_S"][1] is None
        assert self.rows(outside, wanted=wanted, has_imatrix=True)["IQ2_S"][1] is ExcludedOption.NEEDS_IMATRIX
        assert self.rows(inside, wanted=wanted)["IQ3_S"][1] is None

    def test_the_source_s_grid_is_no_evidence(self) -> None:
        rows = self.rows(group_of(tensor("x", 256, 2)), source_types=frozenset({"Q4_1"}))
        assert rows["Q4_1"][1] is ExcludedOption.SOURCE_GRID
        assert "lossless by construction" in rows["Q4_1"][2]
        assert rows["Q4_0"][1] is None

    def test_unknown_types_are_all_named(self) -> None:
        with pytest.raises(SpecError, match=r"(?s)2 problems.*Q4_KK.*did you mean.*Q7"):
            self.rows(group_of(tensor("x", 256, 2)), wanted=("Q4_KK", "Q4_K", "Q7"))


class TestToolSyntax:
    def test_lines_are_anchored_patterns(self) -> None:
        types = {"blk.1.attn_v.weight": "Q8_0", "token_embd.weight": "Q5_1", "blk.0.ffn_up.weight": "IQ4_NL"}
        assert tensor_type_lines(types) == "^blk\\.0\\.ffn_up\\.weight$=iq4_nl\n^blk\\.1\\.attn_v\\.weight$=q8_0\n"

    def test_embedding_and_output_have_flags(self) -> None:
        tied = tensor_type_flags({"token_embd.weight": "Q5_1"})
        assert tied == ("--token-embedding-type", "q5_1", "--output-tensor-type", "q5_1")
        both = tensor_type_flags({"token_embd.weight": "Q5_1", "output.weight": "Q6_K"})
        assert both == ("--token-embedding-type", "q5_1", "--output-tensor-type", "q6_k")
        assert tensor_type_flags({"output.weight": "Q6_K"}) == ("--output-tensor-type", "q6_k")
        assert tensor_type_flags({}) == ()

    def test_tensors_that_are_not_named_keep_their_type(self) -> None:
        file = file_of(tensor("token_embd.weight"), tensor("blk.0.attn_q.weight", kind="BF16"), tensor("blk.0.x_norm.weight", 64))
        assert complete_types(file, {"token_embd.weight": "Q8_0"}) == {
            "token_embd.weight": "Q8_0",
            "blk.0.attn_q.weight": "BF16",
        }
