"""The OpenAI completions route, asked for one token with its alternatives.

llama-server answers in the shape of the chat route, vLLM and others in the older one (`top_logprobs`: one object per position).
Source: the OpenAI API reference ("Create completion", legacy `logprobs`) and llama.cpp's tools/server/README.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fewbits.core.errors import ProtocolError
from fewbits.runtimes.log_probabilities import ReportedPosition, text_key


class _LogProbabilities(msgspec.Struct):
    content: tuple[ReportedPosition, ...] | None = None
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class _Choice(msgspec.Struct):
    logprobs: _LogProbabilities | None = None


class Completion(msgspec.Struct):
    """The part of an answer that is read: which model gave it, and what it reports of its only token."""

    choices: tuple[_Choice, ...]
    model: str | None = None

    def first_position(self) -> dict[str, float] | None:
        """Log-probabilities (nats) by token key; `None` when the answer has none."""
        reported = self.choices[0].logprobs if self.choices else None
        if reported is None:
            return None
        if reported.content:
            return reported.content[0].by_token() or None
        first = reported.top_logprobs[0] if reported.top_logprobs else None
        return {text_key(token): value for token, value in first.items()} if first else None


def request_body(model: str, prefix: str, count: int, extra: dict[str, Any]) -> dict[str, Any]:
    """The request for one greedy token after `prefix`, with its `count` most likely alternatives."""
    body = {"model": model, "prompt": prefix, "max_tokens": 1, "temperature": 0, "logprobs": count, "stream": False}
    return body | extra


def parse_completion(answer: dict[str, Any], tool: str) -> Completion:
    """Read an answer. Raises `ProtocolError` when it is not what the protocol says."""
    try:
        return msgspec.convert(answer, Completion)
    except msgspec.ValidationError as error:
        msg = f"{tool}: the answer to POST /completions is not what the protocol says: {error}"
        raise ProtocolError(msg) from error
