"""Reading files page by page with one engine, in this process."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewbits.api.extract_chat import open_chat_engine
from fewbits.api.extract_variants import PIPELINE, ExtractionVariants
from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.images.pages import find_inputs, open_pages
from fewbits.probes.machine import default_threads
from fewbits.records.extraction import ExtractedFile, ExtractionDocument, PageExtraction
from fewbits.runtimes.extraction.engines import load_engine
from fewbits.runtimes.extraction.pipeline import ExtractionEngine, PageSource, extract_page, unreadable_page
from fewbits.spec.extraction_engines import EngineKind, parse_engine
from fewbits.store.artifacts import ArtifactCache

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """What is read, and with which engine."""

    inputs: tuple[Path, ...]
    pages: tuple[int, int] | None = None
    engine: str = "ocr"
    model: str | None = None
    chat_model: str | None = None
    device: str = "cpu"
    threads: int | None = None
    max_retries: int = 2
    max_new_tokens: int = 2048
    redact: bool = False


def read_files(request: ReadRequest, progress: Progress) -> ExtractionDocument:
    """Read every page of every file. A page that cannot be read is a result; its neighbours are read all the same.

    Raises `SpecError` for inputs that name nothing and for an unknown engine, and what loading the engine raises.
    """
    files = [path for given in request.inputs for path in find_inputs(given)]
    tag = parse_engine(request.engine, "--engine").tag
    with (
        tempfile.TemporaryDirectory(prefix="fewbits-extract-") as folder,
        opened_engine(request, tag, Path(folder), progress) as engine,
    ):
        read = tuple(ExtractedFile(file=str(path), pages=tuple(_pages(engine, path, request))) for path in files)
    return ExtractionDocument(engine=tag, files=read)


@contextlib.contextmanager
def opened_engine(request: ReadRequest, tag: str, folder: Path, progress: Progress) -> Iterator[ExtractionEngine]:
    """Load an engine from the artifact cache, made where it is missing; `folder` is for its files while it is used."""
    threads = request.threads or default_threads()
    cache = ArtifactCache()
    variants = ExtractionVariants(cache, threads, request.model, request.chat_model)
    variant = variants.ensure(variants.locate(PIPELINE), tag, progress)
    if parse_engine(tag, "--engine").kind is EngineKind.OCR_CHAT:
        limits = {"max_retries": request.max_retries, "max_new_tokens": request.max_new_tokens}
        with open_chat_engine(cache, variant, folder, threads=threads, **limits) as chat:
            yield chat
        return
    engine, _description = load_engine(
        {
            "engine": tag,
            "artifact": str(variant.path),
            "folder": str(folder),
            "threads": threads,
            "device": request.device,
            "max_retries": request.max_retries,
            "max_new_tokens": request.max_new_tokens,
            "temperature": 0.0,
            "seed": 0,
        }
    )
    yield engine


def _pages(engine: ExtractionEngine, path: Path, request: ReadRequest) -> Iterator[PageExtraction]:
    try:
        opened = open_pages(path, pages=request.pages)
    except PrerequisiteError:
        raise
    except SpecError as error:
        yield unreadable_page(engine.name, PageSource(), error)
        return
    with opened:
        for number in opened.numbers:
            try:
                page = opened.read(number)
            except SpecError as error:
                yield unreadable_page(engine.name, PageSource(number, opened.count), error)
                continue
            source = PageSource(page.number, page.count, page.notes)
            yield extract_page(engine, page.pixels, source, clock=time.perf_counter, redact=request.redact)
