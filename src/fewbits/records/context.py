"""Context sweeps: what is asked at which depth, what a context showed, the largest safe one, and the rollup."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Rate, Record
from fewbits.records.estimate import Estimate
from fewbits.records.explorer import ExplorerArtifact
from fewbits.records.provenance import SourceFile
from fewbits.records.variant import Sha256

CONTEXT_CEILING_SCHEMA = "explorer.context_ceiling.v1"
CONTEXT_ROLLUP_SCHEMA = "explorer.context_sweep_rollup.v1"
CONTEXT_PLAN_SCHEMA = "fewbits.context_plan.v1"
CONTEXT_PROFILES_SCHEMA = "fewbits.context_profiles.v1"

Context = Annotated[int, Meta(ge=64, le=10_000_000)]
"""A context size in tokens, prompt and answer together."""
Depth = Annotated[float, Meta(ge=0, le=1)]
"""Where in the text something stands: 0 = its beginning, 1 = its end."""


class LongTaskKind(StrEnum):
    """What a task that grows with the context asks for."""

    RECALL = "recall"
    """One fact that stands at a known depth, among others of its kind."""
    EXTRACTION = "extraction"
    """An extraction task of the bank, whose source passage stands at a known depth."""
    COLLECTION = "collection"
    """Facts from all depths, listed together."""


_TASK_ID = re.compile(r"(recall|extraction|collection)-(?:d(\d{4})|all)-(\d{3,})")


def long_task_id(kind: LongTaskKind, depth: float | None, number: int) -> str:
    """Name a task by what it asks: `recall-d0500-001` stands in the middle, `collection-all-001` everywhere."""
    where = "all" if depth is None else f"d{round(depth * 1000):04d}"
    return f"{kind.value}-{where}-{number:03d}"


def kind_and_depth(task_id: str) -> tuple[LongTaskKind, float | None] | None:
    """Read an id made by `long_task_id`; `None` for any other id."""
    found = _TASK_ID.fullmatch(task_id)
    if found is None:
        return None
    return LongTaskKind(found[1]), None if found[2] is None else int(found[2]) / 1000


class ContextReason(StrEnum):
    """Why a context did not pass."""

    NOT_RUN = "NOT_RUN"
    """A smaller context of this variant could not be run, so this one was not tried."""
    LOAD_FAILED = "LOAD_FAILED"
    """The engine could not load the variant at this context, the first one that was tried."""
    CONTEXT_TOO_LARGE = "CONTEXT_TOO_LARGE"
    """The engine loaded the variant at a smaller context of this sweep, and could not at this one."""
    ENGINE_FAILED = "ENGINE_FAILED"
    """The engine broke down during the trials."""
    NO_SUMMARY = "NO_SUMMARY"
    """There is no recorded summary of this context."""
    NO_ROW = "NO_ROW"
    """The summary of this context has no row for this variant."""
    CONTEXT_NOT_APPLIED = "CONTEXT_NOT_APPLIED"
    """The engine gave less context than was asked for, or nobody could read back what it gave."""
    PROMPT_OVERFLOW = "PROMPT_OVERFLOW"
    """A prompt and the room for its answer did not fit, so something was cut off."""
    CONTEXT_NOT_FILLED = "CONTEXT_NOT_FILLED"
    """The prompts used too little of the context to say anything about it."""
    FILL_MISSING = "FILL_MISSING"
    """The engine reported no prompt tokens, so nothing shows that the context was filled."""
    INVALID_ROW = "INVALID_ROW"
    """The row of the summary is not valid (polluted, incomplete, without telemetry)."""
    ADHERENCE_MISSING = "ADHERENCE_MISSING"
    ADHERENCE_BELOW_MIN = "ADHERENCE_BELOW_MIN"
    RETENTION_MISSING = "RETENTION_MISSING"
    """There is nothing to compare with: the smallest context was not scored, or scored 0."""
    RETENTION_BELOW_MIN = "RETENTION_BELOW_MIN"
    TTFT_MISSING = "TTFT_MISSING"
    TTFT_ABOVE_CEILING = "TTFT_ABOVE_CEILING"
    DECODE_TPS_MISSING = "DECODE_TPS_MISSING"
    DECODE_TPS_BELOW_FLOOR = "DECODE_TPS_BELOW_FLOOR"


class ContextNote(StrEnum):
    """What a reader of a point should know; fails nothing by itself."""

    BEYOND_TRAINED_CONTEXT = "BEYOND_TRAINED_CONTEXT"
    """The context is larger than the model was trained for."""


class ContextLimits(Record, frozen=True, kw_only=True):
    """What a context must meet. `None`: not checked. A limit that is set and has nothing to be held against fails."""

    adherence_min: Rate | None = None
    """Smallest mean adherence."""
    adherence_retention_min: Annotated[float, Meta(ge=0, le=2)] | None = None
    """Smallest adherence as a share of the smallest context's, on the same questions."""
    ttft_ceiling_ms: Annotated[float, Meta(gt=0)] | None = None
    """Largest median time to first token, milliseconds."""
    decode_floor_tps: Annotated[float, Meta(gt=0)] | None = None
    """Smallest decode rate, tokens per second."""


class ContextThresholds(ContextLimits, frozen=True, kw_only=True):
    """The limits that were used, and the name of the profile that they started from."""

    profile: str | None = None
    fill_min: Rate | None = 0.7
    """Smallest median share of the context that the prompts fill; `None` where only summaries were read, which do not tell."""
    include_invalid: bool = False
    """Let points pass whose row is not valid."""


class ContextProfile(ContextLimits, frozen=True, kw_only=True):
    """A named set of contexts and limits, and why they are what they are."""

    contexts: Annotated[tuple[Context, ...], Meta(min_length=1)]
    why: str = ""


class ContextProfiles(Record, frozen=True, kw_only=True):
    """`context_profiles.json`."""

    schema_version: Annotated[str, Meta(pattern=r"^fewbits\.context_profiles\.v1$")] = CONTEXT_PROFILES_SCHEMA
    description: str = ""
    profiles: dict[str, ContextProfile]


class GroupScore(Record, frozen=True, kw_only=True):
    """Adherence of the tasks of one kind at one depth."""

    kind: LongTaskKind
    depth: Depth | None
    """`None`: all depths together."""
    tasks: int
    adherence: Estimate | None


class ContextPoint(Record, frozen=True, kw_only=True):
    """One variant at one context. `unavailable` says why a field is `null`."""

    context: int
    """Tokens asked for."""
    context_effective: int | None
    """Tokens that the engine said it had, the fewest of any trial."""
    adherence: Estimate | None
    adherence_by_depth: tuple[GroupScore, ...] = ()
    retention: Estimate | None
    """Adherence / adherence at the smallest context, paired by question; `None` for the smallest context itself."""
    ttft_ms: Estimate | None
    """Median time to first token of the trials whose times count, milliseconds."""
    decode_tps: float | None
    """Generated tokens / decode seconds."""
    prompt_tps: float | None
    """Prompt tokens / prefill seconds."""
    peak_memory_bytes: int | None
    """Peak resident set of the process that holds the weights."""
    peak_memory_gpu_bytes: int | None
    kv_cache_bytes: int | None
    """Derived from the file's metadata, not measured: what a 16-bit cache of this context takes."""
    prompt_tokens: int | None
    """Median over the trials, as the engine counted them."""
    prompt_tokens_min: int | None
    prompt_tokens_max: int | None
    fill_ratio: float | None
    """`prompt_tokens` / `context`."""
    headroom_tokens: int | None
    """Context - prompt - room for the answer, the smallest of any trial. Below 0 something was cut off."""
    trials: int
    valid: bool
    invalid_reasons: tuple[str, ...] = ()
    passed: bool
    reasons: tuple[ContextReason, ...]
    """Why it did not pass; empty when it did."""
    uncertain: tuple[ContextReason, ...] = ()
    """Limits that lie inside the interval, or whose score has none: the estimate decided, the other answer is not excluded."""
    notes: tuple[ContextNote, ...] = ()
    failure: ContextReason | None = None
    """Why there are no numbers, where there are none."""
    detail: str = ""
    """The engine's words, or what to do."""
    summary_path: str | None
    """Beside this artifact; `None` where nothing was run."""
    summary_sha256: Sha256 | None
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class VariantCeiling(Record, frozen=True, kw_only=True):
    """How much context one variant can be given."""

    model_id: str
    quant_tag: str
    variant_sha256: str | None
    trained_context: int | None
    """Tokens that the model was trained for, from the file; `None` where nobody tells."""
    safe_context_ceiling: int | None
    """The largest context such that it and every smaller one of the sweep pass; `None` when the smallest fails."""
    recommendation: str
    points: tuple[ContextPoint, ...]
    """One for each context, ascending."""


class ContextCeilingArtifact(ExplorerArtifact, frozen=True, kw_only=True):
    """`context_ceiling.json`."""

    schema_version: str = CONTEXT_CEILING_SCHEMA
    hardware_fingerprint: str
    contexts: tuple[int, ...]
    thresholds: ContextThresholds
    ceilings: tuple[VariantCeiling, ...]


class VariantRollup(Record, frozen=True, kw_only=True):
    """The counts of one variant."""

    model_id: str
    quant_tag: str
    safe_context_ceiling: int | None
    contexts_total: int
    contexts_passed: int
    contexts_failed: int
    failed_contexts: tuple[int, ...]


class ContextRollupArtifact(ExplorerArtifact, frozen=True, kw_only=True):
    """`context_sweep_rollup.json`. The counts at the top are about contexts that every variant passed."""

    schema_version: str = CONTEXT_ROLLUP_SCHEMA
    source_context_ceiling: SourceFile
    hardware_fingerprint: str
    safe_context_ceiling: int | None
    """Safe for every variant: the smallest of their ceilings, `None` when one has none."""
    contexts_total: int
    contexts_passed: int
    contexts_failed: int
    failed_contexts: tuple[int, ...]
    variants: tuple[VariantRollup, ...]


class TokenDensity(Record, frozen=True, kw_only=True):
    """How a model's tokenizer cuts the text of the long tasks: from a few short requests, or assumed."""

    model_id: str
    measured: bool
    detail: str
    """How it was measured, or why it could not be."""
    template_tokens: int
    """What the chat template adds to a prompt."""
    filler_tokens_per_character: Annotated[float, Meta(gt=0, le=4)]
    task_tokens_per_character: Annotated[float, Meta(gt=0, le=4)]
    """Of questions, facts and passages: more digits and punctuation, so more tokens."""


class LoadOutcome(Record, frozen=True, kw_only=True):
    """Whether the engine could load a variant at a context, tried before its trials."""

    context: int
    model_id: str
    quant_tag: str
    failure: str
    """The engine's words; empty when it loaded."""
    context_effective: int | None
    """Tokens that the engine then said it had; `None` when it did not load or does not tell."""


class ContextPlan(Record, frozen=True, kw_only=True):
    """`context_plan.json`: what must stay the same when the same command goes on, so that the tasks have the same bytes."""

    schema_version: Annotated[str, Meta(pattern=r"^fewbits\.context_plan\.v1$")] = CONTEXT_PLAN_SCHEMA
    inputs: dict[str, str]
    """What the tasks are made from, as text: models, bank digest, depths, counts, seed, answer tokens, runtime."""
    densities: tuple[TokenDensity, ...]
    loads: tuple[LoadOutcome, ...] = ()
