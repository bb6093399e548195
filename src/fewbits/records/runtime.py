"""What runtimes can do (readable without importing an engine) and what they are asked."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from fewbits.records.base import Record
from fewbits.records.detection import ImageRequest


class RuntimeCapabilities(Record, frozen=True, kw_only=True):
    """What a runtime can really do and report. Static, so that a plan can be checked on a machine without the engine."""

    name: str
    local_process: bool
    """The process that holds the weights is our child, so memory, affinity and CPU time can be read."""
    builds_variants: bool
    """Takes artifacts that a quantizer makes; otherwise the server already holds the model."""
    streaming: bool
    token_counts: bool
    timings: bool
    """Reports its own prefill and decode time."""
    seed: bool
    context_readback: bool
    thread_control: bool
    digest_identity: bool
    constrained_json: bool
    log_probabilities: bool
    """Shows what it held likely but did not choose (all logits of a file, a server's top tokens): divergence can be measured."""
    images: bool = False
    """Takes an image and reports what it shows (objects, the report on a page): there are no tokens, only times."""


class GenerateRequest(Record, frozen=True, kw_only=True):
    """One chat turn. Greedy when `temperature` is 0."""

    prompt: str
    system: str = ""
    seed: int
    temperature: float
    max_tokens: Annotated[int, Meta(ge=1)]
    json_schema: dict[str, Any] | None = None
    image: ImageRequest | None = None
    """What is shown; only runtimes with `images` take it."""
