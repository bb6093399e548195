"""The base of every record, and the closed sets of words that records use."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A share, 0..1."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of records that we write: immutable, unknown keys are refused on decoding.

    msgspec does not inherit `kw_only`, and mypy wants `frozen` spelled out, so every subclass repeats both.
    """


class OpenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Base of views that read *some* fields of a larger record; unknown keys are skipped (fast)."""


class TokenStatus(StrEnum):
    """Which of the two telemetry pairs a runtime reported (roadmap, guiding rule 1)."""

    OK = "OK"
    TOKEN_COUNT_UNAVAILABLE = "TOKEN_COUNT_UNAVAILABLE"  # noqa: S105 - a status, not a password
    TIMING_UNAVAILABLE = "TIMING_UNAVAILABLE"
    TOKEN_AND_TIMING_UNAVAILABLE = "TOKEN_AND_TIMING_UNAVAILABLE"  # noqa: S105
    NO_TOKENS = "NO_TOKENS"
    """The work has no tokens (a detector's image), and the engine reported its time: nothing is missing."""


COMPLETE_TELEMETRY = frozenset({TokenStatus.OK, TokenStatus.NO_TOKENS})
"""Statuses of replies that told everything their kind of work has to tell."""


class RunQuality(StrEnum):
    """Whether foreign disturbance touched a trial (or a row of trials)."""

    CLEAN = "CLEAN"
    POLLUTED = "POLLUTED"


class PollutionReason(StrEnum):
    """Why a trial is `POLLUTED`."""

    FOREIGN_CPU_LOAD = "FOREIGN_CPU_LOAD"
    CPU_PRESSURE = "CPU_PRESSURE"
    CPU_STEAL = "CPU_STEAL"
    MEMORY_PRESSURE = "MEMORY_PRESSURE"
    IO_PRESSURE = "IO_PRESSURE"
    THERMAL_THROTTLING = "THERMAL_THROTTLING"
    MISSING_TOKEN_TIMINGS = "MISSING_TOKEN_TIMINGS"  # noqa: S105
    CONTROLS_NOT_APPLIED = "CONTROLS_NOT_APPLIED"
    HIGH_ORCHESTRATION_OVERHEAD = "HIGH_ORCHESTRATION_OVERHEAD"


class TrialStatus(StrEnum):
    """How a trial ended. Everything but `OK` scores 0 and stays in the mean."""

    OK = "OK"
    EMPTY = "EMPTY"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    PROTOCOL_ERROR = "PROTOCOL_ERROR"


class Unavailable(StrEnum):
    """Why a number is `null`. Closed set; a reader can rely on it."""

    NOT_REPORTED = "NOT_REPORTED"
    """The runtime did not report it."""
    NOT_STREAMED = "NOT_STREAMED"
    """The reply came in one piece, so there is no first-token moment."""
    NO_OUTPUT = "NO_OUTPUT"
    """Nothing was generated, so the quantity does not exist."""
    ZERO_DENOMINATOR = "ZERO_DENOMINATOR"
    TOKEN_STATUS_NOT_OK = "TOKEN_STATUS_NOT_OK"  # noqa: S105
    NO_TOKENS = "NO_TOKENS"
    """This kind of work has no tokens, so the quantity does not exist."""
    NO_SENSOR = "NO_SENSOR"
    REMOTE_PROCESS = "REMOTE_PROCESS"
    """The process that holds the weights is not on this machine, or not ours to read."""
    NOT_SUPPORTED = "NOT_SUPPORTED"
    """The runtime cannot be told or asked."""
    NO_CHECKS = "NO_CHECKS"
    NO_REFERENCE = "NO_REFERENCE"
    NOTHING_SAVED = "NOTHING_SAVED"
    """The reference needs no more memory than this variant, so quality lost per GiB saved does not exist."""
    TOO_FEW_SAMPLES = "TOO_FEW_SAMPLES"
    TRIAL_FAILED = "TRIAL_FAILED"
    NOT_CODE = "NOT_CODE"
    NO_CLEAN_TRIALS = "NO_CLEAN_TRIALS"
    CLOCKS_DISAGREE = "CLOCKS_DISAGREE"
    """Two clocks or two readings of a counter contradict each other (the engine claims more time than passed)."""
    COUNTS_DISAGREE = "COUNTS_DISAGREE"
    """Two reported counts contradict each other (more cached prompt tokens than prompt tokens)."""
    NOMINAL_BITS = "NOMINAL_BITS"
    """There is no file to measure: the variant is ranked by the bits that its tag stands for."""
    NO_DECODE_STEP = "NO_DECODE_STEP"
    """The only token came out of the prompt pass: nothing was decoded after it."""
    NO_TRIALS = "NO_TRIALS"
    """The journal holds no trial that could show it."""
    ALREADY_DECIDED = "ALREADY_DECIDED"
    """There is a verdict, so nothing further is needed."""
    AT_THE_MARGIN = "AT_THE_MARGIN"
    """No practical number of further items would decide: the difference seems to lie at the margin itself."""
    NOT_MEASURED = "NOT_MEASURED"
    """It was switched off, or this kind of runtime cannot show it."""
    NOT_IMPORTED = "NOT_IMPORTED"
    """The older summary that this one was converted from does not hold it."""
    NO_HISTORY = "NO_HISTORY"
    """Nothing was measured before that an estimate could be made from."""


class Bucket(StrEnum):
    """What a task exercises."""

    LOGIC = "logic"
    REFACTOR = "refactor"
    STRUCTURED_OUTPUT = "structured_output"
    EXTRACTION = "extraction"
    DETECTION = "detection"
    """Find the objects of one image: no text, but one seam with it."""


class ExecutionLane(StrEnum):
    """Where a sweep runs: a label that travels with its artifacts."""

    CI = "ci"
    LAB = "lab"


class VramProfile(StrEnum):
    """How much of the memory may be used: a label here, a limit in the lab guards."""

    SAFE = "safe"
    BALANCED = "balanced"
    STRESS = "stress"
