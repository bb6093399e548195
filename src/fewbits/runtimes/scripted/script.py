"""The file that the scripted runtime replays: its shape, and reading it with every problem named.

```json
{
  "schema_version": "fewbits.script.v1",
  "init_latency_seconds": 0.5,
  "variants": {"Q8_0": {"bytes": 1000, "weights": 900, "bits_per_weight": 8.5}},
  "rules": [
    {"prompt_contains": "2+3", "schemes": ["Q8_0"], "replies": [{"text": "5", "prompt_tokens": 9, "output_tokens": 1,
     "prompt_ms": 12.5, "predicted_ms": 6.0, "wall_seconds": 0.02, "first_output_seconds": 0.014}]},
    {"prompt_contains": "loop forever", "replies": [{"failure": "hang"}]}
  ],
  "default": {"text": "I do not know."}
}
```

The first rule that fits answers; its replies are taken in turn, from the start again after the last. Whatever a reply does not
declare was "not reported" (`null`).
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fewbits.core.errors import Problem, SpecError
from fewbits.records.base import Record
from fewbits.records.plan import EffectiveControls

SCRIPT_SCHEMA = "fewbits.script.v1"
_SHORT_DIGEST = 12

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Milliseconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class Failure(StrEnum):
    """Ways in which a scripted reply goes wrong."""

    CRASH = "crash"
    """The engine dies: this request and all later ones of the session fail."""
    HANG = "hang"
    """No answer: the trial's whole timeout is really waited for."""
    WRONG_MODEL = "wrong_model"
    """The answer comes under another model's name."""
    EMPTY = "empty"
    """The answer ends before its first token."""
    GARBAGE = "garbage"
    """What comes back is not the protocol."""


class ScriptedReply(Record, frozen=True, kw_only=True):
    """One answer. Times: `wall_seconds` is declared and not waited for; `delay_seconds` is really waited and measured."""

    text: str = ""
    failure: Failure | None = None
    finish_reason: str | None = "stop"
    served_name: str | None = None
    """`None`: the model's own id."""
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_prompt_tokens: Count | None = None
    prompt_ms: Milliseconds | None = None
    predicted_ms: Milliseconds | None = None
    wall_seconds: Seconds | None = None
    first_output_seconds: Seconds | None = None
    delay_seconds: Seconds = 0.0


class Rule(Record, frozen=True, kw_only=True):
    """When a request fits: the prompt contains a text or has this sha256 (of its UTF-8 bytes), and the scheme is listed."""

    prompt_contains: str | None = None
    prompt_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    schemes: tuple[str, ...] = ()
    """Empty: every scheme."""
    replies: Annotated[tuple[ScriptedReply, ...], Meta(min_length=1)]


class ScriptedVariant(Record, frozen=True, kw_only=True):
    """Sizes that the script declares for a scheme; `null` = unknown."""

    bytes: Annotated[int, Meta(ge=1)] | None = None
    weights: Annotated[int, Meta(ge=1)] | None = None
    bits_per_weight: Annotated[float, Meta(gt=0, le=64)] | None = None


class Script(Record, frozen=True, kw_only=True):
    """A whole script."""

    schema_version: str
    rules: tuple[Rule, ...] = ()
    default: ScriptedReply | None = None
    """For prompts that no rule fits; without it such a prompt is an error of the script."""
    variants: dict[str, ScriptedVariant] = {}  # noqa: RUF012 - msgspec copies mutable defaults
    served_name: str | None = None
    """What the engine says that it serves; `None`: the model that was asked for."""
    init_latency_seconds: Seconds | None = None
    load_failure: str | None = None
    """With this text, every load fails."""
    effective_controls: EffectiveControls | None = None
    """What the engine claims to have applied; `None`: it cannot be asked."""


def load_script(path: Path) -> tuple[Script, str]:
    """Read a script; returns it with the first 12 hex digits of its sha256. Raises `SpecError` naming file and place."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError.single("--script", f"cannot read {path}: {error.strerror or error}") from error
    try:
        script = msgspec.json.decode(data, type=Script)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = f"the shape is described in fewbits.runtimes.scripted.script ({SCRIPT_SCHEMA})"
        raise SpecError.single(str(path), str(error), hint) from error
    if problems := [Problem(f"{path}: {where}", message) for where, message in _check(script)]:
        raise SpecError(problems)
    return script, hashlib.sha256(data).hexdigest()[:_SHORT_DIGEST]


def _check(script: Script) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if script.schema_version != SCRIPT_SCHEMA:
        found.append(("schema_version", f"is {script.schema_version!r}, this version reads {SCRIPT_SCHEMA!r}"))
    if not script.rules and script.default is None:
        found.append(("rules", "there is neither a rule nor a default reply"))
    for number, rule in enumerate(script.rules):
        if (rule.prompt_contains is None) == (rule.prompt_sha256 is None):
            found.append((f"rules[{number}]", "exactly one of prompt_contains and prompt_sha256 is needed"))
        for index, reply in enumerate(rule.replies):
            found += [(f"rules[{number}].replies[{index}]", message) for message in _check_reply(reply)]
    if script.default is not None:
        found += [("default", message) for message in _check_reply(script.default)]
    return found


def _check_reply(reply: ScriptedReply) -> list[str]:
    found = []
    if reply.delay_seconds and reply.wall_seconds is not None:
        found.append("wall_seconds (declared) and delay_seconds (measured) exclude each other")
    if reply.first_output_seconds is not None:
        if reply.wall_seconds is None:
            found.append("first_output_seconds needs wall_seconds: both are declared, or neither is")
        elif reply.first_output_seconds > reply.wall_seconds:
            found.append("first_output_seconds is later than wall_seconds")
    if reply.text and reply.failure in {Failure.CRASH, Failure.HANG, Failure.EMPTY, Failure.GARBAGE}:
        found.append(f"a reply that fails by {reply.failure} has no text")
    return found
