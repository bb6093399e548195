"""Preflight: whether this machine is ready to extract and to benchmark, check by check, with the remedy beside each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from fewbits.records.base import Record

PREFLIGHT_SCHEMA = "fewbits.preflight.v1"


class CheckStatus(StrEnum):
    """What a check says. `WARN` limits what can be run, or how fast; it does not stop anything."""

    PASS = "PASS"  # noqa: S105 - a status, not a password
    WARN = "WARN"
    FAIL = "FAIL"


class WantedDevice(StrEnum):
    """Where the engines are to run. `AUTO`: on the GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PreflightCheck(Record, frozen=True, kw_only=True):
    """One check: what was found, and what to do where that is not enough."""

    name: str
    """The rule, in `snake_case` (`gpu_memory`)."""
    status: CheckStatus
    found: str
    """One sentence with what is there: numbers and versions, never names of files, never a token or its length."""
    remedy: str = ""
    """Empty for PASS."""


class Gpu(Record, frozen=True, kw_only=True):
    """One NVIDIA GPU, in the order of its driver."""

    name: str
    memory_bytes: Annotated[int, Meta(ge=0)] | None = None
    """Total memory; `None` where nobody tells it."""
    bf16: bool | None = None
    """Whether it computes in bfloat16 itself; `None` where nobody tells it."""


class EngineOutlook(Record, frozen=True, kw_only=True):
    """Whether an extraction engine can run here, and why not."""

    engine: str
    can_run: bool
    why: str
    """In plain words, for both answers."""


class RecommendedSettings(Record, frozen=True, kw_only=True):
    """Settings to start with: a rule of thumb by memory, no measurement. `None` where the engine has no such setting."""

    engine: str
    device: WantedDevice
    torch_dtype: str | None = None
    quantization: str | None = None
    """`none` or `4bit`."""
    why: str


class Preflight(Record, frozen=True, kw_only=True):
    """The answer of `fewbits extract preflight`."""

    schema_version: Annotated[str, Meta(pattern=r"^fewbits\.preflight\.v1$")] = PREFLIGHT_SCHEMA
    generated_at: str
    """UTC, ISO 8601."""
    status: CheckStatus
    """FAIL when any check failed, else WARN when any warned, else PASS."""
    input_dir: str
    device: WantedDevice
    required_gpus: tuple[str, ...] = ()
    checks: tuple[PreflightCheck, ...]
    gpus: tuple[Gpu, ...] = ()
    versions: dict[str, str | None]
    """Name -> version; `None` where it is not installed, or nobody tells it."""
    engines: tuple[EngineOutlook, ...]
    recommended: RecommendedSettings
