from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fewbits.store.artifacts import ArtifactCache

MakeGguf = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache")


@pytest.fixture
def make_gguf(tmp_path: Path) -> MakeGguf:
    """Write a complete tiny llama-architecture model that llama.cpp really quantizes."""

    def make(
        name: str = "tiny.gguf",
        *,
        width: int = 256,
        kind: str = "F32",
        tokens: int = 32,
        file_type: int | None = None,
        seed: int = 0,
        imatrix_dataset: str | None = None,
    ) -> Path:
        import gguf

        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        target = gguf.GGMLQuantizationType[kind]
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(128)
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(width)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(width // 4)
        writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7, "Q4_1": 3}[kind] if file_type is None else file_type)
        if imatrix_dataset is not None:
            writer.add_string("quantize.imatrix.dataset", imatrix_dataset)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"<{number}>" for number in range(tokens)])
        writer.add_token_scores([0.0] * tokens)
        writer.add_token_types([1] * tokens)
        random = np.random.default_rng(seed)

        def matrix(tensor: str, rows: int) -> None:
            values = (random.standard_normal((rows, width)) * 0.05).astype(np.float32)
            writer.add_tensor(tensor, gguf.quants.quantize(values, target), raw_dtype=target)

        matrix("token_embd.weight", tokens)
        matrix("output.weight", tokens)
        writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
        for tensor, rows in (("q", width), ("k", width // 2), ("v", width // 2), ("output", width)):
            matrix(f"blk.0.attn_{tensor}.weight", rows)
        for tensor in ("gate", "up", "down"):
            matrix(f"blk.0.ffn_{tensor}.weight", width)
        for tensor in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.0.{tensor}.weight", np.ones(width, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture
def make_program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write an executable Python program into a folder `bin` and return its path."""

    def make(name: str, body: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{body}")
        path.chmod(0o755)
        return path

    return make
