"""PDF pages as pixels, by PDFium (pypdfium2). Nothing in a PDF is executed: no form environment is made, so no scripts run.

PDFium is not thread-safe: one thread at a time.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.images.opening import Pixels

DPI = 200
"""Common for scanned text: letters of 8 points become 22 pixels tall."""
POINTS_PER_INCH = 72
_OBJECTS_LIMIT = 20_000
"""Objects of a page that are looked at for too large pictures; a page full of text has some thousand."""
_DAMAGED_HINT = "fetch or save the file again"


class Pdf:
    """An opened PDF with `count` pages.

    Raises `SpecError` when it is encrypted, damaged or has no pages, `PrerequisiteError` without pypdfium2.
    """

    def __init__(self, data: bytes, where: str) -> None:
        try:
            import pypdfium2
        except ImportError as error:
            raise PrerequisiteError(
                "pypdfium2 is not installed", "Install it with `pip install 'fewbits[extraction]'`."
            ) from error
        self._where = where
        self._errors = (pypdfium2.PdfiumError, ValueError, OverflowError, MemoryError)
        # PDFium keeps its last error, and sets none for a PDF without pages: that would look encrypted after one that is
        pypdfium2.raw.FPDF_LoadMemDocument(b"", 0, None)
        try:
            self._document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            raise self._refused(error.err_code) from error
        self.count = len(self._document)
        if self.count < 1:
            self._document.close()
            raise self._refused(None)

    def _refused(self, code: int | None) -> SpecError:
        from pypdfium2 import raw

        if code == raw.FPDF_ERR_PASSWORD:
            message, hint = "the PDF is encrypted and asks for a password", "open it and save a copy without a password"
            return SpecError.single(self._where, message, hint)
        if code == raw.FPDF_ERR_SECURITY:
            hint = "open it in its own program and save or print an unprotected copy"
            return SpecError.single(self._where, "the PDF is encrypted in a way that cannot be read", hint)
        return SpecError.single(self._where, "the PDF is damaged, cut off, or has no pages", _DAMAGED_HINT)

    def render(self, number: int, pixel_limit: int) -> tuple[Pixels, tuple[str, ...]]:
        """Draw page `number` (from 1) at 200 dpi, coarser where it would have more than `pixel_limit` pixels; and notes.

        Returns uint8[height, width, 3], RGB. Raises `SpecError` when the page is damaged or a picture in it is too large.
        """
        where = f"{self._where}, page {number}"
        try:
            page = self._document[number - 1]
            try:
                width, height = page.get_width(), page.get_height()
                scale = scale_for(width, height, pixel_limit)
                if scale is None:
                    raise SpecError.single(where, f"a page of {width:g} x {height:g} points cannot be drawn", _DAMAGED_HINT)
                self._require_bounded_pictures(page, where, pixel_limit)
                # annotations are drawn as they are stored: what was filled into a form is seen, and no form is run
                bitmap = page.render(scale=scale, rev_byteorder=True, may_draw_forms=False, limit_image_cache=True)
                pixels = np.array(bitmap.to_numpy()[:, :, :3], dtype=np.uint8, order="C")
            finally:
                page.close()
        except self._errors as error:
            raise SpecError.single(where, "the page is damaged and cannot be drawn", _DAMAGED_HINT) from error
        dpi = scale * POINTS_PER_INCH
        inches = f"{width / POINTS_PER_INCH:.0f} x {height / POINTS_PER_INCH:.0f} inches"
        return pixels, () if dpi > DPI - 1 else (f"drawn at {dpi:.3g} dpi instead of {DPI}: the page measures {inches}",)

    def _require_bounded_pictures(self, page: Any, where: str, pixel_limit: int) -> None:
        """Raise `SpecError` for a picture of more than `pixel_limit` pixels: PDFium would decode it whole."""
        from pypdfium2 import raw

        for part in islice(page.get_objects(), _OBJECTS_LIMIT):
            if part.type == raw.FPDF_PAGEOBJ_IMAGE:
                width, height = part.get_px_size()
                if width * height > pixel_limit:
                    message = f"a picture of {width} x {height} pixels in it has more than {pixel_limit} pixels"
                    raise SpecError.single(where, message, "make it smaller first")

    def close(self) -> None:
        """Free the document."""
        self._document.close()


def scale_for(width: float, height: float, pixel_limit: int) -> float | None:
    """Return pixels per point for a page of so many points: 200 dpi, or less to stay within `pixel_limit` pixels in all.

    `None` where no positive size can be had. Sides are rounded up to whole pixels, as PDFium's binding does.
    """
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0 and pixel_limit > 0):
        return None
    scale = min(DPI / POINTS_PER_INCH, math.sqrt(pixel_limit / width / height), pixel_limit / max(width, height))
    while math.ceil(width * scale) * math.ceil(height * scale) > pixel_limit:
        scale *= 0.99
    return scale if scale > 0 else None
