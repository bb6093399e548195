from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.quantizers.llamacpp.gguf_file import read_gguf

MakeGguf = Callable[..., Path]


def problem(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read_gguf(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].path == str(path)
    return str(caught.value)


def test_census_agrees_with_the_gguf_package(make_gguf: MakeGguf) -> None:
    gguf = pytest.importorskip("gguf")
    path = make_gguf(kind="Q8_0", tokens=5000)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert [(t.name, t.kind.name, t.weights, t.bytes, ours.header.data_start + t.offset) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, t.n_elements, t.n_bytes, t.data_offset) for t in theirs.tensors
    ]
    assert ours.weights == sum(count.weights for count in ours.census) == sum(t.n_elements for t in theirs.tensors)
    assert [(count.ggml_type, count.tensors) for count in ours.census] == [("Q8_0", 9), ("F32", 3)]


def test_facts_of_a_small_model(make_gguf: MakeGguf) -> None:
    file = read_gguf(make_gguf(kind="F16"))
    matrices = 256 * (32 * 2 + 256 * 2 + 128 * 2 + 256 * 3)
    assert file.weights == matrices + 3 * 256
    assert file.bits_per_weight == pytest.approx((16 * matrices + 32 * 768) / file.weights)
    assert file.dominant_type == "F16"
    assert not file.is_quantized
    assert file.scheme is not None
    assert file.scheme.tag == "F16"
    assert file.architecture == "llama"
    wanted = {"n_layers": 1, "n_ctx_train": 128, "n_embd": 256, "n_head": 4, "n_head_kv": 2, "n_vocab": 32}
    assert file.parameters == wanted | {"file_type": 1}


def test_the_calibration_text_is_told_where_the_file_names_it(make_gguf: MakeGguf) -> None:
    assert read_gguf(make_gguf(imatrix_dataset="/data/calibration.txt")).parameters["imatrix_dataset"] == "/data/calibration.txt"
    assert "imatrix_dataset" not in read_gguf(make_gguf(imatrix_dataset="")).parameters


@pytest.mark.parametrize(
    ("kind", "file_type", "tag"),
    [("F32", 1, "F32"), ("Q8_0", 7, "Q8_0"), ("Q8_0", 15, "Q4_K_M"), ("Q8_0", 1, None), ("Q8_0", 1024, None), ("F16", 7, "F16")],
)
def test_own_scheme_is_told_by_tensors_first(make_gguf: MakeGguf, kind: str, file_type: int, tag: str | None) -> None:
    scheme = read_gguf(make_gguf(kind=kind, file_type=file_type)).scheme
    assert (scheme.tag if scheme else None) == tag


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_any_cut_is_called_truncated(make_gguf: MakeGguf, tmp_path: Path, share: float) -> None:
    whole = tmp_path / "tiny.gguf"
    if not whole.exists():
        make_gguf()
    data = whole.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: max(4, int(len(data) * share * share))])
    assert "truncated" in problem(cut)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(position=st.integers(0, 1500), value=st.integers(0, 255))
def test_damaged_headers_never_raise_anything_else(make_gguf: MakeGguf, tmp_path: Path, position: int, value: int) -> None:
    whole = tmp_path / "tiny.gguf"
    if not whole.exists():
        make_gguf()
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(whole.read_bytes())
    data[position] = value
    damaged.write_bytes(data)
    try:
        file = read_gguf(damaged)
    except SpecError:
        return
    assert file.weights > 0
    assert isinstance(file.parameters, dict)


def test_last_byte_counts(make_gguf: MakeGguf) -> None:
    path = make_gguf()
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "truncated" in problem(path)
    path.write_bytes(data + b"\0" * 100)
    assert read_gguf(path).bytes == len(data) + 100


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
        (struct.pack("<Q", 80) + b'{"__metadata__":{}}' + b" " * 80, "safetensors"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"lmgg" + b"\0" * 60, "before GGUF"),
        (b'{"error": "not found"}', "JSON"),
        (b"\0" * 200, "all zero"),
        (b"hello world, this is text", "it begins with"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "truncated or corrupt"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\0" * 32, "no tensors"),
        (b"GG", "truncated"),
    ],
)
def test_wrong_files_say_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert said in problem(path)


def test_missing_folder_and_split(tmp_path: Path, make_gguf: MakeGguf) -> None:
    assert "does not exist" in problem(tmp_path / "none.gguf")
    assert "is a folder" in problem(tmp_path)
    assert "one of 3 parts" in problem(make_gguf("model-00001-of-00003.gguf"))
