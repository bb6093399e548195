"""Divergence from the reference: what is asked for, and a row of `divergence.jsonl`.

Divergence is a property of weights on a text: it needs no task and no sampling. Each window of the text is an independent
context; inside one, every scored position compares the next-token distribution of a variant with the reference's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Record

DIVERGENCE_SCHEMA = "fewbits.divergence.v1"
PYTHON_TOPICS = "python-topics"
"""Name of the evaluation text that comes with every CPython: its language reference (`pydoc_data.topics`)."""

NO_TEXT = "none"
"""In place of a text: divergence is not measured."""
PART_NAMES = tuple(f"{PYTHON_TOPICS}/{part}" for part in ("calibration", "probe", "held-out"))
"""Parts of it without a document or a longer paragraph in common: what is chosen on one is judged on another."""
NAMED_TEXTS = (PYTHON_TOPICS, *PART_NAMES, NO_TEXT)


class DivergencePolicy(Record, frozen=True, kw_only=True):
    """How divergence from the reference is measured. Part of the plan's digest, together with the text's own digest."""

    text: Annotated[str, Meta(min_length=1)] = PYTHON_TOPICS
    """Name or path of the evaluation text; `none` switches divergence off (and the summary says so)."""
    windows: Annotated[int, Meta(ge=2, le=10_000)] = 16
    """Independent contexts that the text is cut into; intervals treat them as the units."""
    window_tokens: Annotated[int, Meta(ge=32, le=131_072)] = 256
    """Tokens per window; the second half is scored, as llama-perplexity does, so that each prediction has context."""
    top_k: Annotated[int, Meta(ge=1, le=65_536)] = 2048
    """Log-probabilities kept per position of the reference; the rest is kept as its exact total.

    On SmolLM2-135M the mean loses 6 % at 256, 1 % at 2048 and 0.4 % at 4096, where an interval of 16 windows is about 10 % wide.
    """


class EvaluationText(Record, frozen=True, kw_only=True):
    """The text that divergence was measured on, as the plan pins it."""

    name: str
    digest: str
    """sha256 hex digits of the UTF-8 bytes."""
    bytes: int


class DivergenceKind(StrEnum):
    """What a row compares with the reference."""

    VARIANT = "variant"
    FLOOR = "floor"
    """The reference itself, computed again another way (thread count, attention kernel): what the instrument cannot see below."""


class DivergenceMethod(StrEnum):
    """How distributions were read, which decides what the numbers mean."""

    FULL_LOGITS = "full_logits"
    """Every position of the window, all logits of the variant, the reference as top-K and exact tail."""
    SERVER_TOP_LOGPROBS = "server_top_logprobs"
    """One position per request, only the most likely tokens that a server reports: divergence is a lower bound."""


class DivergenceReason(StrEnum):
    """Why there is no divergence."""

    SWITCHED_OFF = "SWITCHED_OFF"
    NO_LOG_PROBABILITIES = "NO_LOG_PROBABILITIES"
    """The server does not report them."""
    NO_ENGINE = "NO_ENGINE"
    """No engine here that shows logits (the extra `llamacpp`)."""
    ENGINE_FAILED = "ENGINE_FAILED"
    TEXT_TOO_SHORT = "TEXT_TOO_SHORT"
    CALIBRATION_TEXT = "CALIBRATION_TEXT"
    """The variant was calibrated on this very text, so the text cannot judge it."""
    VOCABULARY_DIFFERS = "VOCABULARY_DIFFERS"
    """Variant and reference do not have the same tokens, so their distributions cannot be compared."""
    NOT_RUN = "NOT_RUN"
    """The journal holds no row for it."""


class WindowDivergence(Record, frozen=True, kw_only=True):
    """One window: what its scored positions show. Nats."""

    kl_nats: tuple[float, ...]
    """KL(reference || variant) of each scored position, in order; 0 or more up to the rounding of 32-bit logits."""
    same_top: int
    """Positions where both have the same most likely token."""
    reference_nll_nats: float | None
    """Sum of -log p(actual next token) under the reference; `None` where a server did not report that token."""
    variant_nll_nats: float | None


class TruncationAudit(Record, frozen=True, kw_only=True):
    """What keeping only the top K of the reference cost, on positions whose whole distribution was kept."""

    positions: int
    compact_nats: float
    """Mean KL divergence from the compact form. Never above the exact one (data-processing inequality)."""
    exact_nats: float


class DivergenceRow(Record, frozen=True, kw_only=True):
    """A row of `divergence.jsonl`: one variant (or the floor) against the reference. Explains itself."""

    schema_version: str = DIVERGENCE_SCHEMA
    plan_digest: str
    kind: DivergenceKind
    model_id: str
    quant_tag: str
    variant_sha256: str | None
    reference_tag: str
    reference_sha256: str | None
    text_name: str
    text_digest: str
    method: DivergenceMethod
    engine: str
    engine_version: str
    threads: int | None
    """Threads of the compared pass."""
    teacher_threads: int | None
    top_k: int
    windows: tuple[WindowDivergence, ...]
    """Empty when `unavailable` says why."""
    audit: TruncationAudit | None
    unavailable: DivergenceReason | None
    detail: str = ""
    wall_seconds: float
