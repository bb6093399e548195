"""Grafts, grains and the header they write; small files made by the format's own writer."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import gguf
import libgguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewbits.core.errors import BackendError, PrerequisiteError, SpecError, StoreError
from fewbits.quantizers.llamacpp import grains
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.gguf_layout import file_type_number
from fewbits.quantizers.llamacpp.graft import Replacement, write_graft
from fewbits.quantizers.llamacpp.grains import GrainCache, quantize_tensor, read_rows, row_slices
from fewbits.quantizers.llamacpp.recipe_build import build_recipe
from fewbits.quantizers.llamacpp.tensor_types import RECIPE_TYPES, is_quantizable, planned_file_bytes

MakeGguf = Callable[..., Path]
FLOATS = ("F32", "F16", "BF16")
WITHOUT_IMATRIX = [name for name in RECIPE_TYPES if name not in ("IQ3_XXS", "IQ2_S", "IQ2_XXS")]
NARROW = [name for name in WITHOUT_IMATRIX if GGML_TYPES[name].weights <= 32]


def silent(_: str) -> None:
    """No progress."""


@pytest.fixture
def grain_cache(tmp_path: Path) -> GrainCache:
    return GrainCache(tmp_path / "grains")


def data_of(file: GgufFile) -> dict[str, bytes]:
    whole = file.path.read_bytes()
    start = file.header.data_start
    return {tensor.name: whole[start + tensor.offset :][: tensor.bytes] for tensor in file.tensors}


def quantizable(file: GgufFile) -> list[str]:
    return [tensor.name for tensor in file.tensors if is_quantizable(tensor)]


def build(reference: Path, types: dict[str, str], output: Path, cache: GrainCache, imatrix: Path | None = None) -> GgufFile:
    build_recipe(reference, types, output, imatrix=imatrix, cache=cache, progress=silent)
    return read_gguf(output)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_only_what_the_recipe_names_changes(make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache, kind: str) -> None:
    reference = make_gguf(kind=kind)
    source = read_gguf(reference)
    types = {"token_embd.weight": "Q8_0", "blk.0.attn_v.weight": "Q5_K", "blk.0.ffn_down.weight": "IQ4_NL"}
    made = build(reference, types, tmp_path / "out.gguf", grain_cache)
    before, after = data_of(source), data_of(made)
    for tensor in made.tensors:
        if tensor.name not in types:
            assert (tensor.kind.name, after[tensor.name]) == (
                next(old.kind.name for old in source.tensors if old.name == tensor.name),
                before[tensor.name],
            )
            continue
        rows = np.frombuffer(before[tensor.name], "<f4" if kind == "F32" else "<f2").astype(np.float32).reshape(-1, 256)
        assert tensor.kind.name == types[tensor.name]
        assert after[tensor.name] == libgguf.quantize_rows(rows, tensor.kind.number).tobytes()
    metadata = dict(made.header.metadata)
    assert metadata.pop("general.quantization_version") == 2
    assert metadata == source.header.metadata
    assert made.bytes == planned_file_bytes(source, types)


def test_the_format_s_own_reader_reads_it(make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache) -> None:
    reference = make_gguf(width=96)
    names = quantizable(read_gguf(reference))
    types = dict(zip(names, ("Q4_0", "Q5_1", "Q8_0", "Q4_1", "Q5_0", "IQ4_NL", "BF16", "F16", "Q4_0"), strict=False))
    build(reference, types, tmp_path / "out.gguf", grain_cache)
    before = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(reference).tensors}
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        assert tensor.tensor_type.name == types.get(tensor.name, "F32")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        scale = np.abs(before[tensor.name]).max()
        assert np.abs(values - before[tensor.name]).max() <= 0.1 * scale


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), width=st.sampled_from([32, 96, 256]), kind=st.sampled_from(["F32", "F16"]))
def test_the_planned_size_is_the_real_one(
    make_gguf: MakeGguf, tmp_path: Path, data: st.DataObject, width: int, kind: str
) -> None:
    reference = make_gguf(f"size-{width}-{kind}.gguf", width=width, kind=kind, tokens=5)
    file = read_gguf(reference)
    allowed = WITHOUT_IMATRIX if width == 256 else NARROW
    types = data.draw(st.dictionaries(st.sampled_from(quantizable(file)), st.sampled_from(allowed)))
    with GrainCache() as cache:
        made = build(reference, types, tmp_path / "sized.gguf", cache)
    assert made.bytes == planned_file_bytes(file, types)
    assert made.weights == file.weights


def test_the_dominant_type_names_the_file(make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache) -> None:
    reference = make_gguf()
    names = quantizable(read_gguf(reference))
    assert build(reference, dict.fromkeys(names, "Q5_1"), tmp_path / "a.gguf", grain_cache).file_type == 9
    assert build(reference, dict.fromkeys(names, "Q4_K"), tmp_path / "b.gguf", grain_cache).file_type == 14
    assert build(reference, {}, tmp_path / "c.gguf", grain_cache).file_type == 0
    assert file_type_number("Q2_K") == 10
    assert file_type_number("I32") is None


def test_a_missing_file_type_is_added(tmp_path: Path, grain_cache: GrainCache) -> None:
    path = tmp_path / "bare.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made = build(path, {"token_embd.weight": "Q8_0"}, tmp_path / "out.gguf", grain_cache)
    assert (made.file_type, made.bytes) == (7, planned_file_bytes(read_gguf(path), {"token_embd.weight": "Q8_0"}))
    assert [tensor.offset % 128 for tensor in made.tensors] == [0, 0]


def test_stacked_experts_have_importance_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "experts.gguf"
    random = np.random.default_rng(1)
    values = random.standard_normal((3, 4, 256)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up_exps.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    importance = random.uniform(0.01, 9, 3 * 256).astype(np.float32)
    stream = io.BytesIO()
    quantize_tensor(file, file.tensors[0], GGML_TYPES["Q4_K"], importance, stream)
    expected = [libgguf.quantize_rows(values[n], 12, imatrix=importance[n * 256 : (n + 1) * 256]).tobytes() for n in range(3)]
    assert stream.getvalue() == b"".join(expected)
    assert expected[1] != libgguf.quantize_rows(values[1], 12, imatrix=importance[:256]).tobytes()


def test_slices_cover_every_row_once(monkeypatch: pytest.MonkeyPatch, make_gguf: MakeGguf) -> None:
    file = read_gguf(make_gguf())
    monkeypatch.setattr(grains, "_SLICE_WEIGHTS", 256 * 7)
    tensor = next(tensor for tensor in file.tensors if tensor.name == "token_embd.weight")
    slices = list(row_slices(tensor))
    assert [row for first, count in slices for row in range(first, first + count)] == list(range(32))
    stream = io.BytesIO()
    quantize_tensor(file, tensor, GGML_TYPES["Q6_K"], None, stream)
    assert stream.getvalue() == libgguf.quantize_rows(read_rows(file, tensor, 0, 32), 14).tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantized_rows_are_read_as_the_format_s_own_package_does(make_gguf: MakeGguf, kind: str) -> None:
    path = make_gguf(kind=kind)
    file = read_gguf(path)
    expected = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for tensor in file.tensors:
        if tensor.kind.is_quantized:
            theirs = expected[tensor.name]
            rows = read_rows(file, tensor, 1, 2)
            assert np.allclose(rows, gguf.quants.dequantize(theirs.data, theirs.tensor_type)[1:3], atol=1e-6)


def test_bfloat16_rows(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.25, 0.0, 3e38] * 8] * 2, np.float32)
    path = tmp_path / "bf16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("x.weight", packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert (read_rows(file, file.tensors[0], 0, 2) == gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.BF16)).all()


class TestRefusals:
    def test_every_tensor_that_does_not_fit_is_named(self, make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache) -> None:
        types = {
            "blk.7.attn_q.weight": "Q4_0",
            "blk.0.attn_q.weight": "Q4_K",
            "output_norm.weight": "Q8_0",
            "output.weight": "Q9_9",
        }
        with pytest.raises(SpecError) as caught:
            build(make_gguf(width=96), types, tmp_path / "out.gguf", grain_cache)
        text = str(caught.value)
        assert "4 problems" in text
        for part in ("no such tensor", "blocks of 256", "norms", "unsupported ggml type 'Q9_9'"):
            assert part in text
        assert not (tmp_path / "out.gguf").exists()

    def test_an_importance_matrix_is_asked_for(self, make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache) -> None:
        with pytest.raises(SpecError, match="needs an importance matrix"):
            build(make_gguf(), {"blk.0.ffn_up.weight": "IQ2_S"}, tmp_path / "out.gguf", grain_cache)

    def test_a_quantized_reference(self, make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache) -> None:
        with pytest.raises(SpecError, match="quantized in the reference already"):
            build(make_gguf(kind="Q8_0"), {"output.weight": "Q4_0"}, tmp_path / "out.gguf", grain_cache)

    def test_weights_that_are_not_finite(self, tmp_path: Path, grain_cache: GrainCache) -> None:
        path = tmp_path / "nan.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        values = np.ones((2, 32), np.float32)
        values[1, 3] = np.nan
        writer.add_tensor("output.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(BackendError, match=r"output\.weight holds weights that are not finite"):
            build(path, {"output.weight": "Q8_0"}, tmp_path / "out.gguf", grain_cache)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["grains", "nan.gguf"]
        assert not list((tmp_path / "grains").rglob("*.*"))

    def test_without_libgguf(
        self, make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(grains, "find_wheel", lambda *_: None)
        with pytest.raises(PrerequisiteError, match=r"fewbits\[llamacpp\]"):
            build(make_gguf(), {"output.weight": "Q4_0"}, tmp_path / "out.gguf", grain_cache)


class TestWholeOrNotAtAll:
    def graft(self, source: Path, output: Path, data: bytes) -> None:
        def write(stream: BinaryIO) -> None:
            stream.write(data)

        replacement = Replacement(GGML_TYPES["Q8_0"], write)
        write_graft(read_gguf(source), {"output.weight": replacement}, output)

    def test_data_of_another_size_leaves_an_earlier_file_as_it_was(self, make_gguf: MakeGguf, tmp_path: Path) -> None:
        source, output = make_gguf(), tmp_path / "made" / "out.gguf"
        self.graft(source, output, b"\0" * (32 * 256 // 32 * 34))
        before = output.read_bytes()
        with pytest.raises(BackendError, match=r"output\.weight has 5 bytes instead of 8704"):
            self.graft(source, output, b"short")
        assert output.read_bytes() == before
        assert [path.name for path in output.parent.iterdir()] == ["out.gguf"]

    def test_a_source_that_shrinks_is_noticed(self, make_gguf: MakeGguf, tmp_path: Path) -> None:
        source = make_gguf()
        file = read_gguf(source)
        os.truncate(source, file.bytes - 5000)
        with pytest.raises(StoreError, match="became shorter"):
            write_graft(file, {}, tmp_path / "out.gguf")
        assert not (tmp_path / "out.gguf").exists()

    def test_plain_copying_gives_the_same_file(
        self, make_gguf: MakeGguf, tmp_path: Path, grain_cache: GrainCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = make_gguf()
        build(source, {"output.weight": "Q4_0"}, tmp_path / "kernel.gguf", grain_cache)

        def other_file_system(*_: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", other_file_system)
        build(source, {"output.weight": "Q4_0"}, tmp_path / "plain.gguf", grain_cache)
        assert (tmp_path / "kernel.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()

    def test_a_full_disk_is_told(self, make_gguf: MakeGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "copy_file_range", full)
        with pytest.raises(StoreError, match="disk is full"):
            write_graft(read_gguf(make_gguf()), {}, tmp_path / "out.gguf")
        assert not list(tmp_path.glob("*.part"))


class TestGrains:
    def grain(self, cache: GrainCache, path: Path, tensor: str = "output.weight", kind: str = "Q4_0") -> bytes:
        file = read_gguf(path)
        found = next(row for row in file.tensors if row.name == tensor)
        with cache.open(file, found, GGML_TYPES[kind]) as stream:
            return stream.read()

    def files(self, cache: GrainCache) -> list[Path]:
        return sorted(cache.folder.rglob("*.grain"))

    def test_a_grain_is_made_once_per_source_tensor_and_type(
        self, make_gguf: MakeGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = GrainCache(tmp_path / "grains")
        first, other = make_gguf(), make_gguf("other.gguf", seed=1)
        before = self.grain(cache, first)
        monkeypatch.setattr(grains, "quantize_tensor", pytest.fail)
        assert self.grain(GrainCache(tmp_path / "grains"), first) == before
        monkeypatch.undo()
        assert self.grain(cache, other) != before
        self.grain(cache, first, kind="Q5_0")
        self.grain(cache, first, tensor="token_embd.weight")
        assert len(self.files(cache)) == 4

    def test_a_grain_of_the_wrong_size_is_made_again(self, make_gguf: MakeGguf, tmp_path: Path) -> None:
        cache, path = GrainCache(tmp_path / "grains"), make_gguf()
        before = self.grain(cache, path)
        self.files(cache)[0].write_bytes(b"half")
        assert self.grain(cache, path) == before

    def test_the_longest_unused_grains_go_first(self, make_gguf: MakeGguf, tmp_path: Path) -> None:
        size = 32 * 256 // 32 * 18
        cache, path = GrainCache(tmp_path / "grains", limit_bytes=2 * size + 1), make_gguf()
        self.grain(cache, path, "output.weight")
        first = self.files(cache)
        self.grain(cache, path, "token_embd.weight")
        self.grain(cache, path, "output.weight")  # used again
        self.grain(cache, path, "output.weight", "IQ4_NL")
        kept = self.files(cache)
        assert len(kept) == 2
        assert first[0] in kept

    def test_a_grain_beyond_the_limit_is_still_given(self, make_gguf: MakeGguf, tmp_path: Path) -> None:
        cache = GrainCache(tmp_path / "grains", limit_bytes=1)
        assert len(self.grain(cache, make_gguf())) == 32 * 256 // 32 * 18
        assert self.files(cache) == []

    def test_a_folder_of_its_own_ends_with_it(self, make_gguf: MakeGguf) -> None:
        with GrainCache() as cache:
            self.grain(cache, make_gguf())
            folder = cache.folder
            assert folder.is_dir()
        assert not folder.exists()


def test_importance_makes_another_grain(make_gguf: MakeGguf, tmp_path: Path) -> None:
    file = read_gguf(make_gguf())
    tensor = next(row for row in file.tensors if row.name == "blk.0.ffn_up.weight")
    cache = GrainCache(tmp_path / "grains")
    importance = np.random.default_rng(0).uniform(0.01, 20, 256).astype(np.float32)
    with (
        cache.open(file, tensor, GGML_TYPES["Q4_K"]) as plain,
        cache.open(file, tensor, GGML_TYPES["Q4_K"], importance) as weighted,
    ):
        assert plain.read() != weighted.read()
