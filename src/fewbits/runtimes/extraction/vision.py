"""Lab reports read by a vision-language model through transformers: loaded once, asked page by page.

Every precision sees the same prompt by the same chat template, and only what the model adds is decoded.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fewbits.extraction.answers import ParsedAnswer, read_answer, read_report_type
from fewbits.extraction.prompts import classify_prompt, extraction_prompt, retry_prompt
from fewbits.records.extraction import ErrorKind, GpuMemorySnapshot, LabReport, ReportType
from fewbits.runtimes.extraction.vision_ask import Pixels, Sampling, VisionAnswer, ask_model, model_inputs
from fewbits.runtimes.extraction.vision_census import VisionDescription, gpu_memory, take_census
from fewbits.runtimes.extraction.vision_load import LoadedVision, VisionOptions, load_vision, model_digest

__all__ = ["Sampling", "VisionExtraction", "VisionModel"]

Check = Callable[[LabReport], Sequence[str]]


@dataclass(frozen=True, slots=True)
class VisionExtraction:
    """What was read off one page. `error_kind` is `None` where there is a report; `problems` are those of the answer taken."""

    parsed: ParsedAnswer
    error_kind: ErrorKind | None
    problems: tuple[str, ...]
    retries: int
    """Questions after the first one."""
    answers: tuple[VisionAnswer, ...]
    """Every answer, in order."""


class VisionModel:
    """A loaded model. Use `close` or `with` to let its memory go. Not for several threads at once."""

    def __init__(self, options: VisionOptions) -> None:
        """Load the model. Raises as `vision_load.load_vision`."""
        self.options = options
        self._loaded: LoadedVision | None = load_vision(options)

    def __enter__(self) -> VisionModel:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the model and its memory go."""
        self._loaded = None
        if self.options.device == "cuda":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the model's files (read on first use: gigabytes take seconds)."""
        return model_digest(self._open().folder)

    def describe(self) -> VisionDescription:
        """Say what answers, and in which precision it really is."""
        model = self._open().model
        return VisionDescription(
            model=self.options.model,
            revision=self.options.revision,
            digest=self.digest,
            architecture=type(model).__name__,
            device=str(model.device),
            asked_dtype=self.options.dtype,
            asked_weight_bits=self.options.weight_bits,
            census=take_census(model),
            versions=_versions(),
        )

    def memory(self, *, reset_peak: bool = False) -> GpuMemorySnapshot | None:
        """Return the GPU's memory now and at its peak; `None` on the CPU."""
        return gpu_memory(self.options.device, reset_peak=reset_peak)

    def classify(self, pixels: Pixels) -> ReportType | None:
        """Ask which panel a page shows; `None` where the answer says none."""
        return read_report_type(self.ask(pixels, classify_prompt()).text)

    def extract(
        self,
        pixels: Pixels,
        *,
        retries: int,
        report_type: ReportType | None = None,
        custom_prompt: str | None = None,
        check: Check | None = None,
        sampling: Sampling | None = None,
    ) -> VisionExtraction:
        """Ask for a page's content, uint8[height, width, 3], and again with what was wrong, at most `retries` times.

        Wrong is what cannot be read, what was dropped, and what `check` says about the report (issues of validation, in words).
        The answer with a report and the fewest problems is taken, the first of equals. Raises `BackendError`.
        """
        deadline = self._deadline()
        first = prompt = extraction_prompt(report_type, custom_prompt)
        answers: list[VisionAnswer] = []
        best: tuple[ParsedAnswer, tuple[str, ...]] | None = None
        while True:
            answer = self._ask(pixels, prompt, sampling, deadline)
            answers.append(answer)
            parsed = read_answer(answer.text, truncated=answer.truncated or answer.timed_out)
            found = (parsed, _problems(parsed, check))
            if best is None or _rank(found) < _rank(best):
                best = found
            if not found[1] or len(answers) > retries or answer.timed_out:
                break
            prompt = retry_prompt(first, found[1])
        kind = _error_kind(best[0], timed_out=answers[-1].timed_out)
        return VisionExtraction(best[0], kind, best[1], len(answers) - 1, tuple(answers))

    def ask(self, pixels: Pixels, prompt: str, *, sampling: Sampling | None = None) -> VisionAnswer:
        """Ask one thing about a page; greedy without `sampling`. Raises `SpecError` for what is no page, `BackendError`."""
        return self._ask(pixels, prompt, sampling, self._deadline())

    def prompt_tokens(self, pixels: Pixels, prompt: str) -> tuple[int, ...]:
        """Return the tokens of a question, the picture's included: equal in every precision of one model."""
        return tuple(model_inputs(self._open(), pixels, prompt)["input_ids"][0].tolist())

    def _ask(self, pixels: Pixels, prompt: str, sampling: Sampling | None, deadline: float | None) -> VisionAnswer:
        limit = self.options.max_new_tokens
        return ask_model(self._open(), pixels, prompt, max_new_tokens=limit, sampling=sampling, deadline=deadline)

    def _deadline(self) -> float | None:
        limit = self.options.timeout_seconds
        return None if limit is None else time.monotonic() + limit

    def _open(self) -> LoadedVision:
        if self._loaded is None:
            msg = "the model was closed"
            raise RuntimeError(msg)
        return self._loaded


def _problems(parsed: ParsedAnswer, check: Check | None) -> tuple[str, ...]:
    if parsed.report is None or check is None:
        return parsed.problems
    return (*parsed.problems, *check(parsed.report))


def _rank(found: tuple[ParsedAnswer, tuple[str, ...]]) -> tuple[bool, bool, int]:
    """Order answers, better ones first: a report, with tests, with few problems."""
    parsed, problems = found
    return parsed.report is None, parsed.report is None or not parsed.report.tests, len(problems)


def _error_kind(parsed: ParsedAnswer, *, timed_out: bool) -> ErrorKind | None:
    if parsed.report is not None:
        return None if parsed.report.tests else ErrorKind.NO_TESTS
    if timed_out:
        return ErrorKind.TIMEOUT
    return ErrorKind.TRUNCATED if parsed.truncated else ErrorKind.PARSE_FAILED


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("torch", "transformers", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
