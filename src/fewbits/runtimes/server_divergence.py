"""Divergence of models that a server holds: from the log-probabilities that it reports, one position per request.

A server shows the few most likely tokens of the position after a prompt. Prompts are beginnings of windows of the evaluation
text, cut before a word; the divergence is over the tokens that both models report and one cell for all the rest, so it
is a lower bound (data-processing inequality; see `analysis.distributions`). Which token really follows is not known to us
without the model's tokenizer, so there is no likelihood of the text, and no perplexity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fewbits.analysis.distributions import shared_divergence
from fewbits.core.codec import decode, digest, encode_canonical
from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write
from fewbits.records.base import Record
from fewbits.records.divergence import DivergenceMethod, DivergenceReason, WindowDivergence
from fewbits.records.variant import Variant
from fewbits.runtimes.base import (
    Comparison,
    DivergenceJob,
    DivergenceUnavailableError,
    Instrument,
    ReportsLogProbabilities,
    Runtime,
    RuntimeSession,
    floor_windows,
)
from fewbits.runtimes.http_stream import RefusedError

MOST_REPORTED, FEWEST_REPORTED = 20, 5
"""Tokens asked for: the most that Ollama and vLLM allow by default; servers that refuse are asked for the OpenAI API's limit."""
POSITIONS_PER_WINDOW = 8
MAX_WINDOWS = 32
"""Bounds the requests to 256 per model."""
CHARACTERS_PER_TOKEN = 3
"""Fewer than most tokenizers reach on prose, so that a window fits into the context it is meant for."""
_TEACHER_SCHEMA = "fewbits.server-teacher.v1"
_NO_SUCH_ROUTE = frozenset({404, 405, 501})
_BAD_REQUEST = frozenset({400, 422})
_WORD_START = re.compile(r"\s+\S")


class ServerTeacher(Record, frozen=True, kw_only=True):
    """The reference's file: the reported log-probabilities of each position of each window."""

    schema_version: str = _TEACHER_SCHEMA
    windows: tuple[tuple[dict[str, float], ...], ...]


class ServerMeter:
    """Measures through a runtime whose sessions report log-probabilities. Remembers what the last session called itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._engine = runtime.capabilities.name
        self._engine_version = ""
        self._limit = MOST_REPORTED

    def instrument(self, job: DivergenceJob) -> Instrument:
        """The server as it called itself in the last session; its threads are not ours to set."""
        return Instrument(
            method=DivergenceMethod.SERVER_TOP_LOGPROBS,
            engine=self._engine,
            engine_version=self._engine_version,
            threads=None,
            top_k=self._reported(job),
        )

    def teacher_key(self, reference: Variant, job: DivergenceJob) -> str | None:
        """Content address where the server gives its model a digest; a name alone proves no weights, so nothing is kept."""
        if reference.artifact.server_digest is None:
            return None
        return digest(
            {
                "schema": _TEACHER_SCHEMA,
                "runtime": self._runtime.capabilities.name,
                "server_digest": reference.artifact.server_digest,
                "text_digest": job.evaluation.digest,
                "windows": job.policy.windows,
                "window_tokens": job.policy.window_tokens,
                "reported": self._reported(job),
            }
        )

    def read_teacher(self, reference: Variant, job: DivergenceJob, output: Path) -> None:
        """Ask the reference at every position. Raises `DivergenceUnavailableError` and what the runtime raises."""
        windows = self._ask(reference, prefixes(job), job)
        atomic_write(output, encode_canonical(ServerTeacher(windows=windows)))

    def compare(self, variant: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        """Ask a variant at the same positions. Raises `DivergenceUnavailableError` and what the runtime raises."""
        return self._compare(variant, teacher, job, len(prefixes(job)))

    def compare_with_itself(self, reference: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        """Ask the reference again: what the server's own repeatability hides."""
        return self._compare(reference, teacher, job, min(len(prefixes(job)), floor_windows(job.policy.windows)))

    def _compare(self, variant: Variant, teacher: Path, job: DivergenceJob, windows: int) -> Comparison:
        references = decode(teacher.read_bytes(), ServerTeacher, str(teacher)).windows[:windows]
        found = self._ask(variant, prefixes(job)[:windows], job)
        if [len(row) for row in references] != [len(row) for row in found]:
            msg = f"{teacher} was read at other positions than these"
            raise StoreError(msg)
        rows = tuple(_compare_window(mine, theirs) for mine, theirs in zip(references, found, strict=True))
        asked = sum(len(row) for row in found)
        return Comparison(rows, None, None, f"{asked} positions, the {self._reported(job)} most likely tokens of each")

    def _ask(
        self, variant: Variant, windows: Sequence[Sequence[str]], job: DivergenceJob
    ) -> tuple[tuple[dict[str, float], ...], ...]:
        with self._session(variant, job) as session:
            return tuple(tuple(self._position(session, prefix, job) for prefix in window) for window in windows)

    @contextmanager
    def _session(self, variant: Variant, job: DivergenceJob) -> Iterator[RuntimeSession]:
        session = self._runtime.open(variant, job.controls, job.load_timeout_seconds)
        try:
            self._engine, self._engine_version = session.engine, session.engine_version
            session.identity()
            yield session
        finally:
            session.close()

    def _position(self, session: RuntimeSession, prefix: str, job: DivergenceJob) -> dict[str, float]:
        if not isinstance(session, ReportsLogProbabilities):
            raise DivergenceUnavailableError(DivergenceReason.NO_LOG_PROBABILITIES, f"{self._engine} reports none")
        try:
            found = session.top_log_probabilities(prefix, self._reported(job), job.timeout_seconds)
        except RefusedError as error:
            if error.status in _NO_SUCH_ROUTE:
                raise DivergenceUnavailableError(DivergenceReason.NO_LOG_PROBABILITIES, str(error)) from error
            if error.status not in _BAD_REQUEST or self._limit == FEWEST_REPORTED:
                raise
            self._limit = FEWEST_REPORTED
            return self._position(session, prefix, job)
        if not found:
            raise DivergenceUnavailableError(
                DivergenceReason.NO_LOG_PROBABILITIES, f"{self._engine} answered without log-probabilities"
            )
        return dict(found)

    def _reported(self, job: DivergenceJob) -> int:
        return min(job.policy.top_k, self._limit)


def prefixes(job: DivergenceJob) -> list[list[str]]:
    """Cut the text into prompts: windows of equal length, and in each up to 8 beginnings that end before a word.

    The cuts lie evenly in the second half of a window, so that each has context. Raises `DivergenceUnavailableError` where
    the text has no two windows.
    """
    each = job.policy.window_tokens * CHARACTERS_PER_TOKEN
    wanted = min(job.policy.windows, MAX_WINDOWS)
    count = min(wanted, len(job.text) // each)
    if count < 2:
        detail = f"the text has {len(job.text)} characters; 2 windows need {2 * each}"
        raise DivergenceUnavailableError(DivergenceReason.TEXT_TOO_SHORT, detail)
    return [_beginnings(job.text[start : start + each]) for start in range(0, count * each, each)]


def _beginnings(window: str) -> list[str]:
    """Up to 8 beginnings of a window, each ending right before white space; at least one, should it hold none at all."""
    half = len(window) // 2
    ends = [match.start() for match in _WORD_START.finditer(window, half)]
    if not ends:
        return [window]
    step = max(1, len(ends) // POSITIONS_PER_WINDOW)
    return [window[:end] for end in ends[::step][:POSITIONS_PER_WINDOW]]


def _compare_window(references: Sequence[dict[str, float]], found: Sequence[dict[str, float]]) -> WindowDivergence:
    pairs = list(zip(references, found, strict=True))
    return WindowDivergence(
        kl_nats=tuple(shared_divergence(reference, other) for reference, other in pairs),
        same_top=sum(_top(reference) == _top(other) for reference, other in pairs),
        reference_nll_nats=None,
        variant_nll_nats=None,
    )


def _top(reported: dict[str, float]) -> str:
    return max(reported, key=lambda token: (reported[token], token))
