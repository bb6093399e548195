"""The parts of `ocr+chat` that run beside a chat server: recognition in this process, questions to the server on loopback.

As a program (`python -m fewbits.runtimes.extraction.chat_worker '{"engine": ..., "chat_url": ..., ...}'`) it is the child that
holds the engine, like `worker`: its clock covers the whole page, the chat model's answers included.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fewbits.core.errors import IdentityError, TrialTimeoutError
from fewbits.extraction.page_lines import page_lines
from fewbits.records.extraction import ErrorKind
from fewbits.records.runtime import GenerateRequest
from fewbits.runtimes import chat_completions
from fewbits.runtimes.extraction.chat_engine import ChatAnswer, ChatEngine, PageText
from fewbits.runtimes.extraction.pipeline import Pixels
from fewbits.runtimes.extraction.worker import ExtractionWorker
from fewbits.runtimes.http_stream import Endpoint, RefusedError, StreamRules, exchange, parse_base_url
from fewbits.runtimes.worker_loop import serve

ANSWER_TIMEOUT_SECONDS = 900.0
"""Of one answer. A benchmark's own limit of a trial comes first."""
_REPLY_BYTES = 16 * 1024**2
"""Far above 100,000 streamed tokens of a report, far below what would hurt."""
_RULES = StreamRules(end_marker=chat_completions.END_MARKER, max_reply_bytes=_REPLY_BYTES)
_CONTEXT_WORDS = "context size"
"""What llama-server's refusal of a prompt that is too long says (`exceed_context_size_error`)."""


@dataclass(frozen=True, slots=True)
class ChatServer:
    """Asks a chat server that serves `name`, greedily at `temperature` 0. `max_new_tokens` bounds each answer."""

    endpoint: Endpoint
    name: str
    temperature: float
    max_new_tokens: int
    timeout_seconds: float = ANSWER_TIMEOUT_SECONDS

    def ask(self, system: str, user: str, schema: dict[str, Any], seed: int) -> ChatAnswer:
        """Ask once. Raises `BackendError` (the server is gone or refuses), `ProtocolError`, `IdentityError`."""
        request = GenerateRequest(
            prompt=user,
            system=system,
            seed=seed,
            temperature=self.temperature,
            max_tokens=self.max_new_tokens,
            json_schema=schema,
        )
        try:
            streamed = exchange(
                self.endpoint,
                "POST",
                "/v1/chat/completions",
                tool=self.name,
                timeout_seconds=self.timeout_seconds,
                body=chat_completions.request_body(request, self._own_fields()),
                rules=_RULES,
            )
        except TrialTimeoutError:
            return ChatAnswer(failure=ErrorKind.TIMEOUT)
        except RefusedError as error:
            if error.status == HTTPStatus.BAD_REQUEST and _CONTEXT_WORDS in error.tail:
                return ChatAnswer(failure=ErrorKind.ENGINE_FAILED)
            raise
        reply = chat_completions.read_reply(streamed, self.name)
        if reply.served_name != self.name:
            msg = f"the chat server answered as {reply.served_name!r}, not as {self.name!r}"
            raise IdentityError(msg)
        return ChatAnswer(
            text=reply.text,
            truncated=reply.finish_reason == "length",
            prompt_seconds=None if reply.prompt_ms is None else reply.prompt_ms / 1000,
            generation_seconds=None if reply.predicted_ms is None else reply.predicted_ms / 1000,
            new_tokens=reply.output_tokens,
        )

    def _own_fields(self) -> dict[str, Any]:
        """Return llama.cpp's own fields: no prompt cache, so that pages do not speed each other up, and a short sampler chain."""
        chain = {"samplers": ["top_k"], "top_k": 1} if self.temperature == 0 else {"samplers": ["temperature"]}
        return {"model": self.name, "cache_prompt": False, **chain}


def main() -> int:
    """Load, tell, answer until stdin ends. Exit code 1 when the engine cannot be loaded."""
    return serve(ChatWorker)


class ChatWorker(ExtractionWorker):
    """A loaded `ocr+chat` engine: answers as its base does."""

    def __init__(self, options: dict[str, Any]) -> None:
        # not the base's: that loads engines which stand alone
        self._options = options
        self._engine, self.description = load_chat_engine(options)


def load_chat_engine(options: dict[str, Any]) -> tuple[ChatEngine, dict[str, Any]]:
    """Load the OCR part and return the engine with its description: engine, version, sha256 of the OCR archive, threads.

    `options` are those of `engines.load_engine` (`artifact` is the OCR archive, `folder` holds its files while they are used),
    and `chat_url` with `chat_name`, which a chat server must answer as. Raises `SpecError`, `PrerequisiteError`, `BackendError`.
    """
    from fewbits.runtimes.extraction.ocr import OcrEngine, load_reader, turned_note

    reader, description = load_reader(options)
    server = ChatServer(
        endpoint=parse_base_url(options["chat_url"], "chat_url"),
        name=options["chat_name"],
        temperature=options["temperature"],
        max_new_tokens=options["max_new_tokens"],
    )

    def read_text(page: Pixels) -> PageText:
        began = time.perf_counter()
        reading = reader.read(page)
        lines = page_lines(reading.words)
        return PageText(lines, len(reading.words), time.perf_counter() - began, turned_note(reading))

    engine = ChatEngine(
        OcrEngine(reader).prepare,
        read_text,
        server.ask,
        options["engine"],
        retries=options["max_retries"],
        sampled=server.temperature > 0,
    )
    return engine, description | {"sampled": server.temperature > 0}


if __name__ == "__main__":
    sys.exit(main())
