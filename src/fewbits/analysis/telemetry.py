"""From what a runtime reported to one telemetry record: strict, unrounded, with a reason for every `null`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fewbits.records.base import TokenStatus, Unavailable
from fewbits.records.trial import RawReply, Telemetry, TokenMetrics

CLOCK_TOLERANCE_SECONDS = 0.002
CLOCK_TOLERANCE_RATIO = 0.005
"""The engine's clock may run ahead of ours by the larger of these two before they count as contradicting each other:
engines round to whole or tenths of milliseconds, and two clocks differ a little in rate."""

_TOKEN_PREFIX = "token_metrics."  # noqa: S105 - a field path


@dataclass(frozen=True, slots=True)
class _Measured:
    """A number, or the reason why there is none."""

    value: float | None
    reason: Unavailable = Unavailable.NOT_REPORTED


def token_status(*, has_tokens: bool, has_timings: bool) -> TokenStatus:
    """Return the state for the two pairs: (prompt and output counts), (prompt and predicted milliseconds).

    Source: roadmap, guiding rule 1.
    """
    if has_tokens:
        return TokenStatus.OK if has_timings else TokenStatus.TIMING_UNAVAILABLE
    return TokenStatus.TOKEN_COUNT_UNAVAILABLE if has_timings else TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE


def reported_count(value: object) -> int | None:
    """Return a token count as reported, or `None` when it is no count (absent, negative, a boolean, not whole)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value) if value == int(value) else None


def reported_amount(value: object) -> float | None:
    """Return a duration or size as reported, or `None` when it is none (absent, negative, NaN, infinite)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def overhead_ratio(wall_seconds: float | None, internal_seconds: float | None) -> tuple[float | None, Unavailable]:
    """Return (wall - internal) / wall and, when it is `None`, why.

    A negative result within the clock tolerance is 0; beyond it the two clocks contradict each other and there is no ratio.
    Source: roadmap, phase 1, item 3.
    """
    if wall_seconds is None or internal_seconds is None:
        return None, Unavailable.NOT_REPORTED
    if wall_seconds <= 0:
        return None, Unavailable.ZERO_DENOMINATOR
    excess = internal_seconds - wall_seconds
    if excess > max(CLOCK_TOLERANCE_SECONDS, CLOCK_TOLERANCE_RATIO * wall_seconds):
        return None, Unavailable.CLOCKS_DISAGREE
    return max(0.0, -excess) / wall_seconds, Unavailable.NOT_REPORTED


def derive_telemetry(
    reply: RawReply | None,
    *,
    init_latency_seconds: float | None,
    peak_memory_rss: int | None,
    peak_memory_gpu_bytes: int | None,
    unavailable: Mapping[str, str],
    wall_seconds: float | None = None,
) -> Telemetry:
    """Return the telemetry of one trial. Pure; the same reply always gives the same record.

    `reply` is `None` for a trial that failed: everything but `total_latency` (`wall_seconds`, where known), load time and
    memory is then `null` with `TRIAL_FAILED`. `unavailable` names the reason for `init_latency`, `peak_memory_rss` and
    `peak_memory_gpu_bytes` where the caller knows one (default: `NOT_REPORTED`, `NO_SENSOR`, `NO_SENSOR`).

    Negative, NaN and infinite inputs count as not reported. An engine that reports no number of cached prompt tokens
    processed every prompt token that it counted.
    """
    reasons: dict[str, str] = {}
    known = {
        "init_latency": (reported_amount(init_latency_seconds), Unavailable.NOT_REPORTED),
        "peak_memory_rss": (reported_count(peak_memory_rss), Unavailable.NO_SENSOR),
        "peak_memory_gpu_bytes": (reported_count(peak_memory_gpu_bytes), Unavailable.NO_SENSOR),
    }
    for name, (value, default) in known.items():
        if value is None:
            reasons[name] = str(unavailable.get(name, default))
    if reply is None:
        times, tokens = _failed(reported_amount(wall_seconds), reasons)
    else:
        times, tokens = _succeeded(reply, reasons)
    return Telemetry(
        **times,
        init_latency=known["init_latency"][0],
        peak_memory_rss=reported_count(peak_memory_rss),
        peak_memory_gpu_bytes=reported_count(peak_memory_gpu_bytes),
        token_metrics=tokens,
        unavailable=dict(sorted(reasons.items())),
    )


_TIME_FIELDS = (
    "total_latency",
    "time_to_first_token_seconds",
    "prefill_seconds",
    "decode_seconds",
    "internal_model_seconds",
    "orchestration_overhead_ratio",
)
_TOKEN_FIELDS = (
    "prompt_tokens",
    "output_tokens",
    "total_tokens",
    "cached_prompt_tokens",
    "decode_steps",
    "prompt_tokens_per_second",
    "generation_tokens_per_second",
    "raw_usage",
    "raw_timings",
)


def _failed(wall_seconds: float | None, reasons: dict[str, str]) -> tuple[dict[str, float | None], TokenMetrics]:
    times: dict[str, float | None] = dict.fromkeys(_TIME_FIELDS)
    times["total_latency"] = wall_seconds
    reasons.update({name: str(Unavailable.TRIAL_FAILED) for name, value in times.items() if value is None})
    reasons.update({_TOKEN_PREFIX + name: str(Unavailable.TRIAL_FAILED) for name in _TOKEN_FIELDS})
    return times, _empty_tokens(TokenStatus.TOKEN_AND_TIMING_UNAVAILABLE, None)


def _succeeded(reply: RawReply, reasons: dict[str, str]) -> tuple[dict[str, float | None], TokenMetrics]:
    wall = reported_amount(reply.wall_seconds)
    prefill_ms, decode_ms = reported_amount(reply.prompt_ms), reported_amount(reply.predicted_ms)
    # divided before they are added: two finite times must not overflow to infinity
    internal = None if prefill_ms is None or decode_ms is None else prefill_ms / 1000 + decode_ms / 1000
    if not reply.has_tokens and decode_ms is not None:
        internal = decode_ms / 1000
    overhead, why_overhead = overhead_ratio(wall, internal)
    measured = {
        "total_latency": _Measured(wall),
        "time_to_first_token_seconds": _first_token(reply),
        "prefill_seconds": _phase(reply, prefill_ms),
        "decode_seconds": _phase(reply, decode_ms),
        "internal_model_seconds": _Measured(internal),
        "orchestration_overhead_ratio": _Measured(overhead, why_overhead),
    }
    reasons.update({name: str(item.reason) for name, item in measured.items() if item.value is None})
    tokens = _tokens(reply, prefill_ms, decode_ms, reasons) if reply.has_tokens else _no_tokens(reply, internal, reasons)
    return {name: item.value for name, item in measured.items()}, tokens


def _phase(reply: RawReply, milliseconds: float | None) -> _Measured:
    """Prefill and decode are phases of making tokens: work without tokens has neither."""
    if not reply.has_tokens:
        return _Measured(None, Unavailable.NO_TOKENS)
    return _Measured(None if milliseconds is None else milliseconds / 1000)


def _no_tokens(reply: RawReply, internal: float | None, reasons: dict[str, str]) -> TokenMetrics:
    status = TokenStatus.TIMING_UNAVAILABLE if internal is None else TokenStatus.NO_TOKENS
    metrics = _empty_tokens(status, reply)
    reasons.update({_TOKEN_PREFIX + name: str(Unavailable.NO_TOKENS) for name in _TOKEN_FIELDS if getattr(metrics, name) is None})
    return metrics


def _empty_tokens(status: TokenStatus, reply: RawReply | None) -> TokenMetrics:
    return TokenMetrics(
        status=status,
        prompt_tokens=None,
        output_tokens=None,
        total_tokens=None,
        cached_prompt_tokens=None,
        decode_steps=None,
        prompt_tokens_per_second=None,
        generation_tokens_per_second=None,
        raw_usage=reply.raw_usage if reply else None,
        raw_timings=reply.raw_timings if reply else None,
    )


def _first_token(reply: RawReply) -> _Measured:
    if not reply.streamed:
        return _Measured(None, Unavailable.NOT_STREAMED)
    seconds = reported_amount(reply.first_output_seconds)
    if seconds is None and (reported_count(reply.output_tokens) == 0 or not reply.text):
        return _Measured(None, Unavailable.NO_OUTPUT)
    return _Measured(seconds)


def _tokens(reply: RawReply, prefill_ms: float | None, decode_ms: float | None, reasons: dict[str, str]) -> TokenMetrics:
    prompt, output = reported_count(reply.prompt_tokens), reported_count(reply.output_tokens)
    cached = reported_count(reply.cached_prompt_tokens)
    contradiction = prompt is not None and cached is not None and cached > prompt
    cached = None if contradiction else cached
    has_tokens, has_timings = prompt is not None and output is not None, prefill_ms is not None and decode_ms is not None
    status = token_status(has_tokens=has_tokens, has_timings=has_timings)
    processed = None if prompt is None else prompt - (cached or 0)
    prompt_rate = _rate(processed, prefill_ms, status)
    if contradiction and status is TokenStatus.OK:
        prompt_rate = _Measured(None, Unavailable.COUNTS_DISAGREE)
    steps = output if reply.decode_steps is None else reported_count(reply.decode_steps)
    generation_rate = _rate(steps, decode_ms, status)
    if steps == 0 and output:
        generation_rate = _Measured(None, Unavailable.NO_DECODE_STEP)
    metrics = TokenMetrics(
        status=status,
        prompt_tokens=prompt,
        output_tokens=output,
        total_tokens=None if prompt is None or output is None else prompt + output,
        cached_prompt_tokens=cached,
        decode_steps=steps,
        prompt_tokens_per_second=prompt_rate.value,
        generation_tokens_per_second=generation_rate.value,
        raw_usage=reply.raw_usage,
        raw_timings=reply.raw_timings,
    )
    why = {
        "prompt_tokens_per_second": prompt_rate.reason,
        "generation_tokens_per_second": generation_rate.reason,
        "cached_prompt_tokens": Unavailable.COUNTS_DISAGREE if contradiction else Unavailable.NOT_REPORTED,
    }
    for name in _TOKEN_FIELDS:
        if getattr(metrics, name) is None:
            reasons[_TOKEN_PREFIX + name] = str(why.get(name, Unavailable.NOT_REPORTED))
    return metrics


def _rate(tokens: int | None, milliseconds: float | None, status: TokenStatus) -> _Measured:
    """Tokens per second. Zero tokens in some time is a true 0.0; any number of tokens in no time is no rate."""
    if status is not TokenStatus.OK or tokens is None or milliseconds is None:
        return _Measured(None, Unavailable.TOKEN_STATUS_NOT_OK)
    if milliseconds <= 0:
        return _Measured(None, Unavailable.ZERO_DENOMINATOR)
    rate = tokens * 1000 / milliseconds
    # a denormal denominator overflows: as good as no time at all
    return _Measured(rate) if math.isfinite(rate) else _Measured(None, Unavailable.ZERO_DENOMINATOR)
