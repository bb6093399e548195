"""Importance matrices: read with checks, made by a tool."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.quantizers.llamacpp.gguf_file import read_gguf
from fewbits.quantizers.llamacpp.grains import GrainCache
from fewbits.quantizers.llamacpp.importance import make_imatrix, read_imatrix
from fewbits.quantizers.llamacpp.recipe_build import build_recipe

MakeGguf = Callable[..., Path]
MakeProgram = Callable[[str, str], Path]
NAME = "blk.0.ffn_up.weight"


def write(path: Path, sums: dict[str, np.ndarray], count: float = 4.0) -> Path:
    """The form that llama-imatrix writes."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32).reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_sums_become_means(make_gguf: MakeGguf, tmp_path: Path) -> None:
    file = read_gguf(make_gguf())
    values = np.arange(256.0)
    found = read_imatrix(write(tmp_path / "i.gguf", {NAME: values}), file)
    assert list(found) == [NAME]
    assert found[NAME].tolist() == (values / 4).tolist()


def test_the_older_form_is_read_too(make_gguf: MakeGguf, tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    name = NAME.encode()
    body = struct.pack("<ii", 2, 256) + np.full(256, 8, "<f4").tobytes()
    path.write_bytes(struct.pack("<ii", 1, len(name)) + name + body)
    assert read_imatrix(path, read_gguf(make_gguf()))[NAME].tolist() == [4.0] * 256


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({"blk.9.ffn_up.weight": np.ones(256)}, "the model does not have"),
        ({NAME: np.ones(128)}, "128 values for 'blk.0.ffn_up.weight', whose rows need 256"),
        ({NAME: np.full(256, np.nan)}, "negative or not finite"),
        ({NAME: -np.ones(256)}, "negative or not finite"),
    ],
)
def test_another_model_s_matrix_is_refused(
    make_gguf: MakeGguf, tmp_path: Path, sums: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        read_imatrix(write(tmp_path / "i.gguf", sums), read_gguf(make_gguf()))


def test_many_problems_are_cut_short(make_gguf: MakeGguf, tmp_path: Path) -> None:
    sums = {f"blk.{number}.none.weight": np.ones(2) for number in range(9)}
    with pytest.raises(SpecError, match="and 4 more such entries") as caught:
        read_imatrix(write(tmp_path / "i.gguf", sums), read_gguf(make_gguf()))
    assert len(caught.value.problems) == 5


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), as_gguf=st.booleans())
def test_any_bytes_are_answered_with_one_message(make_gguf: MakeGguf, tmp_path: Path, data: bytes, as_gguf: bool) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(b"GGUF\x03\0\0\0" + data if as_gguf else data)
    with pytest.raises(SpecError, match="is no importance matrix"):
        read_imatrix(path, read_gguf(make_gguf()))


def test_a_missing_file(make_gguf: MakeGguf, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read_imatrix(tmp_path / "none", read_gguf(make_gguf()))


def test_types_that_need_one_can_then_be_built(make_gguf: MakeGguf, tmp_path: Path) -> None:
    matrix = write(tmp_path / "i.gguf", {NAME: np.random.default_rng(0).uniform(0.1, 4, 256)})
    output = tmp_path / "out.gguf"
    with GrainCache() as cache:
        types = {NAME: "IQ3_XXS"}
        build_recipe(make_gguf(), types, output, imatrix=matrix, cache=cache, progress=lambda _: None)
        assert {row.name: row.kind.name for row in read_gguf(output).tensors}[NAME] == "IQ3_XXS"
        other = {"blk.0.ffn_gate.weight": "IQ3_XXS"}
        with pytest.raises(SpecError, match="covers this tensor"):
            build_recipe(make_gguf(), other, tmp_path / "x", imatrix=matrix, cache=cache, progress=lambda _: None)


class TestMaking:
    FAKE = """
import sys
if sys.argv[1:] == ["--version"]:
    print("version: 5 (fake)")
    raise SystemExit
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
text = open(words["-f"], "rb").read()
if text == b"bad":
    sys.exit("error: the text is too short")
with open(words["-o"], "w") as out:
    out.write(f"{words['--chunks']} x {words['-c']} with {words['-t']}: {text.decode()}")
"""

    def test_the_tool_is_asked(self, make_program: MakeProgram, tmp_path: Path) -> None:
        make_program("llama-imatrix", self.FAKE)
        output = tmp_path / "made"
        environ = {"PATH": "", "FEWBITS_LLAMACPP_DIR": str(tmp_path / "bin")}
        said: list[str] = []
        tool = make_imatrix(tmp_path / "m.gguf", "ä text", output, said.append, chunks=3, threads=2, environ=environ)
        assert output.read_text() == "3 x 512 with 2: ä text"
        assert (tool.version, said) == ("5 (fake)", ["reading 3 chunks of 512 tokens with llama-imatrix (5 (fake))"])
        output.unlink()
        with pytest.raises(BackendError, match=r"(?s)made no importance matrix.*too short"):
            make_imatrix(tmp_path / "m.gguf", "bad", output, said.append, environ=environ)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]

    def test_without_the_tool(self, tmp_path: Path) -> None:
        environ = {"PATH": "", "FEWBITS_CACHE": str(tmp_path)}
        with pytest.raises(PrerequisiteError, match="fewbits engine build"):
            make_imatrix(tmp_path / "m.gguf", "text", tmp_path / "made", lambda _: None, environ=environ)
