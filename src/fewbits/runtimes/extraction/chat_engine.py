"""The `ocr+chat` engine: recognised text, put into rows by a chat model that is held to the JSON Schema of a report.

Pure composition: what reads and what answers are given to it. An answer is hostile input: bounded, and only ever parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fewbits.extraction.answers import read_answer
from fewbits.extraction.classification import classify
from fewbits.extraction.grounding import grounded
from fewbits.extraction.issues import issues_in_words
from fewbits.extraction.prompts import chat_prompt, report_schema, retry_prompt
from fewbits.records.extraction import ErrorKind, LabReport, StageName
from fewbits.runtimes.extraction.pipeline import EngineReport, Pixels, StageTimer

_WORDS = {
    ErrorKind.NO_TEXT: "there is no text on the page that could be read",
    ErrorKind.NO_TESTS: "the model found no test in the page's text",
    ErrorKind.PARSE_FAILED: "no answer of the model could be read as a report",
    ErrorKind.TRUNCATED: "the answer was cut off at the limit of new tokens, or at the end of the model's context",
    ErrorKind.TIMEOUT: "the model did not end in time",
    ErrorKind.ENGINE_FAILED: "the page's text does not fit into the model's context",
}


@dataclass(frozen=True, slots=True)
class PageText:
    """The text of a page: `lines` from top to bottom, columns parted by ` | `. `seconds` is what reading took."""

    lines: tuple[str, ...]
    words: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """One answer. `truncated`: the limit of tokens came before the model's end. `failure` says why there is no answer: `TIMEOUT`,
    or `ENGINE_FAILED` for a question that is longer than the context. Seconds and tokens are the model's own counts.
    """

    text: str = ""
    truncated: bool = False
    failure: ErrorKind | None = None
    prompt_seconds: float | None = None
    generation_seconds: float | None = None
    new_tokens: int | None = None


Prepare = Callable[[Pixels, StageTimer], tuple[Pixels, tuple[str, ...]]]
"""Brings a page into the form that is read, as a stage of its own; returns it and what was done."""
ReadText = Callable[[Pixels], PageText]
Ask = Callable[[str, str, dict[str, Any], int], ChatAnswer]
"""Asks with system prompt, user prompt, the JSON Schema of the answer, and a seed."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one answer came to. `problems` are what the model is told when it is asked again."""

    report: LabReport | None
    kind: ErrorKind | None
    problems: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Order attempts, better ones first: a report, with tests, with few problems."""
        return self.report is None, self.report is None or not self.report.tests, len(self.problems)


class ChatEngine:
    """Reads a page's text and asks for its rows, again with what was wrong, at most `retries` times.

    It classifies what was answered, so that stage comes third. Chat models measure no confidence, so rows have none.
    """

    def __init__(
        self, prepare: Prepare, read_text: ReadText, ask: Ask, name: str, *, retries: int, sampled: bool = False
    ) -> None:
        self._prepare, self._read_text, self._ask = prepare, read_text, ask
        self.name = name
        self._retries = retries
        self._sampled = sampled
        self._seed = 0

    def reseed(self, seed: int) -> None:
        """Draw from this seed on; a greedy model answers the same whatever it is."""
        self._seed = seed

    def extract(self, pixels: Pixels, timer: StageTimer) -> EngineReport:
        """Read one page; what is not on it and what the model gets wrong are values. Raises what a broken engine raises."""
        page, notes = self._prepare(pixels, timer)
        timer.begin()
        text = self._read_text(page)
        notes += text.notes
        if not text.lines:
            timer.end(StageName.EXTRACT, output="0 words", error=ErrorKind.NO_TEXT.value, parts_seconds=_parts(text, ()))
            return EngineReport(LabReport(), ErrorKind.NO_TEXT, _WORDS[ErrorKind.NO_TEXT], notes)
        found, answers = self._answers_about(text.lines)
        retries = len(answers) - 1
        timer.end(
            StageName.EXTRACT,
            input_summary=f"{page.shape[1]} x {page.shape[0]} pixels",
            output=_in_counts(text, found, answers),
            retries=retries,
            error=found.kind.value if found.kind is not None else None,
            parts_seconds=_parts(text, answers),
        )
        report = found.report or LabReport()
        if report.tests:
            report = _classified(report, timer)
        words = _WORDS[found.kind] if found.kind is not None else None
        return EngineReport(report, found.kind, words, notes, sampled=self._sampled, retries=retries)

    def _answers_about(self, lines: Sequence[str]) -> tuple[_Attempt, list[ChatAnswer]]:
        """Return the best attempt, the first of equals, and every answer. A cut-off answer would be cut off again: no retry."""
        system, user = chat_prompt(lines)
        schema = report_schema()
        prompt = user
        answers: list[ChatAnswer] = []
        best: _Attempt | None = None
        while True:
            answer = self._ask(system, prompt, schema, self._seed)
            answers.append(answer)
            attempt = _attempt(answer, lines)
            if best is None or attempt.rank < best.rank:
                best = attempt
            good = attempt.report is not None and not attempt.problems
            if good or answer.truncated or answer.failure is not None or len(answers) > self._retries:
                return best, answers
            prompt = retry_prompt(user, attempt.problems)


def _attempt(answer: ChatAnswer, lines: Sequence[str]) -> _Attempt:
    if answer.failure is not None:
        return _Attempt(None, answer.failure, ())
    parsed = read_answer(answer.text, truncated=answer.truncated)
    if parsed.report is None:
        kind = ErrorKind.TRUNCATED if parsed.truncated else ErrorKind.PARSE_FAILED
        return _Attempt(None, kind, parsed.problems)
    report, made_up = grounded(parsed.report, lines)
    kind_of_report = None if report.tests else ErrorKind.NO_TESTS
    return _Attempt(report, kind_of_report, (*parsed.problems, *made_up, *issues_in_words(report)))


def _classified(report: LabReport, timer: StageTimer) -> LabReport:
    """Return the report with the panel that its tests belong to: the model's own word for it decides nothing."""
    timer.begin()
    kind = classify([test.test_name for test in report.tests])
    timer.end(
        StageName.CLASSIFY,
        confidence=kind.confidence,
        confidence_meaning="share of the known tests that belong to the panel",
        output=kind.report_type.value,
    )
    return msgspec.structs.replace(report, report_type=kind.report_type)


def _in_counts(text: PageText, found: _Attempt, answers: Sequence[ChatAnswer]) -> str:
    tests = len(found.report.tests) if found.report is not None else 0
    tokens = _total([answer.new_tokens for answer in answers])
    written = "an unknown number of" if tokens is None else f"{tokens:.0f}"
    answered = "1 answer" if len(answers) == 1 else f"{len(answers)} answers"
    return f"{text.words} words, {len(text.lines)} lines, {tests} tests, {written} new tokens in {answered}"


def _parts(text: PageText, answers: Sequence[ChatAnswer]) -> dict[str, float]:
    """Return what the stage's time went to: `reading`, and of all answers `prompt` and `generation`, as far as reported."""
    prompt = _total([answer.prompt_seconds for answer in answers])
    generation = _total([answer.generation_seconds for answer in answers])
    parts = {"reading": text.seconds, "prompt": prompt, "generation": generation}
    return {name: seconds for name, seconds in parts.items() if seconds is not None}


def _total(values: Sequence[float | None]) -> float | None:
    """Return the sum; `None` where one is not known, or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
