"""The hardware sidecar: raw throughput by llama-bench, stored apart from the trials. Diagnostics, never a gate input."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Record

SIDECAR_PROFILES_SCHEMA = "fewbits.sidecar_profiles.v1"


class SidecarStatus(StrEnum):
    """How a sidecar run ended. No status ever makes a row invalid."""

    OK = "OK"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    """This runtime has no file that the sidecar could load."""
    TOOL_MISSING = "TOOL_MISSING"
    TIMEOUT = "TIMEOUT"
    TOOL_FAILED = "TOOL_FAILED"
    PARSE_ERROR = "PARSE_ERROR"
    OUTPUT_TOO_LARGE = "OUTPUT_TOO_LARGE"
    REQUIRED_FIELD_MISSING = "REQUIRED_FIELD_MISSING"
    NOT_RUN = "NOT_RUN"
    """The run ended before the sidecar had its turn."""
    WRONG_BACKEND = "WRONG_BACKEND"
    """The tool measured, but not on the kind of device that the profile names (a CPU build under a GPU profile)."""


class SidecarProfile(Record, frozen=True, kw_only=True):
    """How the sidecar is called. Placeholders: `{model}` (must be there) and `{threads}`."""

    backend: Annotated[str, Meta(pattern="^(cpu|nvidia|amd)$")]
    """Kind of device that the tool must say it ran on; also which temperature is read."""
    argv: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Program and arguments, never a shell line. `llama-bench` is looked up like the engine's tools, any other on `PATH`."""
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 120.0
    description: str = ""


class SidecarProfiles(Record, frozen=True, kw_only=True):
    """The profiles file."""

    schema_version: str = SIDECAR_PROFILES_SCHEMA
    profiles: Annotated[dict[str, SidecarProfile], Meta(min_length=1)]


class SidecarBlock(Record, frozen=True, kw_only=True):
    """What the sidecar says of one variant. Numbers are `None` with a reason in `unavailable`, never zero for unknown."""

    status: SidecarStatus
    detail: str = ""
    """One sentence where the status is not `OK`."""
    profile: str | None = None
    backend: str | None = None
    tool_version: str | None = None
    device: str | None = None
    """Name of the GPU, else of the CPU, as the tool reports it."""
    threads: int | None = None
    prefill_tokens: int | None = None
    """Prompt tokens per repetition (llama-bench `n_prompt`)."""
    decode_tokens: int | None = None
    repetitions: int | None = None
    prefill_tokens_per_second: float | None = None
    """Mean of llama-bench's own repetitions (`avg_ts` of its `pp` test)."""
    prefill_stddev: float | None = None
    decode_tokens_per_second: float | None = None
    decode_stddev: float | None = None
    wall_seconds: float | None = None
    """Of the whole sidecar process, loading included."""
    temperature_start_c: float | None = None
    temperature_end_c: float | None = None
    unavailable: dict[str, str] = {}  # noqa: RUF012 - msgspec copies mutable defaults


class SidecarRun(Record, frozen=True, kw_only=True):
    """A row of `sidecar.jsonl`: the joined block, and what the tool said, cut to a bounded length."""

    schema_version: str = "fewbits.sidecar_run.v1"
    plan_digest: str
    model_id: str
    quant_tag: str
    variant_sha256: str | None
    started_at: str
    command: tuple[str, ...]
    """With the model's path replaced by `{model}`."""
    returncode: int | None
    """`None` where the tool was killed or never started."""
    stdout_head: str
    """First 16 KiB, with the model's path replaced by `{model}`; so is it in `stderr_tail` (last 4 KiB)."""
    stderr_tail: str
    tool_sha256: str | None = None
    """Of the program file; `None` where none was found."""
    block: SidecarBlock
