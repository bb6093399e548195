from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewbits.core.engines import find_tool
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError, StoreError
from fewbits.core.files import sha256_file
from fewbits.quantizers.llamacpp.engine import run_quantize
from fewbits.quantizers.llamacpp.gguf_file import read_gguf
from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
from fewbits.quantizers.registry import create_quantizer
from fewbits.records.schemes import find_scheme
from fewbits.records.variant import ModelKind, Variant, WarningCode
from fewbits.store.artifacts import ArtifactCache

MakeGguf = Callable[..., Path]
MakeProgram = Callable[[str, str], Path]

WHEEL_ONLY = {"PATH": ""}

# A stand-in for llama-quantize: copies a prepared file (made by the real format's writer) to where it is told to.
FAKE = """
import os, shutil, sys
if sys.argv[1:] == ["--version"]:
    print("version: 77 (fake)")
    raise SystemExit
words = [word for word in sys.argv[1:] if not word.startswith("--")]
with open(os.path.join(HOME, "calls.txt"), "a") as log:
    print(*sys.argv[1:], file=log)
if os.path.exists(os.path.join(HOME, "gate")):
    with open(words[1], "wb") as out:
        out.write(b"GGUF half")
    with open(os.path.join(HOME, "gate"), "w") as gate:
        gate.write(str(os.getpid()))
    import signal
    signal.pause()
prepared = os.path.join(HOME, words[2] + ".gguf")
if not os.path.exists(prepared):
    with open(words[1], "wb") as out:
        out.write(b"GGUF half")
    print("main: failed to quantize model: the sky fell", file=sys.stderr)
    raise SystemExit(1)
shutil.copy(prepared, words[1])
"""


@pytest.fixture
def fake(make_program: MakeProgram, tmp_path: Path) -> dict[str, str]:
    """Return the environment in which the stand-in is the engine."""
    make_program("llama-quantize", f"HOME = {str(tmp_path)!r}\n{FAKE}")
    return {"PATH": "", "FEWBITS_LLAMACPP_DIR": str(tmp_path / "bin")}


def path_of(variant: Variant) -> Path:
    assert variant.path is not None
    return variant.path


def calls(tmp_path: Path) -> list[str]:
    log = tmp_path / "calls.txt"
    return log.read_text().splitlines() if log.exists() else []


def codes(variant: Variant) -> set[WarningCode]:
    return {warning.code for warning in variant.artifact.warnings}


def artifact_files(cache: ArtifactCache) -> list[str]:
    return sorted(path.name for path in (cache.root / "artifacts").rglob("*") if path.is_file())


def test_own_file_is_the_variant(cache: ArtifactCache, make_gguf: MakeGguf) -> None:
    path = make_gguf(kind="F16")
    quantizer = LlamaCppQuantizer(cache, environ=WHEEL_ONLY)
    source = quantizer.resolve(str(path))
    assert (source.kind, source.digest, source.bytes) == (ModelKind.GGUF, sha256_file(path), path.stat().st_size)
    variant = quantizer.ensure(source, "f16", pytest.fail)
    assert (variant.path, variant.artifact.built, variant.artifact.sha256) == (path, False, source.digest)
    assert variant.artifact.warnings == ()
    assert quantizer.estimate_bytes(source, "F16") == path.stat().st_size


def test_locate_writes_nothing(cache: ArtifactCache, make_gguf: MakeGguf) -> None:
    source = LlamaCppQuantizer(cache, environ=WHEEL_ONLY).locate(str(make_gguf()))
    assert source.digest is not None
    assert not cache.root.exists()


def test_unfetched_packaged_model_can_be_planned(cache: ArtifactCache) -> None:
    quantizer = LlamaCppQuantizer(cache, environ=WHEEL_ONLY)
    source = quantizer.locate("smollm2-135m")
    assert (source.kind, source.path, source.bytes) == (ModelKind.PACKAGED, None, 98_362_432)
    assert quantizer.estimate_bytes(source, "Q4_1") == source.bytes
    assert quantizer.estimate_bytes(source, "Q8_0") == pytest.approx(144_811_072, rel=0.05)
    with pytest.raises(SpecError, match="importance matrix"):
        quantizer.check(source, "IQ1_S")


@pytest.mark.parametrize(
    ("name", "said"),
    [("smolm2", "did you mean smollm2-135m"), ("gpt", "packaged models: smollm2-135m"), ("none.gguf", "does not exist")],
)
def test_unknown_models(cache: ArtifactCache, name: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        LlamaCppQuantizer(cache).resolve(name)


def test_tags_that_need_an_importance_matrix_are_refused_unless_owned(cache: ArtifactCache, make_gguf: MakeGguf) -> None:
    quantizer = LlamaCppQuantizer(cache, environ=WHEEL_ONLY)
    source = quantizer.resolve(str(make_gguf()))
    with pytest.raises(SpecError, match="importance matrix"):
        quantizer.check(source, "iq2_xxs")
    with pytest.raises(SpecError, match="importance matrix"):
        quantizer.ensure(source, "iq2_xxs", print)
    owned = quantizer.resolve(str(make_gguf("owned.gguf", kind="Q8_0", file_type=19)))
    assert quantizer.ensure(owned, "IQ2_XXS", print).artifact.built is False


def test_float_source_is_used_directly_and_the_cache_afterwards(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], tmp_path: Path
) -> None:
    make_gguf("Q8_0.gguf", kind="Q8_0")
    quantizer = LlamaCppQuantizer(cache, threads=3, environ=fake)
    source = quantizer.resolve(str(make_gguf()))
    said: list[str] = []
    variant = quantizer.ensure(source, "q8_0", said.append)
    assert said == [f"building Q8_0 of {source.model_id} with llama-quantize (77 (fake))"]
    assert variant.artifact.recipe == ("llama-quantize {source} {output} Q8_0 3",)
    assert (variant.artifact.scheme, variant.artifact.tool_version, variant.artifact.source_scheme) == (
        "Q8_0",
        "77 (fake)",
        "F32",
    )
    assert variant.artifact.sha256 == sha256_file(path_of(variant)) == sha256_file(tmp_path / "Q8_0.gguf")
    assert variant.artifact.warnings == ()
    # the same bytes under another name are the same variant, under that name
    copy = tmp_path / "copy.gguf"
    shutil.copy(str(source.path), copy)
    again = LlamaCppQuantizer(cache, environ=fake).ensure(quantizer.resolve(str(copy)), "Q8_0", pytest.fail)
    assert (again.path, again.artifact.model_id) == (variant.path, str(copy))
    assert len(calls(tmp_path)) == 1


def test_quantized_source_goes_through_one_dequantized_reference(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], tmp_path: Path
) -> None:
    make_gguf("F16.gguf", kind="F16")
    make_gguf("Q8_0.gguf", kind="Q8_0")
    quantizer = LlamaCppQuantizer(cache, threads=1, environ=fake)
    source = quantizer.resolve(str(make_gguf("source.gguf", kind="Q4_1")))
    variant = quantizer.ensure(source, "Q8_0", print)
    reference = quantizer.ensure(source, "F16", print)
    assert [line.split()[0] for line in calls(tmp_path)] == ["--allow-requantize", str(reference.path)]
    assert variant.artifact.recipe == (
        "llama-quantize --allow-requantize {source} {reference} F16 1",
        "llama-quantize {reference} {output} Q8_0 1",
    )
    assert codes(variant) == {WarningCode.SOURCE_ALREADY_QUANTIZED}
    assert codes(reference) == {WarningCode.SOURCE_ALREADY_QUANTIZED, WarningCode.DEQUANTIZED_REFERENCE}
    own = quantizer.ensure(source, "Q4_1", pytest.fail)
    assert codes(own) == {WarningCode.SOURCE_ALREADY_QUANTIZED, WarningCode.LOSSLESS_BY_CONSTRUCTION}
    assert own.path == Path(str(source.path))


def test_another_tool_makes_another_artifact(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], make_program: MakeProgram, tmp_path: Path
) -> None:
    make_gguf("Q8_0.gguf", kind="Q8_0")
    source = LlamaCppQuantizer(cache).resolve(str(make_gguf()))
    first = LlamaCppQuantizer(cache, environ=fake).ensure(source, "Q8_0", print)
    make_program("llama-quantize", f"HOME = {str(tmp_path)!r}\n# a newer build\n{FAKE}")
    second = LlamaCppQuantizer(cache, environ=fake).ensure(source, "Q8_0", print)
    assert first.path != second.path
    assert len(calls(tmp_path)) == 2


def test_failed_build_leaves_nothing_and_shows_the_last_lines(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str]
) -> None:
    quantizer = LlamaCppQuantizer(cache, environ=fake)
    source = quantizer.resolve(str(make_gguf()))
    with pytest.raises(BackendError, match="the sky fell") as caught:
        quantizer.ensure(source, "Q4_0", print)
    assert caught.value.returncode == 1
    assert artifact_files(cache) == []


@pytest.mark.parametrize(
    ("prepared", "said"),
    [
        ({"kind": "F32"}, "nothing was changed"),
        ({"kind": "Q8_0", "width": 512}, "weights, its source has"),
        ({"kind": "Q8_0", "file_type": 2}, "file type 2"),
        (None, "not usable"),
    ],
)
def test_what_the_tool_wrote_is_checked(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], tmp_path: Path, prepared: dict[str, Any] | None, said: str
) -> None:
    if prepared is None:
        data = make_gguf("Q8_0.gguf", kind="Q8_0").read_bytes()
        (tmp_path / "Q8_0.gguf").write_bytes(data[:-100])
    else:
        make_gguf("Q8_0.gguf", **prepared)
    quantizer = LlamaCppQuantizer(cache, environ=fake)
    source = quantizer.resolve(str(make_gguf()))
    with pytest.raises(BackendError, match=said):
        quantizer.ensure(source, "Q8_0", print)
    assert artifact_files(cache) == []


def test_full_disk_is_said_before_building(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = LlamaCppQuantizer(cache, environ=fake)
    source = quantizer.resolve(str(make_gguf(kind="Q4_1")))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1_000_000, 900_000, 100_000))
    with pytest.raises(StoreError, match=r"not enough disk space to build F16 .* missing"):
        quantizer.ensure(source, "Q8_0", print)
    assert calls(tmp_path) == []


def test_corrupt_cached_file_is_built_again_with_a_notice(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], tmp_path: Path
) -> None:
    make_gguf("Q8_0.gguf", kind="Q8_0")
    quantizer = LlamaCppQuantizer(cache, environ=fake)
    source = quantizer.resolve(str(make_gguf()))
    path = path_of(quantizer.ensure(source, "Q8_0", print))
    with path.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x55")
    said: list[str] = []
    assert (
        quantizer.ensure(source, "Q8_0", said.append).artifact.sha256 == sha256_file(path) == sha256_file(tmp_path / "Q8_0.gguf")
    )
    assert "other bytes than it was made with" in said[0]
    assert said[1].startswith("building Q8_0")


BUILDER = """
import sys
from pathlib import Path
from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
from fewbits.store.artifacts import ArtifactCache

model, root, folder = sys.argv[1:]
quantizer = LlamaCppQuantizer(ArtifactCache(Path(root)), environ={"PATH": "", "FEWBITS_LLAMACPP_DIR": folder})
quantizer.ensure(quantizer.resolve(model), "Q8_0", print)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children die with their parent on Linux only")
def test_killed_build_leaves_no_artifact_and_is_repeated(
    cache: ArtifactCache, make_gguf: MakeGguf, fake: dict[str, str], tmp_path: Path
) -> None:
    prepared = make_gguf("Q8_0.gguf", kind="Q8_0")
    model = make_gguf("model.gguf")
    os.mkfifo(tmp_path / "gate")
    builder = subprocess.Popen([sys.executable, "-c", BUILDER, str(model), str(cache.root), fake["FEWBITS_LLAMACPP_DIR"]])
    gate = os.open(tmp_path / "gate", os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([gate], [], [], 30)[0], "the tool was never started"
    tool = int(os.read(gate, 100))  # its id, written after half a file
    os.close(gate)
    watch = os.pidfd_open(tool)
    builder.send_signal(signal.SIGKILL)
    builder.wait(10)
    assert select.select([watch], [], [], 10)[0], "the tool outlived its killed parent"
    os.close(watch)
    assert artifact_files(cache) == ["Q8_0.gguf.part"]
    (tmp_path / "gate").unlink()
    quantizer = LlamaCppQuantizer(cache, environ=fake)
    variant = quantizer.ensure(quantizer.resolve(str(model)), "Q8_0", print)
    assert path_of(variant).read_bytes() == prepared.read_bytes()
    assert artifact_files(cache) == ["Q8_0.gguf", "manifest.json"]


def test_no_engine_says_how_to_get_one(cache: ArtifactCache, make_gguf: MakeGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewbits.core.engines.importlib.util.find_spec", lambda _: None)
    quantizer = LlamaCppQuantizer(cache, environ={"PATH": "", "FEWBITS_CACHE": str(cache.root)})
    with pytest.raises(PrerequisiteError, match=r"fewbits\[llamacpp\]"):
        quantizer.ensure(quantizer.resolve(str(make_gguf())), "Q8_0", print)


def test_registry(cache: ArtifactCache) -> None:
    assert isinstance(create_quantizer("llamacpp", cache), LlamaCppQuantizer)
    with pytest.raises(SpecError, match="builds no variants"):
        create_quantizer("ollama", cache)


@pytest.mark.real
@pytest.mark.parametrize("tag", ["Q8_0", "Q4_K_M", "Q2_K", "Q6_K", "F16", "BF16"])
def test_wheel_really_quantizes_a_float_model(cache: ArtifactCache, make_gguf: MakeGguf, tag: str) -> None:
    pytest.importorskip("cyllama")
    quantizer = LlamaCppQuantizer(cache, environ={**WHEEL_ONLY, "FEWBITS_CACHE": str(cache.root)}, threads=1)
    source = quantizer.resolve(str(make_gguf()))
    variant = quantizer.ensure(source, tag, print)
    assert variant.artifact.tool_version.startswith("cyllama ")
    assert variant.artifact.warnings == ()
    assert read_gguf(path_of(variant)).scheme == find_scheme(tag)
    assert quantizer.estimate_bytes(source, tag) == pytest.approx(variant.artifact.bytes, rel=0.15)
    manifest = json.loads((path_of(variant).parent / "manifest.json").read_text())
    assert manifest["artifact"]["sha256"] == sha256_file(path_of(variant))


@pytest.mark.real
def test_narrow_rows_really_fall_back(cache: ArtifactCache, make_gguf: MakeGguf) -> None:
    pytest.importorskip("cyllama")
    quantizer = LlamaCppQuantizer(cache, environ={**WHEEL_ONLY, "FEWBITS_CACHE": str(cache.root)}, threads=1)
    variant = quantizer.ensure(quantizer.resolve(str(make_gguf(width=288))), "Q4_K_M", print)
    (warning,) = variant.artifact.warnings
    assert warning.code is WarningCode.FALLBACK_TYPES
    assert warning.message.startswith("9 of 12 tensors")
    assert not any(count.ggml_type.endswith("_K") for count in variant.artifact.census)
    assert (variant.artifact.bits_per_weight or 0) > 5.5


@pytest.mark.real
def test_wheel_refuses_a_quantized_source_only_without_the_flag(
    cache: ArtifactCache, make_gguf: MakeGguf, tmp_path: Path
) -> None:
    pytest.importorskip("cyllama")
    tool = find_tool("llama-quantize", {**WHEEL_ONLY, "FEWBITS_CACHE": str(cache.root)})
    assert tool is not None
    source = make_gguf(kind="Q8_0")
    with pytest.raises(BackendError, match="requantizing"):
        run_quantize(tool, source, tmp_path / "no.gguf", find_scheme("Q4_0"), 1, requantize=False)
    run_quantize(tool, source, tmp_path / "yes.gguf", find_scheme("Q4_0"), 1, requantize=True)
    assert read_gguf(tmp_path / "yes.gguf").scheme == find_scheme("Q4_0")


@pytest.mark.real
def test_ladder_of_the_packaged_model() -> None:
    pytest.importorskip("cyllama")
    quantizer = LlamaCppQuantizer(ArtifactCache())
    source = quantizer.resolve("smollm2-135m", print)
    own = quantizer.ensure(source, "Q4_1", print)
    assert own.artifact.bits_per_weight == pytest.approx(5.7437, abs=1e-4)
    assert WarningCode.LOSSLESS_BY_CONSTRUCTION in codes(own)
    eight, two = (quantizer.ensure(source, tag, print) for tag in ("Q8_0", "Q2_K"))
    assert eight.artifact.bits_per_weight == pytest.approx(8.506, abs=0.01)
    assert codes(eight) == {WarningCode.SOURCE_ALREADY_QUANTIZED}
    # rows of 576 do not fit K-quants: "Q2_K" is no 2-bit model here
    assert two.artifact.bits_per_weight == pytest.approx(5.14, abs=0.02)
    assert codes(two) == {WarningCode.SOURCE_ALREADY_QUANTIZED, WarningCode.FALLBACK_TYPES}
    assert quantizer.estimate_bytes(source, "Q2_K") == pytest.approx(two.artifact.bytes, rel=0.1)
    assert two.artifact.weights == own.artifact.weights == 134_515_008
