"""The engine `ocr+chat`: its variants, its runtime for sweeps, and the engine for single pages.

Recognition and the chat model are two backends that do not know each other; they are put together here. llama.cpp's server runs
in a child of its own; a second child reads the page and asks the server on loopback, so that nothing of a page's work is done,
timed or held in memory by the process that measures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec

from fewbits.api.extract_chat_session import ChatSession
from fewbits.core.errors import SpecError
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
from fewbits.quantizers.ocr.models import MODEL_ID as OCR_MODEL
from fewbits.quantizers.ocr.quantizer import OcrQuantizer
from fewbits.records.plan import Controls
from fewbits.records.runtime import RuntimeCapabilities
from fewbits.records.schemes import find_scheme
from fewbits.records.variant import Variant
from fewbits.runtimes.base import RuntimeSession
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.extraction.chat_engine import ChatEngine
from fewbits.runtimes.extraction.chat_worker import load_chat_engine
from fewbits.runtimes.extraction.runtime import ExtractionOptions, ExtractionRuntime
from fewbits.runtimes.llamacpp.runtime import LlamaCppRuntime
from fewbits.runtimes.placement import resolve_cores, resolve_threads
from fewbits.runtimes.worker_process import WorkerProcess
from fewbits.spec.extraction_engines import EngineChoice, EngineKind, parse_engine
from fewbits.spec.ocr_schemes import FLOAT_TAG

OCR_SHA256 = "ocr_sha256"
"""Parameter of an `ocr+chat` artifact: digest of the OCR archive that reads for it."""
PROMPT_TOKENS = 6144
"""Room for the question: about 1,000 tokens of instructions, and a dense page of 100 rows."""
_WORKER = "fewbits.runtimes.extraction.chat_worker"
_LOAD_TIMEOUT_SECONDS = 300.0


def check_chat_model(cache: ArtifactStore, chat_model: str | None, choice: EngineChoice) -> None:
    """Raise `SpecError` where no chat model is named, it is not there, or it cannot be had in this precision. Fetches nothing."""
    quantizer = LlamaCppQuantizer(cache)
    quantizer.check(quantizer.locate(_named(chat_model, choice)), _scheme(choice))


def chat_digest(cache: ArtifactStore, chat_model: str | None) -> str | None:
    """Return the sha256 of a chat model's source; `None` where none is named or it was not fetched. Raises `SpecError`."""
    return None if chat_model is None else LlamaCppQuantizer(cache).locate(chat_model).digest


def estimate_chat_bytes(cache: ArtifactStore, chat_model: str | None, choice: EngineChoice) -> int:
    """Estimate the size of both parts on disk, bytes, making nothing. Raises `SpecError`, `PrerequisiteError`."""
    chat, ocr = LlamaCppQuantizer(cache), OcrQuantizer(cache)
    of_chat = chat.estimate_bytes(chat.locate(_named(chat_model, choice)), _scheme(choice))
    return of_chat + ocr.estimate_bytes(ocr.locate(OCR_MODEL), FLOAT_TAG)


def ensure_chat_variant(
    cache: ArtifactStore, chat_model: str | None, choice: EngineChoice, threads: int, progress: Progress
) -> Variant:
    """Return the chat model's GGUF file under the engine's tag, made where the cache lacks it, and make the OCR archive too.

    The artifact describes the chat model: that is what varies. Its parameter `ocr_sha256` names the archive that reads for it.
    Raises `SpecError`, `PrerequisiteError`, `BackendError`, `StoreError`.
    """
    quantizer = LlamaCppQuantizer(cache, threads=threads)
    made = quantizer.ensure(quantizer.locate(_named(chat_model, choice)), _scheme(choice), progress)
    ocr = _ocr_archive(cache, threads, progress)
    parameters = {**made.artifact.parameters, OCR_SHA256: str(ocr.artifact.sha256)}
    return Variant(msgspec.structs.replace(made.artifact, scheme=choice.tag, parameters=parameters), made.path)


def _named(chat_model: str | None, choice: EngineChoice) -> str:
    if chat_model is None:
        hint = "name a GGUF file or a packaged model with --chat-model (`fewbits models` lists them)"
        raise SpecError.single("--chat-model", f"{choice.tag} needs a chat model", hint)
    return chat_model


def _scheme(choice: EngineChoice) -> str:
    return find_scheme(choice.precision).tag


def _ocr_archive(cache: ArtifactStore, threads: int, progress: Progress) -> Variant:
    quantizer = OcrQuantizer(cache, threads=threads)
    return quantizer.ensure(quantizer.locate(OCR_MODEL), FLOAT_TAG, progress)


def _archive_path(cache: ArtifactStore, variant: Variant, threads: int) -> Path:
    """Return the OCR archive that a variant was made with. Raises `SpecError` where the cache has another one by now."""
    ocr = _ocr_archive(cache, threads, lambda _: None)
    if ocr.path is None or ocr.artifact.sha256 != variant.artifact.parameters.get(OCR_SHA256):
        message = "the OCR networks are not those that it was put together with"
        raise SpecError.single(variant.artifact.scheme, message, "make the variant again: rapidocr may have been updated")
    return ocr.path


def chat_part(variant: Variant) -> Variant:
    """Return the chat model alone, under its own tag (`Q8_0`): what llama.cpp is asked to serve. Raises `SpecError`."""
    scheme = _scheme(parse_engine(variant.artifact.scheme, "engine"))
    return Variant(msgspec.structs.replace(variant.artifact, scheme=scheme), variant.path)


def _with_context(controls: Controls, variant: Variant, max_new_tokens: int) -> Controls:
    """Return controls whose context holds question and answer, as far as the model was trained for."""
    wanted = PROMPT_TOKENS + max_new_tokens
    trained = variant.artifact.parameters.get("n_ctx_train")
    return msgspec.structs.replace(controls, context_size=min(wanted, trained) if isinstance(trained, int) else wanted)


class ChatExtractionRuntime:
    """Opens `ocr+chat` variants: llama.cpp's child first, then the one that reads and asks."""

    def __init__(self, options: ExtractionOptions, cache: ArtifactStore) -> None:
        self._options = options
        self._cache = cache

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime reports: times and threads."""
        return CAPABILITIES["extraction"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> ChatSession:
        """Start both children, within `load_timeout_seconds` together.

        Raises `SpecError` (no file, other OCR networks, bad affinity), `PrerequisiteError`, `BackendError`, `IdentityError`.
        """
        deadline = time.monotonic() + load_timeout_seconds
        threads = resolve_threads(controls.threads)
        archive = _archive_path(self._cache, variant, threads)
        sized = _with_context(controls, variant, self._options.max_new_tokens)
        chat = LlamaCppRuntime().open(chat_part(variant), sized, load_timeout_seconds)
        try:
            served = chat.identity()
            options = {
                **asdict(self._options),
                "engine": variant.artifact.scheme,
                "artifact": str(archive.absolute()),
                "page_folder": str(self._options.page_folder.absolute()),
                "threads": threads,
                "seed": controls.seed,
                "temperature": controls.temperature,
                "chat_url": chat.endpoint.url,
                "chat_name": served.served_name,
            }
            cores = resolve_cores(controls.affinity_policy, threads)
            remaining = max(1.0, deadline - time.monotonic())
            reader = WorkerProcess(variant.artifact.scheme, _WORKER, options, cores=cores, load_timeout_seconds=remaining)
        except BaseException:
            chat.close()
            raise
        return ChatSession(chat, served, reader, str(variant.artifact.parameters[OCR_SHA256]))


class ExtractionDispatch:
    """The runtime of an extraction sweep: each variant by the runtime of its kind of engine."""

    def __init__(self, options: ExtractionOptions, cache: ArtifactStore) -> None:
        self._single = ExtractionRuntime(options)
        self._chat = ChatExtractionRuntime(options, cache)

    @property
    def capabilities(self) -> RuntimeCapabilities:
        """What this runtime reports: times and threads."""
        return CAPABILITIES["extraction"]

    def open(self, variant: Variant, controls: Controls, load_timeout_seconds: float) -> RuntimeSession:
        """Load a variant. Raises what the runtime of its kind raises, and `SpecError` for what is no engine."""
        if parse_engine(variant.artifact.scheme, "engine").kind is EngineKind.OCR_CHAT:
            return self._chat.open(variant, controls, load_timeout_seconds)
        return self._single.open(variant, controls, load_timeout_seconds)


@contextlib.contextmanager
def open_chat_engine(
    cache: ArtifactStore, variant: Variant, folder: Path, *, threads: int, max_retries: int, max_new_tokens: int
) -> Iterator[ChatEngine]:
    """Load an engine for single pages: recognition in this process, the chat model in a child that ends with the block.

    `folder` holds the OCR files while they are used. Greedy. Raises as `ChatExtractionRuntime.open`.
    """
    archive = _archive_path(cache, variant, threads)
    controls = _with_context(Controls(threads=threads, affinity_policy="none"), variant, max_new_tokens)
    chat = LlamaCppRuntime().open(chat_part(variant), controls, _LOAD_TIMEOUT_SECONDS)
    try:
        engine, _description = load_chat_engine(
            {
                "engine": variant.artifact.scheme,
                "artifact": str(archive),
                "folder": str(folder),
                "threads": threads,
                "temperature": 0.0,
                "max_retries": max_retries,
                "max_new_tokens": max_new_tokens,
                "chat_url": chat.endpoint.url,
                "chat_name": chat.identity().served_name,
            }
        )
        yield engine
    finally:
        chat.close()
