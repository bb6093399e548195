"""The shape in which servers report the most likely tokens of a position: llama.cpp, Ollama and the newer OpenAI routes.

Source: the OpenAI API reference ("Create chat completion", `logprobs.content`) and Ollama's api/types.go (`Logprob`).
"""

from __future__ import annotations

import msgspec


class ReportedToken(msgspec.Struct, frozen=True):
    """One token. llama.cpp adds its `id`; others tell its `bytes`, or only its text."""

    token: str
    logprob: float
    id: int | None = None
    bytes: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """What identifies the token: parts of a character have the same text, but not the same id or bytes."""
        if self.id is not None:
            return f"id {self.id}"
        return f"bytes {bytes(self.bytes).hex()}" if self.bytes else text_key(self.token)


class ReportedPosition(msgspec.Struct, frozen=True):
    """One position of the answer: `top_logprobs` are its most likely tokens; the chosen one is among them or not."""

    top_logprobs: tuple[ReportedToken, ...] = ()

    def by_token(self) -> dict[str, float]:
        """Log-probabilities (nats) by token key."""
        return {token.key: token.logprob for token in self.top_logprobs}


def text_key(token: str) -> str:
    """The key of a token of which only the text is known."""
    return f"text {token}"
