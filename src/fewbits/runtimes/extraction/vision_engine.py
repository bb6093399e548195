"""The `vision` engine: a vision-language model that sees the page, asked again where its answer is wrong."""

from __future__ import annotations

from fewbits.extraction.issues import issues_in_words
from fewbits.records.extraction import ErrorKind, LabReport, StageName
from fewbits.runtimes.extraction.pipeline import EngineReport, Pixels, StageTimer
from fewbits.runtimes.extraction.preprocessing import prepared
from fewbits.runtimes.extraction.vision import Sampling, VisionExtraction, VisionModel

_WORDS = {
    ErrorKind.PARSE_FAILED: "no answer of the model could be read as a report",
    ErrorKind.TRUNCATED: "the answer was cut off at the limit of new tokens",
    ErrorKind.TIMEOUT: "the model did not end in time",
    ErrorKind.NO_TESTS: "the model found no test on the page",
}


class VisionEngine:
    """Classifies first, then asks for the content with what to look for in that panel."""

    def __init__(self, model: VisionModel, name: str, *, retries: int, sampling: Sampling | None = None) -> None:
        self._model = model
        self.name = name
        self._retries = retries
        self._sampling = sampling

    def reseed(self, seed: int) -> None:
        """Draw from this seed on, where answers are sampled."""
        if self._sampling is not None:
            self._sampling = Sampling(self._sampling.temperature, seed)

    def extract(self, pixels: Pixels, timer: StageTimer) -> EngineReport:
        """Read one page; what the model gets wrong is a value. Raises `BackendError`."""
        self._model.memory(reset_peak=True)
        timer.begin()
        kind = self._model.classify(pixels)
        # the model's own number would be a made-up one, so there is none
        timer.end(StageName.CLASSIFY, output=kind.value if kind is not None else "unknown")
        timer.begin()
        ready = prepared(pixels)
        timer.end(StageName.PREPROCESS, confidence=ready.confidence, reasoning="; ".join(ready.steps))
        timer.begin()
        found = self._model.extract(
            ready.pixels, retries=self._retries, report_type=kind, check=issues_in_words, sampling=self._sampling
        )
        timer.end(
            StageName.EXTRACT,
            output=_in_counts(found),
            retries=found.retries,
            error=found.error_kind.value if found.error_kind is not None else None,
        )
        return EngineReport(
            report=found.parsed.report or LabReport(),
            error_kind=found.error_kind,
            error=_WORDS.get(found.error_kind) if found.error_kind is not None else None,
            notes=ready.steps,
            gpu=self._model.memory(),
            sampled=self._sampling is not None,
            retries=found.retries,
        )


def _in_counts(found: VisionExtraction) -> str:
    tests = len(found.parsed.report.tests) if found.parsed.report is not None else 0
    return f"{tests} tests, {sum(answer.new_tokens for answer in found.answers)} new tokens in {len(found.answers)} answers"
