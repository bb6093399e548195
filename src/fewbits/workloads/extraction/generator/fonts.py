"""Fonts out of Python packages, never the system's: the same page on every machine."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from fewbits.core.errors import PrerequisiteError

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont

FAMILIES = {
    "roboto": ("font_roboto", "Roboto", "RobotoBold"),
    "source-sans": ("font_source_sans_pro", "SourceSansPro", "SourceSansProSemibold"),
    "source-serif": ("font_source_serif_pro", "SourceSerifPro", "SourceSerifProSemibold"),
    "hanken": ("font_hanken_grotesk", "HankenGrotesk", "HankenGroteskSemiBold"),
}
"""Family: module, regular face, heavy face."""

BUILT_IN = "aileron"
"""Pillow's own font, in one weight: a subset of Aileron."""

FALLBACK = "roboto"
"""Draws the characters that a family lacks; it has all that the generator prints."""

RAISED = {"¹": "1", "²": "2", "³": "3", "⁵": "5", "⁶": "6", "⁹": "9"}
"""Superscripts, drawn as small raised digits where a font has none."""


@cache
def font(family: str, heavy: bool, pixels: int) -> Font:
    """Return a font at a size in pixels. Raises `PrerequisiteError` where its package is missing."""
    from PIL import ImageFont

    if family == BUILT_IN:
        built_in = ImageFont.load_default(pixels)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            raise PrerequisiteError("this Pillow has no FreeType", "Install Pillow from its wheel.")
        return built_in
    module, regular, bold = FAMILIES[family]
    try:
        path = getattr(import_module(module), bold if heavy else regular)
    except ImportError as error:
        raise PrerequisiteError(f"the font package {module.replace('_', '-')} is missing", "Install fewbits again.") from error
    # the basic engine is part of every Pillow; the other one shapes text by whatever library the system has
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


@cache
def has_glyph(family: str, heavy: bool, character: str) -> bool:
    """Return whether the family can draw this character (else it would draw the sign for a missing one)."""
    if character.isascii():
        return True
    face = font(family, heavy, 40)
    missing, wanted = face.getmask("\uffff"), face.getmask(character)
    return wanted.size != missing.size or bytes(wanted) != bytes(missing)


def runs(text: str, family: str, heavy: bool) -> tuple[tuple[str, str, bool], ...]:
    """Split a text into pieces of one look: text, family that can draw it, and whether it is raised and small."""
    pieces: list[tuple[str, str, bool]] = []
    for character in text:
        if has_glyph(family, heavy, character):
            look = (character, family, False)
        elif character in RAISED:
            look = (RAISED[character], family, True)
        else:
            look = (character, FALLBACK, False)
        if pieces and pieces[-1][1:] == look[1:]:
            look = (pieces.pop()[0] + look[0], *look[1:])
        pieces.append(look)
    return tuple(pieces)
