"""How much memory a variant will need, before it is loaded: from its file's size and its own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewbits.analysis.run_quality import CONTEXT_PADDING_TOKENS
from fewbits.records.variant import Artifact

KV_ELEMENT_BYTES = 2
"""llama.cpp keeps keys and values as F16 unless told otherwise. Source: llama.cpp, common/arg.cpp, --cache-type-k (f16)."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes: the weights (the file), and the KV cache at a context; `None` where the file does not tell enough."""

    weights_bytes: int | None
    kv_cache_bytes: int | None

    @property
    def total_bytes(self) -> int | None:
        """Weights and cache together: a lower bound, since compute buffers come on top. `None` without a file."""
        if self.weights_bytes is None:
            return None
        return self.weights_bytes + (self.kv_cache_bytes or 0)


def memory_need(artifact: Artifact, context_size: int) -> MemoryNeed:
    """Return what a variant needs at a context of that many tokens."""
    return MemoryNeed(artifact.bytes, kv_cache_bytes(artifact.parameters, context_size))


def kv_cache_bytes(parameters: Mapping[str, int | str], context_size: int) -> int | None:
    """Return the size of the KV cache in bytes: layers x tokens x key-value heads x (key + value length) x 2.

    An upper bound for models whose layers see only a window. `None` when layers, heads or widths are not in the metadata (a model
    without attention, or one whose layers differ). Source: llama.cpp, llama-kv-cache.cpp (k and v tensors per layer).
    """
    layers, heads = _number(parameters, "n_layers"), _number(parameters, "n_head_kv")
    key, value = _number(parameters, "n_embd_head_k"), _number(parameters, "n_embd_head_v")
    width, all_heads = _number(parameters, "n_embd"), _number(parameters, "n_head")
    if width is not None and all_heads:
        # ggml's docs: without these keys both are embedding length / heads
        key, value = key or width // all_heads, value or width // all_heads
    if layers is None or heads is None or key is None or value is None:
        return None
    tokens = -(-context_size // CONTEXT_PADDING_TOKENS) * CONTEXT_PADDING_TOKENS
    return layers * tokens * heads * (key + value) * KV_ELEMENT_BYTES


def _number(parameters: Mapping[str, int | str], name: str) -> int | None:
    value = parameters.get(name)
    return value if isinstance(value, int) and value > 0 else None
