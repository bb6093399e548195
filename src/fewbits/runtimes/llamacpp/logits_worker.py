"""The child process that reads all logits of one model over an evaluation text, through the `cyllama` wheel.

    python -P -m fewbits.runtimes.llamacpp.logits_worker '{"job": "teacher", "model": ..., "threads": ..., ...}'

`teacher` cuts the text into windows and writes the reference's distributions in compact form; `compare` reads such a file
and prints what another model makes of the same tokens. The only line on stdout is one JSON object; llama.cpp's log goes to
stderr. A process of its own because a bad model aborts the whole process inside llama.cpp.

`probe` opens a teacher's file, says how many windows it has, and then answers each line `{"model": ..., "first": ...,
"windows": ...}` on stdin with one line: the same rows as `compare`, from window `first` on. Models are freed in between.

Windows, the beginning-of-text rule and the scored positions are llama-perplexity's, so that the numbers can be compared.
Source: llama.cpp, tools/perplexity/perplexity.cpp (`perplexity`, `kl_divergence`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from fewbits.analysis.distributions import (
    CompactDistribution,
    Logits,
    compact,
    compact_divergence,
    exact_divergence,
    negative_log_likelihood,
)

TEACHER_SCHEMA = "fewbits.teacher.v1"
MIN_WINDOWS = 2
AUDIT_POSITIONS = 32
"""Positions whose whole distribution the teacher keeps, spread evenly, so that the compact form can be checked against it."""
BATCH_TOKENS = 512
"""Tokens per call of the engine: bounds the memory for logits, and is llama.cpp's own compute batch."""
_DECIMALS = 9
"""Digits after the point of a divergence: a nanonat is far below what 32-bit logits resolve, and rows stay short."""
_FLASH_OFF = 0


class RefusedError(Exception):
    """The job cannot be done for a reason that callers know: a name of `DivergenceReason`, and one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Model:
    """A loaded model that shows all its logits. `flash` off takes llama.cpp's other attention kernel: same sum, other order."""

    def __init__(self, path: str, threads: int, window_tokens: int, *, flash: bool) -> None:
        from cyllama.llama import llama_cpp

        class WithVocabulary(llama_cpp.LlamaModel):  # type: ignore[misc]
            # get_logits_ith asks the model for this, and cyllama 0.2.18 forgot it there
            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        self._library = llama_cpp
        self._model = WithVocabulary(path_model=path, params=llama_cpp.LlamaModelParams(), verbose=False)
        self._vocabulary = self._model.get_vocab()
        params = llama_cpp.LlamaContextParams()
        params.n_ctx = window_tokens
        params.n_batch = params.n_ubatch = min(BATCH_TOKENS, window_tokens)
        params.n_threads = params.n_threads_batch = threads
        if not flash:
            params.flash_attn_type = _FLASH_OFF
        self._context = llama_cpp.LlamaContext(model=self._model, params=params, verbose=False)

    def close(self) -> None:
        """Free weights, context and buffers at once."""
        self._context.close()
        self._model.close()

    @property
    def n_vocab(self) -> int:
        """Number of tokens that the model knows."""
        return int(self._vocabulary.n_vocab)

    def vocabulary_digest(self) -> str:
        """sha256 over all token texts in order: equal digests mean that token ids mean the same."""
        hasher = hashlib.sha256()
        for token in range(self.n_vocab):
            hasher.update(self._vocabulary.get_text(token).encode("utf-8", "surrogateescape") + b"\0")
        return hasher.hexdigest()

    def windows(self, text: str, tokens_each: int, wanted: int) -> npt.NDArray[np.int32]:
        """Tokenize and cut: `int32[windows, tokens_each]`, the first ones of the text, at most `wanted`.

        Where the vocabulary asks for a beginning-of-text token, it replaces the first token of each window.
        """
        tokens = self._vocabulary.tokenize(text, True, False)
        found = min(wanted, len(tokens) // tokens_each)
        if found < MIN_WINDOWS:
            raise RefusedError(
                "TEXT_TOO_SHORT",
                f"the text has {len(tokens)} tokens; {MIN_WINDOWS} windows of {tokens_each} need {MIN_WINDOWS * tokens_each}",
            )
        cut = np.array(tokens[: found * tokens_each], dtype=np.int32).reshape(found, tokens_each)
        if self._vocabulary.get_add_bos():
            cut[:, 0] = self._vocabulary.token_bos()
        return cut

    def logits(self, window: npt.NDArray[np.int32]) -> Iterator[Logits]:
        """Yield `float32[n_vocab]` for each scored position of a window: the second half, but for the last token."""
        self._context.kv_cache_clear()
        first = first_scored(len(window))
        for start in range(0, len(window), BATCH_TOKENS):
            part = window[start : start + BATCH_TOKENS].tolist()
            batch = self._library.LlamaBatch(n_tokens=len(part), embd=0, n_seq_max=1)
            for offset, token in enumerate(part):
                batch.add(token, start + offset, [0], start + offset >= first)
            self._context.decode(batch)
            for offset in range(max(0, first - start), min(len(part), len(window) - 1 - start)):
                yield np.array(self._context.get_logits_ith(offset), dtype=np.float32)
            batch.close()


def first_scored(window_tokens: int) -> int:
    """Index of the first position whose prediction is scored; the last scored one is `window_tokens` - 2."""
    return window_tokens // 2


def scored_positions(window_tokens: int) -> int:
    """Scored positions per window."""
    return window_tokens - 1 - first_scored(window_tokens)


class ArrayWriter:
    """Writes named arrays into one file that `numpy.load` reads, one after the other: never more than one in memory."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w")

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Append one array."""
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, array, allow_pickle=False)

    def close(self) -> None:
        """Write the table of contents: without it the file cannot be read."""
        self._archive.close()


def audited(windows: int, positions: int) -> dict[int, list[int]]:
    """Which positions of which window keep their whole distribution: up to `AUDIT_POSITIONS`, evenly spread over all."""
    total = windows * positions
    chosen = np.unique(np.linspace(0, total - 1, min(AUDIT_POSITIONS, total)).round().astype(int)).tolist()
    found: dict[int, list[int]] = {}
    for index in chosen:
        found.setdefault(index // positions, []).append(index % positions)
    return found


def teach(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """Write the teacher's file, window by window."""
    text = Path(options["text"]).read_bytes().decode("utf-8")  # line ends stay as they are
    windows = model.windows(text, options["window_tokens"], options["windows"])
    partial = Path(options["output"] + ".writing")
    writer = ArrayWriter(partial)
    writer.add("schema", np.array(TEACHER_SCHEMA))
    writer.add("vocabulary", np.array(model.vocabulary_digest()))
    writer.add("windows", windows)
    audit = audited(len(windows), scored_positions(windows.shape[1]))
    for number, window in enumerate(windows):
        for name, array in _teach_window(model, window, audit.get(number, []), options["top_k"]):
            writer.add(f"{number}/{name}", array)
    writer.close()
    partial.replace(options["output"])
    return {"windows": len(windows)}


def _teach_window(
    model: Model, window: npt.NDArray[np.int32], audit: list[int], top_k: int
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the named arrays of one window; the first axis is the scored position (of `audit`: the audited ones)."""
    found: list[CompactDistribution] = []
    likely: list[int] = []
    nll: list[float] = []
    whole: list[Logits] = []
    targets = window[first_scored(len(window)) + 1 :].tolist()
    for position, logits in enumerate(model.logits(window)):
        found.append(compact(logits, top_k))
        likely.append(int(logits.argmax()))
        nll.append(negative_log_likelihood(logits, targets[position]))
        if position in audit:
            whole.append(logits)
    yield "ids", np.stack([row.ids for row in found])
    yield "logits", np.stack([row.logits for row in found])
    yield "log_norm", np.array([row.log_norm for row in found], dtype=np.float64)
    yield "log_tail", np.array([row.log_tail for row in found], dtype=np.float64)
    yield "likely", np.array(likely, dtype=np.int32)
    yield "nll", np.array(nll, dtype=np.float64)
    yield "audit_at", np.array(audit, dtype=np.int32)
    yield "audit", np.array(whole, dtype=np.float32).reshape(len(whole), model.n_vocab)


def compare(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """Read a teacher's file and compare this model with it, window by window."""
    with open_teacher(options["teacher"]) as teacher:
        return compare_windows(model, teacher, 0, options["windows"])


def open_teacher(path: str) -> Any:
    """Open a teacher's file; its arrays are read on access. Raises `ValueError` for anything else."""
    teacher = np.load(path, allow_pickle=False)
    if str(teacher["schema"]) != TEACHER_SCHEMA:
        msg = f"{path} is no {TEACHER_SCHEMA}"
        raise ValueError(msg)
    return teacher


def compare_windows(model: Model, teacher: Any, first: int, count: int) -> dict[str, Any]:
    """Compare this model with an open teacher on windows `first`..`first + count - 1`, as far as there are any."""
    if str(teacher["vocabulary"]) != model.vocabulary_digest():
        raise RefusedError("VOCABULARY_DIFFERS", "the variant's tokens are not the reference's")
    windows = teacher["windows"][first : first + count]
    audits: list[tuple[float, float]] = []
    rows = [_compare_window(model, window, first + number, teacher, audits) for number, window in enumerate(windows)]
    return {"windows": rows, "audit": _audit(audits)}


def probe(options: dict[str, Any], requests: Iterable[str], answer: TextIO) -> None:
    """Answer requests until there are no more; each loads a model, compares it, and frees it."""
    with open_teacher(options["teacher"]) as teacher:
        _say(answer, {"windows": len(teacher["windows"])})
        for line in requests:
            request = json.loads(line)
            model = Model(request["model"], options["threads"], options["window_tokens"], flash=options["flash"])
            try:
                _say(answer, compare_windows(model, teacher, request["first"], request["windows"]))
            except RefusedError as refusal:
                _say(answer, {"refused": refusal.reason, "detail": refusal.detail})
            finally:
                model.close()


def _say(answer: TextIO, result: dict[str, Any]) -> None:
    answer.write(json.dumps(result) + "\n")
    answer.flush()


def _compare_window(
    model: Model, window: npt.NDArray[np.int32], number: int, teacher: Any, audits: list[tuple[float, float]]
) -> dict[str, Any]:
    # each access reads the array from the file again, so each is read once
    names = ("ids", "logits", "log_norm", "log_tail", "likely", "nll", "audit_at", "audit")
    kept = {name: teacher[f"{number}/{name}"] for name in names}
    whole = dict(zip(kept["audit_at"].tolist(), kept["audit"], strict=True))
    targets = window[first_scored(len(window)) + 1 :].tolist()
    divergences: list[float] = []
    nll: list[float] = []
    same_top = 0
    for position, logits in enumerate(model.logits(window)):
        reference = CompactDistribution(
            ids=kept["ids"][position],
            logits=kept["logits"][position],
            log_norm=float(kept["log_norm"][position]),
            log_tail=float(kept["log_tail"][position]),
        )
        divergence = compact_divergence(reference, logits)
        divergences.append(round(divergence, _DECIMALS))
        same_top += int(logits.argmax()) == int(kept["likely"][position])
        nll.append(negative_log_likelihood(logits, targets[position]))
        if position in whole:
            audits.append((divergence, exact_divergence(whole[position], logits)))
    return {
        "kl_nats": divergences,
        "same_top": same_top,
        "reference_nll_nats": math.fsum(kept["nll"].tolist()),
        "variant_nll_nats": math.fsum(nll),
    }


def _audit(pairs: list[tuple[float, float]]) -> dict[str, Any] | None:
    if not pairs:
        return None
    compacts, exacts = zip(*pairs, strict=True)
    return {"positions": len(pairs), "compact_nats": sum(compacts) / len(pairs), "exact_nats": sum(exacts) / len(pairs)}


def main() -> int:
    """Do one job. Exit code 0 with an answer (a known refusal is one), 1 when the model cannot be loaded or read."""
    options = json.loads(sys.argv[1])
    # the library prints to fd 1 as it likes; the answer must be the only thing there
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        if options["job"] == "probe":
            probe(options, sys.stdin, answer)
            return 0
        model = Model(options["model"], options["threads"], options["window_tokens"], flash=options["flash"])
        result = teach(model, options) if options["job"] == "teacher" else compare(model, options)
    except RefusedError as refusal:
        result = {"refused": refusal.reason, "detail": refusal.detail}
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        sys.stderr.write(f"logits worker: {type(error).__name__}: {error}\n")
        return 1
    _say(answer, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
