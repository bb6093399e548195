"""Divergence of GGUF files: all logits through the `cyllama` wheel, each model in a child process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fewbits.core.codec import digest
from fewbits.core.engines import CYLLAMA, EngineTool, find_wheel
from fewbits.core.errors import BackendError
from fewbits.core.process import run_command
from fewbits.records.divergence import DivergenceMethod, DivergenceReason, TruncationAudit, WindowDivergence
from fewbits.records.variant import Variant
from fewbits.runtimes.base import Comparison, DivergenceJob, DivergenceUnavailableError, Instrument, floor_windows
from fewbits.runtimes.placement import resolve_threads

ENGINE = "cyllama"
_WORKER = "fewbits.runtimes.llamacpp.logits_worker"
_TEACHER_SCHEMA = "fewbits.llamacpp-teacher.v1"
_SHORT_DIGEST = 12
_FLOOR_DETAIL = "the reference again, with {threads} instead of {teacher} threads and the attention kernel {kernel} flash"

T = TypeVar("T")


class _Refusal(msgspec.Struct):
    """What the worker answers when it cannot do the job."""

    refused: DivergenceReason | None = None
    detail: str = ""


class _Taught(msgspec.Struct):
    windows: int


class _Compared(msgspec.Struct):
    windows: tuple[WindowDivergence, ...]
    audit: TruncationAudit | None


class LlamaCppMeter:
    """Measures GGUF files. Looks for its engine on first use.

    `flash` is llama.cpp's attention kernel, on as in its server; the error floor takes the other one.
    """

    def __init__(self, tool: EngineTool | None = None, *, flash: bool = True) -> None:
        self._tool = tool
        self._flash = flash

    def instrument(self, job: DivergenceJob) -> Instrument:
        """`cyllama` with its version and the start of the sha256 of its library (both empty where it is not installed)."""
        tool = self._find()
        return Instrument(
            method=DivergenceMethod.FULL_LOGITS,
            engine=ENGINE,
            engine_version=f"{tool.version} (sha256 {tool.sha256[:_SHORT_DIGEST]})" if tool else "",
            threads=resolve_threads(job.controls.threads),
            top_k=job.policy.top_k,
        )

    def teacher_key(self, reference: Variant, job: DivergenceJob) -> str | None:
        """Everything that the file depends on: weights, text, how it is cut and kept, engine, threads."""
        tool = self._find()
        if reference.artifact.sha256 is None or tool is None:
            return None
        return digest(
            {
                "schema": _TEACHER_SCHEMA,
                "reference_sha256": reference.artifact.sha256,
                "text_digest": job.evaluation.digest,
                "windows": job.policy.windows,
                "window_tokens": job.policy.window_tokens,
                "top_k": job.policy.top_k,
                "engine_version": tool.version,
                "engine_sha256": tool.sha256,
                "threads": resolve_threads(job.controls.threads),
                "flash": self._flash,
            }
        )

    def read_teacher(self, reference: Variant, job: DivergenceJob, output: Path) -> None:
        """Read the reference. Raises `DivergenceUnavailableError` (no engine, text too short), `BackendError`."""
        with tempfile.TemporaryDirectory(prefix="fewbits-text-") as folder:
            text = Path(folder) / "text"
            text.write_bytes(job.text.encode("utf-8"))
            options = {"text": str(text), "output": str(output), "windows": job.policy.windows, "top_k": job.policy.top_k}
            self._run("teacher", reference, job, options, _Taught)

    def compare(self, variant: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        """Compare a variant. Raises `DivergenceUnavailableError` (no engine, other vocabulary), `BackendError`."""
        threads = resolve_threads(job.controls.threads)
        options = {"teacher": str(teacher), "windows": job.policy.windows}
        found = self._run("compare", variant, job, options, _Compared)
        short = len(found.windows) < job.policy.windows
        detail = f"the text has only {len(found.windows)} of the {job.policy.windows} windows asked for" if short else ""
        return Comparison(found.windows, found.audit, threads, detail)

    def compare_with_itself(self, reference: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        """Read the reference again with another thread count and the other attention kernel.

        On a CPU the thread count alone changes no bit (measured: llama.cpp b9190, x86-64): each dot product is still summed
        by one thread in one order. The other attention kernel sums in another order, which is as right as the first.
        """
        teacher_threads = resolve_threads(job.controls.threads)
        threads = 1 if teacher_threads > 1 else 2
        options = {"teacher": str(teacher), "windows": floor_windows(job.policy.windows), "threads": threads}
        found = self._run("compare", reference, job, options | {"flash": not self._flash}, _Compared)
        kernel = "without" if self._flash else "with"
        detail = _FLOOR_DETAIL.format(threads=threads, teacher=teacher_threads, kernel=kernel)
        return Comparison(found.windows, found.audit, threads, detail)

    def _find(self) -> EngineTool | None:
        if self._tool is None:
            self._tool = find_wheel(ENGINE, CYLLAMA)
        return self._tool

    def _run(self, job_name: str, variant: Variant, job: DivergenceJob, options: dict[str, Any], answer: type[T]) -> T:
        """Run the worker to its end and read its answer."""
        if self._find() is None:
            remedy = "install it with `pip install 'fewbits[llamacpp]'`"
            raise DivergenceUnavailableError(DivergenceReason.NO_ENGINE, f"no engine that shows logits: {remedy}")
        message = {
            "job": job_name,
            "model": str(variant.path),
            "threads": resolve_threads(job.controls.threads),
            "window_tokens": job.policy.window_tokens,
            "flash": self._flash,
        } | options
        argv = [sys.executable, "-P", "-m", _WORKER, json.dumps(message)]
        result = run_command(argv, timeout_seconds=job.timeout_seconds)
        if result.timed_out:
            raise BackendError(ENGINE, f"was not done after {job.timeout_seconds:g} s", tail=result.tail)
        if not result.ok:
            raise BackendError(ENGINE, "failed while reading logits", returncode=result.returncode, tail=result.tail)
        try:
            refusal = msgspec.json.decode(result.stdout, type=_Refusal)
            if refusal.refused is None:
                return msgspec.json.decode(result.stdout, type=answer)
        except msgspec.DecodeError as error:
            raise BackendError(ENGINE, f"its answer cannot be read: {error}", tail=result.tail) from error
        raise DivergenceUnavailableError(refusal.refused, refusal.detail)
