"""The child process that holds one engine: `python -m fewbits.runtimes.extraction.worker '{"engine": "ocr", ...}'`.

A request names a file below the page folder, its digest and a page; the answer is a `PageExtraction` as canonical JSON. The
clock starts before the file is opened; between its two reads lie opening, all stages and encoding, and nothing else.
"""

from __future__ import annotations

import hashlib
import stat
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.core.codec import encode_canonical
from fewbits.core.errors import SpecError
from fewbits.extraction.timings import split_timings
from fewbits.images.opening import FILE_BYTES_LIMIT
from fewbits.images.pages import open_pages
from fewbits.records.extraction import PageExtraction
from fewbits.runtimes.extraction.engines import load_engine
from fewbits.runtimes.extraction.pipeline import PageSource, extract_page, unreadable_page
from fewbits.runtimes.worker_loop import serve

_WARM_UP_PAGE = (1100, 850)
"""Height and width of the blank page that a request without a file stands for, pixels."""


def main() -> int:
    """Load, tell, answer until stdin ends. Exit code 1 when the engine cannot be loaded."""
    return serve(ExtractionWorker)


class ExtractionWorker:
    """A loaded engine. `options` are what `runtime.ExtractionOptions` and the controls say."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._engine, self.description = load_engine(options)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read one page: `{"file": ..., "sha256": ..., "page": ...}`, or an empty object for a blank page."""
        self._engine.reseed(request.get("seed", 0))
        began = time.perf_counter()
        try:
            found = self._read(request)
        except SpecError as error:
            number = request.get("page") or 1
            found = unreadable_page(self._engine.name, PageSource(number, number), error, time.perf_counter() - began)
        except ValueError as error:
            return {"problem": str(error)}
        except Exception as error:  # noqa: BLE001 - engines' exceptions have no base of their own; their words may hold page text
            return {"failure": type(error).__name__}
        page, timings = split_timings(found)
        text = encode_canonical(page).decode()
        return {"text": text, "wall_seconds": time.perf_counter() - began, "timings": timings}

    def _read(self, request: dict[str, Any]) -> PageExtraction:
        if "file" not in request:
            pixels, source = np.full((*_WARM_UP_PAGE, 3), 255, dtype=np.uint8), PageSource()
        else:
            path = Path(self._options["page_folder"]) / request["file"]
            _require_planned(path, request["sha256"])
            number = request.get("page") or 1
            with open_pages(path, pages=(number, number)) as pages:
                page = pages.read(number)
            notes = (f"page {page.number} of {page.count}",) if page.count > 1 else ()
            pixels, source = page.pixels, PageSource(page.number, page.count, notes + page.notes)
        return extract_page(
            self._engine,
            pixels,
            source,
            clock=time.perf_counter,
            redact=self._options["redact"],
        )


def _require_planned(path: Path, sha256: str) -> None:
    """Raise `ValueError` where the file is not the one that was planned."""
    try:
        status = path.stat()
    except OSError as error:
        msg = f"{path.name} cannot be read: {error.strerror}"
        raise ValueError(msg) from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_LIMIT:
        return  # opening says it better
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        msg = f"{path.name} is not the file that was planned: its bytes have changed"
        raise ValueError(msg)


if __name__ == "__main__":
    sys.exit(main())
