"""Recipe tags as variants; and, with real tools, the same file as llama-quantize makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from fewbits.core.engines import find_tool
from fewbits.core.errors import SpecError
from fewbits.core.files import sha256_file
from fewbits.core.process import run_command
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.grains import GrainCache
from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
from fewbits.quantizers.llamacpp.recipe_build import build_recipe
from fewbits.quantizers.llamacpp.tensor_types import (
    complete_types,
    is_quantizable,
    tensor_type_flags,
    tensor_type_lines,
)
from fewbits.records.recipe import Recipe
from fewbits.records.variant import Variant, WarningCode
from fewbits.store.artifacts import ArtifactCache
from fewbits.store.recipes import RecipeShelf

MakeGguf = Callable[..., Path]
MakeProgram = Callable[[str, str], Path]
NO_ENGINE = {"PATH": "", "FEWBITS_CACHE": "/nowhere"}
TYPES = {"token_embd.weight": "Q8_0", "output.weight": "Q6_K", "blk.0.ffn_down.weight": "Q4_0", "blk.0.attn_v.weight": "Q8_0"}


@pytest.fixture
def shelf(tmp_path: Path) -> RecipeShelf:
    return RecipeShelf(tmp_path / "cache")


def path_of(variant: Variant) -> Path:
    assert variant.path is not None
    return variant.path


def data_of(file: GgufFile) -> dict[str, tuple[str, bytes]]:
    whole = file.path.read_bytes()
    start = file.header.data_start
    return {row.name: (row.kind.name, whole[start + row.offset :][: row.bytes]) for row in file.tensors}


def test_a_float_source_needs_no_engine(
    cache: ArtifactCache, shelf: RecipeShelf, make_gguf: MakeGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_path = make_gguf()
    tag = shelf.put(Recipe(source_sha256=sha256_file(source_path), tensor_types=TYPES), None)
    quantizer = LlamaCppQuantizer(cache, environ=NO_ENGINE, recipes=shelf)
    source = quantizer.resolve(str(source_path))
    quantizer.check(source, tag.upper())
    said: list[str] = []
    variant = quantizer.ensure(source, tag, said.append)
    artifact = variant.artifact
    assert artifact.bytes == quantizer.estimate_bytes(source, tag) == path_of(variant).stat().st_size
    assert (artifact.scheme, artifact.tool, artifact.built, artifact.warnings) == (tag, "libgguf", True, ())
    assert artifact.tool_version.startswith("libgguf ")
    assert artifact.sha256 == sha256_file(path_of(variant))
    counts = {row.ggml_type: row.tensors for row in artifact.census}
    assert (counts["Q8_0"], counts["Q6_K"], counts["Q4_0"]) == (2, 1, 1)
    assert artifact.recipe == (
        f"libgguf: tensors of {{source}} as {tag} says (1 x Q4_0, 1 x Q6_K, 2 x Q8_0), grafted into {{output}}",
    )
    assert any("building recipe-" in line for line in said)
    monkeypatch.setattr("fewbits.quantizers.llamacpp.quantizer.build_recipe", pytest.fail)
    assert quantizer.ensure(source, tag, pytest.fail) == variant


def test_a_quantized_source_goes_through_its_reference(
    cache: ArtifactCache, shelf: RecipeShelf, make_gguf: MakeGguf, make_program: MakeProgram, tmp_path: Path
) -> None:
    reference = make_gguf("prepared.gguf", kind="F16")
    source_path = make_gguf(kind="Q4_1")
    copies = f"import sys, shutil\nif sys.argv[1:] != ['--version']:\n    shutil.copy({str(reference)!r}, sys.argv[-3])\n"
    make_program("llama-quantize", copies)
    environ = {"PATH": "", "FEWBITS_LLAMACPP_DIR": str(tmp_path / "bin")}
    tag = shelf.put(Recipe(source_sha256=sha256_file(reference), tensor_types=TYPES), None)
    quantizer = LlamaCppQuantizer(cache, threads=1, environ=environ, recipes=shelf)
    source = quantizer.resolve(str(source_path))
    quantizer.check(source, tag)
    variant = quantizer.ensure(source, tag, lambda _: None)
    assert variant.artifact.recipe[0] == "llama-quantize --allow-requantize {source} {reference} F16 1"
    assert variant.artifact.source_sha256 == source.digest
    assert {warning.code for warning in variant.artifact.warnings} == {WarningCode.SOURCE_ALREADY_QUANTIZED}
    assert abs(quantizer.estimate_bytes(source, tag) - path_of(variant).stat().st_size) < 100


class TestRefusals:
    def test_without_a_shelf_and_without_the_recipe(self, cache: ArtifactCache, shelf: RecipeShelf, make_gguf: MakeGguf) -> None:
        source = LlamaCppQuantizer(cache).resolve(str(make_gguf()))
        with pytest.raises(SpecError, match="cannot be looked up here"):
            LlamaCppQuantizer(cache).check(source, "recipe-000000000000")
        with pytest.raises(SpecError, match="no such recipe"):
            LlamaCppQuantizer(cache, recipes=shelf).check(source, "recipe-000000000000")

    def test_another_file_s_recipe(self, cache: ArtifactCache, shelf: RecipeShelf, make_gguf: MakeGguf) -> None:
        tag = shelf.put(Recipe(source_sha256="0" * 64, tensor_types=TYPES), None)
        quantizer = LlamaCppQuantizer(cache, environ=NO_ENGINE, recipes=shelf)
        source = quantizer.resolve(str(make_gguf()))
        for attempt in (lambda: quantizer.check(source, tag), lambda: quantizer.ensure(source, tag, print)):
            with pytest.raises(SpecError, match="made for the weights of another file"):
                attempt()

    def test_tensors_that_do_not_fit_are_counted(self, cache: ArtifactCache, shelf: RecipeShelf, make_gguf: MakeGguf) -> None:
        path = make_gguf()
        types = {f"blk.{number}.attn_q.weight": "Q4_0" for number in range(1, 9)}
        tag = shelf.put(Recipe(source_sha256=sha256_file(path), tensor_types=types), None)
        quantizer = LlamaCppQuantizer(cache, environ=NO_ENGINE, recipes=shelf)
        with pytest.raises(SpecError, match="3 more tensors do not fit") as caught:
            quantizer.check(quantizer.resolve(str(path)), tag)
        assert len(caught.value.problems) == 6

    def test_a_model_that_was_not_fetched_can_be_planned(self, cache: ArtifactCache, shelf: RecipeShelf) -> None:
        tag = shelf.put(Recipe(source_sha256="0" * 64, tensor_types={"output.weight": "Q8_0", "x": "Q4_0"}), None)
        quantizer = LlamaCppQuantizer(cache, environ=NO_ENGINE, recipes=shelf)
        source = quantizer.locate("smollm2-135m")
        quantizer.check(source, tag)
        assert quantizer.estimate_bytes(source, tag) == pytest.approx(134_515_008 * 34 / 32, rel=0.01)


@pytest.mark.real
class TestSameBytesAsLlamaQuantize:
    """With the user's or fewbits' own llama-quantize; skipped where there is only the wheel, which takes no tensor types."""

    @pytest.fixture
    def tool(self) -> Path:
        found = find_tool("llama-quantize")
        if found is None or found.kind != "binary":
            pytest.skip("no llama-quantize program here: the wheel cannot take tensor types")
        return found.path

    def both(
        self, tool: Path, reference: Path, types: dict[str, str], folder: Path, imatrix: Path | None = None
    ) -> tuple[GgufFile, GgufFile]:
        """Build the recipe by both ways."""
        complete = complete_types(read_gguf(reference), types)
        lines = folder / "types.txt"
        lines.write_text(tensor_type_lines(complete))
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        flags = ("--tensor-type-file", lines, *tensor_type_flags(complete), *(("--imatrix", imatrix) if imatrix else ()))
        result = run_command((tool, *flags, reference, theirs, "Q8_0", "1"), timeout_seconds=60)
        assert result.ok, result.tail
        with GrainCache() as cache:
            build_recipe(reference, types, ours, imatrix=imatrix, cache=cache, progress=lambda _: None)
        return read_gguf(ours), read_gguf(theirs)

    @pytest.mark.parametrize("kind", ["F16", "F32"])
    def test_tiny_model(self, tool: Path, make_gguf: MakeGguf, tmp_path: Path, kind: str) -> None:
        reference = make_gguf(kind=kind)
        names = [row.name for row in read_gguf(reference).tensors if is_quantizable(row)]
        rounds = (
            ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K"),
            ("Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "Q4_0", "BF16", "Q8_0"),
        )
        for number, types in enumerate(rounds):
            # the ninth tensor is not named, so it stays
            folder = tmp_path / str(number)
            folder.mkdir()
            ours, theirs = self.both(tool, reference, dict(zip(names, types, strict=False)), folder)
            assert data_of(ours) == data_of(theirs)

    def test_with_an_importance_matrix(self, tool: Path, make_gguf: MakeGguf, tmp_path: Path) -> None:
        reference = make_gguf()
        names = [row.name for row in read_gguf(reference).tensors if is_quantizable(row) and row.name.startswith("blk.")]
        matrix = tmp_path / "imatrix.gguf"
        writer = gguf.GGUFWriter(matrix, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["none"])
        writer.add_uint32("imatrix.chunk_count", 3)
        writer.add_uint32("imatrix.chunk_size", 512)
        random = np.random.default_rng(3)
        for name in names:
            writer.add_tensor(f"{name}.in_sum2", random.uniform(0.01, 50, (1, 256)).astype(np.float32))
            writer.add_tensor(f"{name}.counts", np.full((1, 1), 3.0, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        types = dict(zip(names, ("IQ3_XXS", "IQ2_S", "IQ2_XXS", "Q2_K", "IQ4_NL", "Q4_K", "Q4_0"), strict=True))
        ours, theirs = self.both(tool, reference, types, tmp_path, matrix)
        assert data_of(ours) == data_of(theirs)
        with GrainCache() as cache:
            build_recipe(reference, {names[3]: "Q2_K"}, tmp_path / "x.gguf", imatrix=None, cache=cache, progress=lambda _: None)
        assert data_of(read_gguf(tmp_path / "x.gguf"))[names[3]] != data_of(ours)[names[3]]

    def test_smollm2(self, tool: Path, tmp_path: Path) -> None:
        from fewbits.core.engines import cache_root
        from fewbits.quantizers.registry import create_quantizer

        quantizer = create_quantizer("llamacpp", ArtifactCache(cache_root()), threads=2)
        source = quantizer.locate("smollm2-135m")
        if source.path is None:
            pytest.skip("the packaged model was not fetched")
        reference = path_of(quantizer.ensure(source, "F16", lambda _: None))
        types = {row.name: "Q4_0" for row in read_gguf(reference).tensors if is_quantizable(row)}
        types |= {"token_embd.weight": "Q5_1"} | {f"blk.{n}.ffn_down.weight": "Q5_K" for n in range(10)}
        types |= {f"blk.{n}.attn_v.weight": "Q8_0" for n in range(30)}
        ours, theirs = self.both(tool, reference, types, tmp_path)
        assert data_of(ours) == data_of(theirs)
        shutil.rmtree(tmp_path)
