"""Paper that knows where its ink is: drawing in points, with every text's box kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fewbits.workloads.extraction.generator.fonts import font, runs

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Align = Literal["left", "right", "center"]
Colour = tuple[int, int, int]

BLACK: Colour = (25, 25, 28)
WHITE: Colour = (255, 255, 255)
POINTS_PER_INCH = 72
RAISED_SIZE, RAISED_BY = 0.62, 0.36
"""A superscript's size, and how far it is raised, as shares of the text's size."""
SMALLEST = 0.78
"""A text that is too wide is set smaller, down to this share of its size."""


class TooWideError(ValueError):
    """A text does not fit its place, even when set smaller: cut, it would make the truth wrong."""


@dataclass(frozen=True, slots=True)
class Ink:
    """A drawn text and its box in pixels: left, top, right, bottom."""

    text: str
    box: tuple[float, float, float, float]


@dataclass(slots=True)
class Paper:
    """One page being drawn. Lengths are points, from the top left corner; `family` is the font of the page."""

    width: float
    height: float
    dots_per_inch: int
    family: str
    ink: list[Ink] = field(default_factory=list)
    image: Image.Image = field(init=False)
    _draw: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        """Lay out a white sheet."""
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (self._pixels(self.width), self._pixels(self.height)), WHITE)
        self._draw = ImageDraw.Draw(self.image)

    def _pixels(self, points: float) -> int:
        return round(points * self.dots_per_inch / POINTS_PER_INCH)

    def text_width(self, text: str, size: float, *, heavy: bool = False) -> float:
        """Return the width of a text in points."""
        pieces = runs(text, self.family, heavy)
        pixels = sum(font(family, heavy, self._font_pixels(size, raised)).getlength(piece) for piece, family, raised in pieces)
        return pixels * POINTS_PER_INCH / self.dots_per_inch

    def _font_pixels(self, size: float, raised: bool) -> int:
        return max(1, self._pixels(size * (RAISED_SIZE if raised else 1)))

    def text(
        self, x: float, baseline: float, text: str, size: float, *, heavy: bool = False, colour: Colour = BLACK,
        align: Align = "left", room: float | None = None,
    ) -> float:  # fmt: skip
        """Draw a text and return its width. `x` is its left, right end or middle; `room` the widest it may be.

        Raises `TooWideError` where it does not fit its room even when set smaller.
        """
        if not text:
            return 0.0
        width = self.text_width(text, size, heavy=heavy)
        if room is not None and width > room:
            if width * SMALLEST > room:
                msg = f"{text!r} is {width:.0f} points wide, its place {room:.0f}"
                raise TooWideError(msg)
            return self.text(x, baseline, text, size * room / width * 0.99, heavy=heavy, colour=colour, align=align)
        left = x - {"left": 0.0, "right": width, "center": width / 2}[align]
        self._set(left, baseline, text, size, heavy=heavy, colour=colour)
        return width

    def _set(self, left: float, baseline: float, text: str, size: float, *, heavy: bool, colour: Colour) -> None:
        """Draw the pieces one after the other and keep the box around them."""
        start, y = self._pixels(left), self._pixels(baseline)
        x, boxes = float(start), []
        for piece, family, raised in runs(text, self.family, heavy):
            face = font(family, heavy, self._font_pixels(size, raised))
            up = y - (self._pixels(size * RAISED_BY) if raised else 0)
            self._draw.text((x, up), piece, font=face, fill=colour, anchor="ls")
            boxes.append(self._draw.textbbox((x, up), piece, font=face, anchor="ls"))
            x += face.getlength(piece)
        self.ink.append(
            Ink(text, (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)))
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, *, colour: Colour = BLACK, thick: float = 0.5) -> None:
        """Draw a line."""
        corners = [(self._pixels(x0), self._pixels(y0)), (self._pixels(x1), self._pixels(y1))]
        self._draw.line(corners, fill=colour, width=max(1, self._pixels(thick)))

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, *, fill: Colour | None = None, outline: Colour | None = None
    ) -> None:
        """Draw a rectangle, filled, outlined or both."""
        corners = [(self._pixels(x0), self._pixels(y0)), (self._pixels(x1), self._pixels(y1))]
        self._draw.rectangle(corners, fill=fill, outline=outline)

    def paragraph(self, x: float, baseline: float, text: str, size: float, *, room: float, colour: Colour = BLACK) -> float:
        """Draw a text broken into lines of at most `room`; return the baseline after its last line."""
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and self.text_width(longer, size) > room:
                self.text(x, baseline, line, size, colour=colour)
                baseline, line = baseline + size * 1.35, word
            else:
                line = longer
        self.text(x, baseline, line, size, colour=colour)
        return baseline + size * 1.35
