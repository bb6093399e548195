"""What happens to a page on its way to the reader: a scanner, a fax, a phone. Everything follows from the page's seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fewbits.records.extraction import Level
from fewbits.workloads.extraction.generator.seeds import stream

if TYPE_CHECKING:
    from PIL import Image

Grey = npt.NDArray[np.float32]

SKEW_DEGREES = 1.5
TILT_DEGREES = (4.0, 11.0)
"""How far a phone is from looking straight down on the paper, in each direction."""
TURN_DEGREES = 3.0
DISTANCE = 1.9
"""From the phone to the paper, as a multiple of the paper's height."""
SCAN_QUALITY, PHOTO_QUALITY = 70, 75
FAX_DOTS_PER_INCH = 110
FAX_GREY_STEP = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """A page as a file: its bytes and suffix (`png`, `jpg`)."""

    data: bytes
    suffix: str


def degraded(page: Image.Image, level: Level, seed: int, dots_per_inch: int) -> Encoded:
    """Return the page (RGB, at this resolution) as a file of this level; the same bytes for the same seed."""
    if level is Level.CLEAN:
        return _png(page)
    noise = np.random.default_rng(stream(seed, "degrade").getrandbits(53))
    if level is Level.SCAN:
        return _jpeg(_scanned(page, noise), SCAN_QUALITY)
    if level is Level.FAX:
        return _png(_faxed(page, noise, dots_per_inch))
    return _jpeg(_photographed(page, noise), PHOTO_QUALITY)


def _scanned(page: Image.Image, noise: np.random.Generator) -> Image.Image:
    """Turn by a degree, make it grey, lay paper tone and light noise over it."""
    from PIL import Image, ImageFilter

    turned = page.convert("L").rotate(noise.uniform(-SKEW_DEGREES, SKEW_DEGREES), Image.Resampling.BICUBIC, fillcolor=250)
    soft = turned.filter(ImageFilter.GaussianBlur(noise.uniform(0.3, 0.6)))
    pixels = _levels(soft, black=noise.uniform(15, 45), white=noise.uniform(238, 250))
    pixels += _grain(pixels.shape, noise.uniform(2, 5), noise)
    return _image(pixels)


def _faxed(page: Image.Image, noise: np.random.Generator, dots_per_inch: int) -> Image.Image:
    """Reduce to a fax's resolution, fade, add noise, and cut softly at a threshold; dots and a few lost lines on top."""
    from PIL import Image

    share = FAX_DOTS_PER_INCH / dots_per_inch
    turned = page.convert("L").rotate(noise.uniform(-0.8, 0.8), Image.Resampling.BICUBIC, fillcolor=255)
    small = turned.resize((round(page.width * share), round(page.height * share)), Image.Resampling.BOX)
    pixels = _levels(small, black=noise.uniform(60, 95), white=noise.uniform(205, 225))
    pixels += _grain(pixels.shape, noise.uniform(7, 11), noise)
    large = _image(pixels).resize((page.width, page.height), Image.Resampling.BICUBIC)
    # a soft threshold: strokes stay as wide as they were, greys are driven apart
    pixels = np.asarray(large, dtype=np.float32)
    pixels = np.float32(70) + np.float32(160) / (1 + np.exp((np.float32(noise.uniform(160, 172)) - pixels) / np.float32(13)))
    specks = noise.random(pixels.shape, dtype=np.float32)
    pixels[specks < 0.0006] = 70
    pixels[specks > 0.9994] = 230
    for row in noise.integers(0, pixels.shape[0], size=noise.integers(0, 4)):
        pixels[row] = 230
    # a fax has few greys
    return _image(np.rint(pixels / FAX_GREY_STEP) * FAX_GREY_STEP)


def _photographed(page: Image.Image, noise: np.random.Generator) -> Image.Image:
    """Lay the paper on a table, look at it askew, light it unevenly, blur it a little."""
    from PIL import Image, ImageFilter

    width, height = page.size
    frame = (round(width * 1.14), round(height * 1.12))
    coefficients = _homography(_seen_corners(width, height, frame, noise), width, height)
    paper = page.transform(frame, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    mask = Image.new("L", page.size, 255).transform(frame, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    soft = mask.filter(ImageFilter.GaussianBlur(width * 0.008))
    table = _table(frame, noise) * (1 - 0.55 * np.asarray(soft, dtype=np.float32)[..., None] / 255)
    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    tone = np.array([noise.uniform(228, 246), noise.uniform(226, 240), noise.uniform(205, 232)], dtype=np.float32) / 255
    scene = np.asarray(paper, dtype=np.float32) * 0.9 * tone + 18
    lit = (scene * share + table * (1 - share)) * _light(frame, noise)[..., None]
    blurred = _image(lit).filter(ImageFilter.GaussianBlur(noise.uniform(0.5, 1.1)))
    pixels = _moved(np.asarray(blurred, dtype=np.float32), noise)
    return _image(pixels + _grain(pixels.shape, noise.uniform(2, 4), noise))


def _seen_corners(width: int, height: int, frame: tuple[int, int], noise: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return where a pinhole camera sees the paper's corners, float64[4, 2] clockwise from the top left, in a frame's pixels."""
    pitch, yaw = (math.radians(noise.uniform(*TILT_DEGREES)) * noise.choice((-1, 1)) for _ in range(2))
    roll = math.radians(noise.uniform(-TURN_DEGREES, TURN_DEGREES))
    across = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    down = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    turn = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    flat = np.array([[-width, -height, 0], [width, -height, 0], [width, height, 0], [-width, height, 0]]) / 2
    space = flat @ (turn @ down @ across).T
    seen = space[:, :2] / (space[:, 2:] + DISTANCE * height)
    low, high = seen.min(axis=0), seen.max(axis=0)
    # the paper nearly fills the picture, and lies a little off its middle
    scale = noise.uniform(0.92, 0.96) * min(frame[0] / (high[0] - low[0]), frame[1] / (high[1] - low[1]))
    free = np.array(frame) - scale * (high - low)
    corners: npt.NDArray[np.float64] = (seen - low) * scale + free * noise.uniform(0.3, 0.7, 2)
    return corners


def _homography(corners: npt.NDArray[np.float64], width: int, height: int) -> tuple[float, ...]:
    """Return the 8 coefficients that bring points of the picture back to the flat page, as Pillow wants them."""
    flat = ((0, 0), (width, 0), (width, height), (0, height))
    rows, wanted = [], []
    for (x, y), (u, v) in zip(corners, flat, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    return tuple(float(each) for each in np.linalg.solve(np.array(rows), np.array(wanted)))


def _table(frame: tuple[int, int], noise: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a table top, float32[height, width, 3]: one colour with a soft grain along one direction."""
    colours = ((120, 84, 56), (70, 72, 78), (150, 146, 140), (52, 62, 84), (168, 132, 96))
    colour = np.array(colours[noise.integers(len(colours))], dtype=np.float32)
    coarse = _cloud(frame, (frame[0] // 200 + 2, frame[1] // 8), noise)
    return colour + coarse[..., None] * np.float32(14)


def _light(frame: tuple[int, int], noise: np.random.Generator) -> Grey:
    """Return how bright each place is, float32[height, width]: a slope, large spots, and often the edge of a shadow."""
    width, height = frame
    across, down = np.linspace(-1, 1, width, dtype=np.float32)[None], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle, fall = noise.uniform(0, 2 * math.pi), noise.uniform(0.04, 0.16)
    slope = across * np.float32(math.cos(angle)) + down * np.float32(math.sin(angle))
    light = 0.95 + np.float32(fall) * slope + 0.03 * _cloud(frame, (4, 5), noise)
    if noise.random() < 0.6:
        angle, place = noise.uniform(0, 2 * math.pi), noise.uniform(-0.4, 0.7)
        edge = across * np.float32(math.cos(angle)) + down * np.float32(math.sin(angle)) - np.float32(place)
        light *= 1 - np.float32(noise.uniform(0.15, 0.36)) / (1 + np.exp(-edge / np.float32(noise.uniform(0.03, 0.12))))
    return light


def _cloud(frame: tuple[int, int], cells: tuple[int, int], noise: np.random.Generator) -> Grey:
    """Return smooth noise, float32[height, width], about -1 to 1, from a grid of random cells (columns, rows)."""
    from PIL import Image

    grid = Image.fromarray(noise.integers(0, 256, (cells[1], cells[0]), dtype=np.uint8))
    return np.asarray(grid.resize(frame, Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1


def _grain(shape: tuple[int, ...], deviation: float, noise: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a sensor's noise, float32 of this shape, with this standard deviation in grey levels."""
    return noise.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def _moved(pixels: npt.NDArray[np.float32], noise: np.random.Generator) -> npt.NDArray[np.float32]:
    """Blur by a hand's movement of up to one pixel, across or down."""
    axis, share = int(noise.integers(2)), float(noise.uniform(0, 0.3))
    return pixels * (1 - share) + np.roll(pixels, 1, axis=axis) * share


def _levels(image: Image.Image, *, black: float, white: float) -> Grey:
    """Return grey values, float32[height, width], with black and white at these levels."""
    return np.asarray(image, dtype=np.float32) * np.float32((white - black) / 255) + np.float32(black)


def _image(pixels: npt.NDArray[np.floating]) -> Image.Image:
    """Return rounded pixels as a picture."""
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _png(image: Image.Image) -> Encoded:
    stream_ = BytesIO()
    image.save(stream_, "PNG", optimize=False, compress_level=6)
    return Encoded(stream_.getvalue(), "png")


def _jpeg(image: Image.Image, quality: int) -> Encoded:
    stream_ = BytesIO()
    image.save(stream_, "JPEG", quality=quality)
    return Encoded(stream_.getvalue(), "jpg")
