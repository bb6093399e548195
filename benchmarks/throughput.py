"""Our runtime against `llama-bench` of the same build: same file, threads, batch, and the same numbers of tokens.

Ours is read from the engine's own clock. `predicted_ms` of llama.cpp's server runs from the first token, which the prompt's last
batch yields, to the n-th, so it holds n - 1 decode steps: the rate is (n - 1) / `predicted_ms`, and `llama-bench` is asked for
n - 1 steps at a depth of the prompt's length. Ours includes sampling, text and streaming; `llama-bench` samples nothing.
Source: llama.cpp, tools/server/server-context.cpp (`update_prompt_last`, `update_gen_last`) and tools/llama-bench.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

from benchmarks.result import MODEL, SCHEME, Result, judged, notice, quartiles, skipped, timed_command
from fewbits.core.engines import EngineTool, find_tool
from fewbits.probes.machine import default_threads
from fewbits.quantizers.registry import create_quantizer
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.runtimes.llamacpp.runtime import LlamaCppRuntime
from fewbits.runtimes.llamacpp.session import LlamaCppSession
from fewbits.store.artifacts import ArtifactCache

PAIRS = 9
OUTPUT_TOKENS = 64
BATCH = 512
CONTEXT = 512
MIN_RATIO = 0.98
_PROMPT = "Write a long story about a lighthouse. " + "The sea was calm and the keeper walked slowly. " * 22
_NAMES = ("prompt tokens per second, ours / llama-bench", "generated tokens per second, ours / llama-bench")
_REMEDY = "needs llama-server and llama-bench of one build: `fewbits engine build`, or name its folder in FEWBITS_LLAMACPP_DIR"


class _Test(msgspec.Struct):
    """The part of a `llama-bench -o json` row that is read."""

    avg_ts: float
    n_prompt: int
    n_gen: int
    n_depth: int


def measure() -> list[Result]:
    """Interleave `PAIRS` pairs, each side first in turn; both rows are skipped where the tools are not of one build."""
    server, bench = find_tool("llama-server"), find_tool("llama-bench")
    if server is None or bench is None or server.kind != "binary" or server.path.parent != bench.path.parent:
        return [skipped(name, _REMEDY) for name in _NAMES]
    threads = default_threads()
    quantizer = create_quantizer("llamacpp", ArtifactCache(), threads=threads)
    variant = quantizer.ensure(quantizer.locate(MODEL), SCHEME, notice)
    if variant.path is None:
        msg = f"{MODEL} {SCHEME} has no file"
        raise RuntimeError(msg)
    # no pinning on our side, as llama-bench pins nothing
    controls = Controls(threads=threads, affinity_policy="none", context_size=CONTEXT, batch_size=BATCH)
    session = LlamaCppRuntime(tool=server).open(variant, controls, 300.0)
    try:
        prompt_tokens, _, _ = _ours(session)  # unmeasured: faults the weights in and tells the prompt's length
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for pair in range(PAIRS):
            for turn in (0, 1) if pair % 2 == 0 else (1, 0):
                if turn == 0:
                    ours.append(_ours(session)[1:])
                else:
                    theirs.append(_theirs(bench, variant.path, threads, prompt_tokens))
    finally:
        session.close()
    return [_result(kind, ours, theirs, prompt_tokens, threads) for kind in (0, 1)]


def _ours(session: LlamaCppSession) -> tuple[int, float, float]:
    """Prompt length, prompt tokens per second and decode steps per second of one request."""
    request = GenerateRequest(prompt=_PROMPT, seed=1337, temperature=0.0, max_tokens=OUTPUT_TOKENS)
    reply = session.generate(request, 300.0)
    prompt, output = reply.prompt_tokens, reply.output_tokens
    if prompt is None or output != OUTPUT_TOKENS or reply.cached_prompt_tokens or not reply.prompt_ms or not reply.predicted_ms:
        msg = f"no basis for a rate: {prompt} tokens in, {output} out, timings {reply.raw_timings}"
        raise RuntimeError(msg)
    return prompt, 1000.0 * prompt / reply.prompt_ms, 1000.0 * (output - 1) / reply.predicted_ms


def _theirs(bench: EngineTool, model: Path, threads: int, prompt_tokens: int) -> tuple[float, float]:
    """The same two rates from `llama-bench`, each with its own warm-up run."""
    prompt = _bench(bench, model, threads, prompt=prompt_tokens, generate=0, depth=0)
    generated = _bench(bench, model, threads, prompt=0, generate=OUTPUT_TOKENS - 1, depth=prompt_tokens)
    return prompt, generated


def _bench(bench: EngineTool, model: Path, threads: int, *, prompt: int, generate: int, depth: int) -> float:
    numbers = {"-t": threads, "-b": BATCH, "-ub": BATCH, "-p": prompt, "-n": generate, "-d": depth, "-r": 1}
    flags = [word for flag, value in numbers.items() for word in (flag, str(value))]
    _, stdout = timed_command([bench.path, "-m", model, *flags, "-o", "json"])
    tests = msgspec.json.decode(stdout, type=list[_Test])
    if len(tests) != 1 or (tests[0].n_prompt, tests[0].n_gen, tests[0].n_depth) != (prompt, generate, depth):
        msg = f"llama-bench ran other tests than asked: {tests}"
        raise RuntimeError(msg)
    return tests[0].avg_ts


def _result(
    kind: int, ours: list[tuple[float, float]], theirs: list[tuple[float, float]], prompt_tokens: int, threads: int
) -> Result:
    ratios = [mine[kind] / other[kind] for mine, other in zip(ours, theirs, strict=True)]
    first, third = quartiles(ratios)
    lengths = f"{prompt_tokens} tokens" if kind == 0 else f"{OUTPUT_TOKENS - 1} decode steps at depth {prompt_tokens}"
    note = (
        f"median of {PAIRS} pairs, quartiles {first:.2f} to {third:.2f}; medians {statistics.median(a[kind] for a in ours):.0f} "
        f"and {statistics.median(b[kind] for b in theirs):.0f} tokens/s; {lengths}, {threads} threads, {MODEL} {SCHEME}"
    )
    return judged(_NAMES[kind], statistics.median(ratios), MIN_RATIO, "x", note, at_least=True)
