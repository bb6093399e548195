"""Weights off their grid, and types that share one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.quantizers.llamacpp import grains
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.grains import read_rows, row_count
from fewbits.quantizers.llamacpp.off_grid import grid_types, half_step_noise, source_grids, write_off_grid

MakeGguf = Callable[..., Path]
WANTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL")


def silent(_: str) -> None:
    """No progress."""


def whole(file: GgufFile, name: str) -> np.ndarray:
    tensor = next(row for row in file.tensors if row.name == name)
    return read_rows(file, tensor, 0, row_count(tensor))


@given(seed=st.integers(0, 2**32 - 1), step=st.floats(1e-4, 10), levels=st.integers(2, 16))
def test_noise_is_half_a_step_either_way(seed: int, step: float, levels: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.tile(np.arange(32) % levels, (4, 1)).astype(np.float32) * np.float32(step)
    noise = half_step_noise(rows, 32, random)
    assert np.abs(noise).max() <= 0.5001 * step
    # 128 uniform numbers: the chance that all lie in the inner half is 2**-128
    assert np.abs(noise).max() > 0.25 * step


def test_noise_has_the_moments_of_a_uniform_and_constant_blocks_have_none() -> None:
    rows = np.tile(np.arange(16, dtype=np.float32), (4000, 2))
    noise = half_step_noise(rows, 32, np.random.default_rng(5))
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert noise.var() == pytest.approx(1 / 12, rel=0.02)
    assert not half_step_noise(np.full((2, 32), 3.0, np.float32), 32, np.random.default_rng(0)).any()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_every_quantized_tensor_leaves_its_grid_and_nothing_else(make_gguf: MakeGguf, tmp_path: Path, kind: str) -> None:
    source = read_gguf(make_gguf(kind=kind))
    write_off_grid(source, tmp_path / "b.gguf", 7, silent)
    made = read_gguf(tmp_path / "b.gguf")
    for before, after in zip(source.tensors, made.tensors, strict=True):
        old, new = whole(source, before.name), whole(made, after.name)
        if not before.kind.is_quantized:
            assert (after.kind, new.tolist()) == (before.kind, old.tolist())
            continue
        assert after.kind.name == "F16"
        blocks = old.reshape(-1, 32)
        gaps = np.diff(np.sort(blocks, axis=1), axis=1)
        steps = np.where(gaps > 0, gaps, np.inf).min(axis=1)
        moved = np.abs(new.reshape(-1, 32) - blocks).max(axis=1)
        # F16 adds half a unit in its last place
        assert (moved <= steps / 2 + np.abs(blocks).max(axis=1) * 2**-10).all()
        assert np.mean(new == old) < 0.1
    assert made.file_type == 1


def test_the_same_seed_is_the_same_file_however_it_is_sliced(
    make_gguf: MakeGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_gguf(make_gguf(kind="Q8_0"))
    write_off_grid(source, tmp_path / "a.gguf", 1, silent)
    write_off_grid(source, tmp_path / "c.gguf", 2, silent)
    monkeypatch.setattr(grains, "_SLICE_WEIGHTS", 256 * 5)
    write_off_grid(source, tmp_path / "b.gguf", 1, silent)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a.gguf").read_bytes() != (tmp_path / "c.gguf").read_bytes()


def test_a_float_file_lies_on_no_grid(make_gguf: MakeGguf, tmp_path: Path) -> None:
    file = read_gguf(make_gguf())
    assert grid_types(file, WANTED) == frozenset()
    with pytest.raises(SpecError, match="no quantized tensor"):
        write_off_grid(file, tmp_path / "b.gguf", 0, silent)


def test_the_source_s_own_type_and_its_relatives_share_the_grid(make_gguf: MakeGguf) -> None:
    file = read_gguf(make_gguf(kind="Q4_1"))
    found = grid_types(file, WANTED)
    assert "Q4_1" in found
    assert "Q4_K" in found
    assert not found & {"Q4_0", "Q5_0", "Q8_0", "IQ4_NL"}


def test_q8_shares_no_coarser_type_s_grid(make_gguf: MakeGguf) -> None:
    file = read_gguf(make_gguf(kind="Q8_0"))
    assert grid_types(file, WANTED) == frozenset({"Q8_0"})
    assert grid_types(file, WANTED, tensors=["output_norm.weight"]) == frozenset()
    assert set(source_grids(file, ("Q8_0", "F16")).values()) == {frozenset({"Q8_0"})}


def test_off_the_grid_no_type_is_helped(make_gguf: MakeGguf, tmp_path: Path) -> None:
    """The measure itself: on reference B the source's type is as wrong as on weights that never were quantized."""
    from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
    from fewbits.quantizers.llamacpp.grains import round_trip

    source = read_gguf(make_gguf(kind="Q4_1"))
    write_off_grid(source, tmp_path / "b.gguf", 3, silent)
    rows = whole(read_gguf(tmp_path / "b.gguf"), "blk.0.ffn_up.weight")
    fresh = np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)

    def error(values: np.ndarray, name: str) -> float:
        return float(np.square(round_trip(values, GGML_TYPES[name]) - values).sum() / np.square(values).sum())

    for name in ("Q4_1", "Q5_1", "Q4_K"):
        assert error(rows, name) == pytest.approx(error(fresh, name), rel=0.35)
    assert error(whole(source, "blk.0.ffn_up.weight"), "Q4_1") < error(fresh, "Q4_1") / 100
