"""What each runtime can really do and report: a table that can be read without importing a backend."""

from __future__ import annotations

from types import MappingProxyType

from fewbits.records.runtime import RuntimeCapabilities

CAPABILITIES: MappingProxyType[str, RuntimeCapabilities] = MappingProxyType(
    {
        row.name: row
        for row in (
            # all logits come from the same file through the library, not through the server
            RuntimeCapabilities(
                name="llamacpp",
                local_process=True,
                builds_variants=True,
                streaming=True,
                token_counts=True,
                timings=True,
                seed=True,
                context_readback=True,
                thread_control=True,
                digest_identity=True,
                constrained_json=True,
                log_probabilities=True,
            ),
            # log-probabilities since Ollama 0.12.11; an older server is told apart by its answer
            RuntimeCapabilities(
                name="ollama",
                local_process=False,
                builds_variants=False,
                streaming=True,
                token_counts=True,
                timings=True,
                seed=True,
                context_readback=True,
                thread_control=True,
                digest_identity=True,
                constrained_json=True,
                log_probabilities=True,
            ),
            # the protocol promises counts and log-probabilities on request; times only where the server is llama.cpp
            RuntimeCapabilities(
                name="openai",
                local_process=False,
                builds_variants=False,
                streaming=True,
                token_counts=True,
                timings=False,
                seed=True,
                context_readback=False,
                thread_control=False,
                digest_identity=False,
                constrained_json=True,
                log_probabilities=True,
            ),
            # images in, detections out: no tokens, no sampling; whole times from two clock reads
            RuntimeCapabilities(
                name="onnx",
                local_process=True,
                builds_variants=True,
                streaming=False,
                token_counts=False,
                timings=True,
                seed=False,
                context_readback=False,
                thread_control=True,
                digest_identity=True,
                constrained_json=False,
                log_probabilities=False,
                images=True,
            ),
            # pages in, reports out: whole times from two clock reads
            RuntimeCapabilities(
                name="extraction",
                local_process=True,
                builds_variants=True,
                streaming=False,
                token_counts=False,
                timings=True,
                seed=False,
                context_readback=False,
                thread_control=True,
                digest_identity=True,
                constrained_json=False,
                log_probabilities=False,
                images=True,
            ),
            # replays declared numbers: whatever the script declares is reported, nothing is controlled
            RuntimeCapabilities(
                name="scripted",
                local_process=False,
                builds_variants=False,
                streaming=True,
                token_counts=True,
                timings=True,
                seed=False,
                context_readback=False,
                thread_control=False,
                digest_identity=False,
                constrained_json=False,
                log_probabilities=False,
            ),
        )
    }
)
