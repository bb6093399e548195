"""Picture files as RGB pixels, by Pillow. Files are hostile: sizes are bounded before anything is decoded."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.core.units import MIB, format_bytes

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]

PIXEL_LIMIT = 50_000_000
"""Decoded, three times as many bytes. A page at 600 dpi has 35 million pixels."""
FILE_BYTES_LIMIT = 256 * MIB
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, where the installed Pillow was built with it. Others stay closed: some readers start programs (EPS)."""
_ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MAX = 65535
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
# what Pillow's readers raise on damaged bytes, beside OSError
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
)


class Turning(StrEnum):
    """What to do with a picture that its file says is to be shown turned or mirrored (EXIF orientation)."""

    AS_STORED = "as_stored"
    """Leave the pixels where they are: labels of COCO sets refer to stored pixels. (Pillow's TIFF reader turns all the same.)"""
    UPRIGHT = "upright"
    """Turn the pixels as a viewer would: for pages that are read."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: `pixels` uint8[height, width, 3], RGB; `notes` say what was changed or left out on the way."""

    pixels: Pixels
    width: int
    height: int
    notes: tuple[str, ...] = ()


def open_picture(path: Path | str, *, pixel_limit: int = PIXEL_LIMIT, turning: Turning = Turning.AS_STORED) -> Picture:
    """Read a picture file as RGB; of a file with several frames the first.

    Grey, palette, CMYK and 16 bits a channel are converted; transparent parts lie on white. Raises `SpecError` naming the file
    when it is missing, a folder, empty, larger than 256 MiB, no picture of a known kind, damaged, cut off, or has more than
    `pixel_limit` pixels (read from its header, before decoding). Raises `PrerequisiteError` without Pillow.
    """
    return read_picture(_file_bytes(Path(path)), str(path), pixel_limit=pixel_limit, turning=turning)


def read_picture(data: bytes, where: str, *, pixel_limit: int = PIXEL_LIMIT, turning: Turning = Turning.AS_STORED) -> Picture:
    """Decode the bytes of a picture file; as `open_picture`, with `where` in place of the file's name."""
    _require_pillow()
    if not data:
        raise SpecError.single(where, "the file is empty (0 bytes)", "is the download or copy complete?")
    with warnings.catch_warnings():
        # the limit below is ours: Pillow's warnings about large or odd files would only be noise beside it
        warnings.simplefilter("ignore")
        with _opened(data, where, pixel_limit) as image:
            return _decoded(image, where, turning)


def _file_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SpecError.single(str(path), "this is a folder, not a picture", "name one file in it")
        size_bytes = path.stat().st_size
        if size_bytes > FILE_BYTES_LIMIT:
            message = f"{format_bytes(size_bytes)} is too large for a picture"
            raise SpecError.single(str(path), message, f"at most {format_bytes(FILE_BYTES_LIMIT)}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError.single(str(path), f"cannot read the picture: {reason}", "check the path") from error


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401 - only to see whether it is there
    except ImportError as error:
        raise PrerequisiteError("Pillow is not installed", "Install it with `pip install 'fewbits[detection]'`.") from error


def _opened(data: bytes, where: str, pixel_limit: int) -> Image.Image:
    """Read the header and refuse what is unknown or too large; the pixels are still undecoded."""
    from PIL import Image, UnidentifiedImageError

    too_many = SpecError.single(where, f"the picture has more than {pixel_limit} pixels", "make it smaller first")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        message = "not a picture: the content is of no kind that can be read"
        raise SpecError.single(where, message, f"known are {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise too_many from error
    except _DECODING_ERRORS as error:
        raise _damaged(where, error) from error
    if image.width * image.height > pixel_limit:
        image.close()
        raise too_many
    return image


def _damaged(where: str, error: BaseException) -> SpecError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SpecError.single(where, f"the picture is damaged or cut off: {reason}", "fetch or save the file again")


def _decoded(image: Image.Image, where: str, turning: Turning) -> Picture:
    try:
        notes = _frame_notes(image)
        image.load()
        orientation, unread = _orientation(image)
        if image.mode in _SIXTEEN_BIT_MODES or image.mode == "F":
            pixels, converted = _from_wide_grey(image, where)
        else:
            pixels, converted = _from_colours(image)
    except _DECODING_ERRORS as error:
        raise _damaged(where, error) from error
    notes += unread + converted
    if turning is Turning.UPRIGHT:
        pixels = turned_upright(pixels, orientation)
    elif orientation != 1:
        notes += (f"left as stored, though to be shown turned (EXIF orientation {orientation})",)
    height, width = pixels.shape[:2]
    return Picture(np.ascontiguousarray(pixels), width, height, notes)


def _orientation(image: Image.Image) -> tuple[int, tuple[str, ...]]:
    """Return the EXIF orientation of the pixels read, 1 (as stored) to 8; 1 where the file names none. Asked after loading."""
    try:
        found: Any = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODING_ERRORS:
        return 1, ("its EXIF data cannot be read, so its orientation is unknown",)
    return (found if isinstance(found, int) and 1 <= found <= 8 else 1), ()


def _frame_notes(image: Image.Image) -> tuple[str, ...]:
    try:
        frames = getattr(image, "n_frames", 1)
    except _DECODING_ERRORS:
        return ("frame 1 only: the frames after it are damaged",)
    return (f"frame 1 of {frames} only",) if frames > 1 else ()


def _from_wide_grey(image: Image.Image, where: str) -> tuple[Pixels, tuple[str, ...]]:
    """Convert grey of 16 bits by its range; wider numbers have no range that the file states."""
    values = np.asarray(image)
    if image.mode == "F" or (values.size and not 0 <= int(values.min()) <= int(values.max()) <= _SIXTEEN_BIT_MAX):
        hint = "save it with 8 or 16 bits a channel"
        raise SpecError.single(where, "the picture holds numbers of 32 bits, whose range is unknown", hint)
    grey = ((values.astype(np.uint32) * 255 + _SIXTEEN_BIT_MAX // 2) // _SIXTEEN_BIT_MAX).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2), ("converted from 16-bit grey",)


def _from_colours(image: Image.Image) -> tuple[Pixels, tuple[str, ...]]:
    """Convert what has at most 8 bits a channel. Grey and palettes lose nothing, so they need no note."""
    from PIL import Image

    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        flat = Image.alpha_composite(paper, layered).convert("RGB")
        hidden = layered.getchannel("A").getextrema()[0]
        return np.asarray(flat), ("transparent parts shown on white",) if hidden != 255 else ()
    notes = () if image.mode in {"1", "L", "P", "RGB", "RGBX"} else (f"converted from {image.mode}",)
    return np.asarray(image.convert("RGB")), notes


def turned_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels (uint8[height, width, 3]) as an EXIF orientation of 1 to 8 asks: a view, no copy.

    Source: Exif 2.32, tag 0x0112: the place of row 0 and column 0; from 5 on rows and columns are exchanged.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows_back = orientation in {3, 4, 7, 8}
    columns_back = orientation in {2, 3, 6, 7}
    return pixels[:: -1 if rows_back else 1, :: -1 if columns_back else 1]
