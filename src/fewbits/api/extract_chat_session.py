"""An opened `ocr+chat` variant: one child that reads pages and asks, one that serves the chat model."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from fewbits.core.errors import IdentityError, ProtocolError
from fewbits.core.files import require_name_below
from fewbits.records.base import Unavailable
from fewbits.records.plan import EffectiveControls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import ServedIdentity
from fewbits.runtimes.llamacpp.session import LlamaCppSession
from fewbits.runtimes.placement import process_cores
from fewbits.runtimes.worker_process import WorkerProcess


class ChatSession:
    """Both children, as one session: closing ends and reaps both, and one that died ends both.

    `process_ids` names both, so peak memory is the sum of their peaks: the chat model's mapped weights and KV cache, the OCR
    networks, and the Python around them; nothing of the process that measures.
    """

    def __init__(self, chat: LlamaCppSession, served: ServedIdentity, reader: WorkerProcess, ocr_sha256: str) -> None:
        self._chat = chat
        self._served = served
        self._reader = reader
        self._ocr_sha256 = ocr_sha256
        self._described = reader.description
        self._asked = False

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds of loading both, one after the other."""
        loaded = self._chat.init_latency_seconds
        return None if loaded is None else loaded + self._reader.load_seconds

    @property
    def engine(self) -> str:
        """What runs the networks: `rapidocr + xllamacpp`."""
        return f"{self._described['engine']} + {self._chat.engine}"

    @property
    def engine_version(self) -> str:
        """Both versions."""
        return f"{self._described['version']} + {self._chat.engine_version}"

    def identity(self) -> ServedIdentity:
        """Prove both: the chat model by the file that its process maps, the OCR archive by its bytes. Raises `IdentityError`."""
        loaded = self._described["sha256"]
        if loaded != self._ocr_sha256:
            msg = f"the child loaded an OCR archive with sha256 {loaded}, not {self._ocr_sha256}"
            raise IdentityError(msg)
        detail = "; ".join(note for note in (self._served.detail, f"OCR archive {loaded}") if note)
        return msgspec.structs.replace(self._served, detail=detail)

    def verify_reply(self, reply: RawReply) -> None:
        """Check that the reply comes from this session. Raises `IdentityError`.

        Every single answer of the chat server was checked by the child that got it.
        """
        if reply.served_name != self._served.served_name:
            msg = f"{self.engine} answered as {reply.served_name!r}"
            raise IdentityError(msg)

    def effective_controls(self) -> EffectiveControls:
        """Read back from both: threads where they agree, cores of either, and what the chat server's latest question had.

        Greedy answers have no seed. Context and limit of new tokens follow from the extraction's own settings, not from the
        sweep's controls.
        """
        chat = self._chat.effective_controls()
        process_id = self._reader.process_id
        cores = process_cores(process_id) if process_id is not None else None
        sampled = bool(self._described["sampled"])
        values = {
            "seed": chat.seed if sampled and self._asked else None,
            "threads": chat.threads if chat.threads == self._described["threads"] else None,
            "affinity": None if cores is None or chat.affinity is None else tuple(sorted({*cores, *chat.affinity})),
            "temperature": chat.temperature,
            "context_size": None,
            "max_tokens": None,
        }
        reported = {"threads", "temperature"} | ({"seed"} if sampled else set())
        reasons = {
            name: str(Unavailable.NOT_REPORTED if name in reported else Unavailable.NOT_SUPPORTED)
            for name, value in values.items()
            if value is None
        }
        return msgspec.convert(values | {"unavailable": reasons}, EffectiveControls)

    def process_ids(self) -> tuple[int, ...]:
        """Both children; empty once either has ended."""
        process_id = self._reader.process_id
        return (process_id, *self._chat.process_ids()) if process_id is not None and self.is_alive() else ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Read one page; a request without a page is a warm-up: the chat model answers its prompt, a blank page is read.

        The text of the reply is a `PageExtraction`; a page that cannot be read is an answer too. Raises `TrialTimeoutError`,
        `BackendError`, `ProtocolError` (a file that is missing or not the one that was planned), `SpecError` for a name that
        leaves the page folder.
        """
        deadline = time.monotonic() + timeout_seconds
        page = request.image
        message: dict[str, Any] = {"seed": request.seed}
        if page is None:
            self._chat.generate(request, timeout_seconds)
        else:
            require_name_below(page.file_name, "page")
            message |= {"file": page.file_name, "sha256": page.sha256, "page": page.page}
        answer = self._reader.ask(message, max(0.0, deadline - time.monotonic()))
        try:
            timings = answer["timings"]
            # a page without text is not asked about: the server's parameters are then those of an earlier page
            self._asked = "prompt" in timings["parts"].get("extract", {})
            return RawReply(
                text=answer["text"],
                finish_reason="stop",
                served_name=self._served.served_name,
                wall_seconds=float(answer["wall_seconds"]),
                predicted_ms=float(answer["timings"]["pipeline_seconds"]) * 1000,
                has_tokens=False,
                raw_timings=answer["timings"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"{self.engine}'s worker left out {error}"
            raise ProtocolError(msg) from error

    def is_alive(self) -> bool:
        """Whether both children still run."""
        return self._reader.is_alive() and self._chat.is_alive()

    def close(self) -> None:
        """End and reap both. Safe to call twice."""
        self._reader.close()
        self._chat.close()
