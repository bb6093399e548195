from __future__ import annotations

import builtins
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.images.opening import Turning, open_picture, read_picture, turned_upright

image_module: Any = pytest.importorskip("PIL.Image")

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini"


def stored(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, image_module.Image) else image_module.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height: int = 4, width: int = 6, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def problem_of(call: Any) -> str:
    with pytest.raises(SpecError) as caught:
        call()
    assert len(caught.value.problems) == 1
    return str(caught.value.problems[0])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_come_back_exactly(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(stored(colours(), kind))
    picture = open_picture(path)
    assert (picture.height, picture.width, picture.notes) == (4, 6, ())
    assert picture.pixels.dtype == np.uint8
    assert np.array_equal(picture.pixels, colours())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds_come_back_nearly(kind: str) -> None:
    smooth = np.full((32, 48, 3), (200, 100, 30), dtype=np.uint8)
    picture = read_picture(stored(smooth, kind), "x")
    assert np.abs(picture.pixels.astype(int) - smooth).max() <= 6


def test_grey_and_palette_lose_nothing() -> None:
    grey = colours()[:, :, 0]
    picture = read_picture(stored(grey), "x")
    assert np.array_equal(picture.pixels, np.repeat(grey[:, :, None], 3, axis=2))
    assert picture.notes == ()
    palette = image_module.fromarray(np.zeros((4, 4, 3), np.uint8) + np.array([10, 200, 30], np.uint8)).quantize(4)
    assert palette.mode == "P"
    assert np.array_equal(read_picture(stored(palette), "x").pixels[0, 0], [10, 200, 30])
    assert read_picture(stored(image_module.new("1", (3, 2), 1)), "x").pixels.min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    picture = read_picture(stored(wide), "x")
    assert picture.pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    assert picture.notes == ("converted from 16-bit grey",)


@pytest.mark.parametrize("values", [np.array([[0.5]], np.float32), np.array([[70000]], np.int32), np.array([[-1]], np.int32)])
def test_thirty_two_bits_have_no_known_range(values: Any) -> None:
    assert "range is unknown" in problem_of(lambda: read_picture(stored(values, "TIFF"), "x.tif"))


def test_cmyk_is_converted_and_said() -> None:
    picture = read_picture(stored(image_module.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), "x")
    assert picture.notes == ("converted from CMYK",)
    assert picture.pixels[0, 0].tolist() == [255, 0, 0]


def test_transparent_parts_lie_on_white() -> None:
    layered = np.zeros((2, 2, 4), np.uint8)
    layered[0, 0] = (10, 20, 30, 255)
    picture = read_picture(stored(layered), "x")
    assert picture.pixels[0, 0].tolist() == [10, 20, 30]
    assert picture.pixels[1, 1].tolist() == [255, 255, 255]
    assert picture.notes == ("transparent parts shown on white",)
    layered[:, :, 3] = 255
    assert read_picture(stored(layered), "x").notes == ()


def test_the_first_of_several_frames() -> None:
    frames = [image_module.new("RGB", (5, 4), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "TIFF"):
        picture = read_picture(stored(frames[0], kind, save_all=True, append_images=frames[1:]), "x")
        assert picture.pixels[0, 0].tolist() == [255, 0, 0]
        assert picture.notes == ("frame 1 of 3 only",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_on_request_only(orientation: int) -> None:
    from PIL import ImageOps

    exif = image_module.Exif()
    exif[0x0112] = orientation
    data = stored(colours(), exif=exif)
    as_stored = read_picture(data, "x")
    upright = read_picture(data, "x", turning=Turning.UPRIGHT)
    expected = np.asarray(ImageOps.exif_transpose(image_module.open(io.BytesIO(data))))
    assert np.array_equal(as_stored.pixels, colours())
    assert any("orientation" in note for note in as_stored.notes) == (orientation != 1)
    assert np.array_equal(upright.pixels, expected)
    assert (upright.height, upright.width) == expected.shape[:2]
    assert upright.notes == ()
    assert np.array_equal(turned_upright(colours(), orientation), expected)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    exif = image_module.Exif()
    exif[0x0112] = value
    assert np.array_equal(read_picture(stored(colours(), exif=exif), "x", turning=Turning.UPRIGHT).pixels, colours())


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    assert "cannot read the picture: No such file" in problem_of(lambda: open_picture(tmp_path / "none.jpg"))
    assert "folder" in problem_of(lambda: open_picture(tmp_path))
    assert "null byte" in problem_of(lambda: open_picture("a\0b"))
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert "0 bytes" in problem_of(lambda: open_picture(empty))
    for content in (b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", b"<svg/>"):
        assert "no kind that can be read" in problem_of(lambda content=content: read_picture(content, "x"))


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as handle:
        handle.truncate(300 * 1024 * 1024)
    assert "300.0 MiB is too large" in problem_of(lambda: open_picture(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_file_that_was_cut_off(kind: str) -> None:
    data = stored(colours(64, 64), kind)
    message = problem_of(lambda: read_picture(data[: len(data) // 2], "cut"))
    assert message.startswith("cut: ")
    assert "damaged or cut off" in message or "no kind" in message


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7072, 12_000, 60_000])  # just above our limit; where Pillow warns; where Pillow refuses
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    assert "more than 50000000 pixels" in problem_of(lambda: read_picture(png_header(side, side), "bomb"))


def test_the_pixel_limit_includes_its_number() -> None:
    assert read_picture(stored(colours(4, 6)), "x", pixel_limit=24).width == 6
    assert "more than 23 pixels" in problem_of(lambda: read_picture(stored(colours(4, 6)), "x", pixel_limit=23))


WHOLE = (
    {kind: stored(colours(24, 24), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")}
    if hasattr(image_module, "fromarray")
    else {}
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_damaged_files_are_read_or_refused_in_one_way(kind: str, edits: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE[kind])
    for place, value in edits:
        data[place % len(data)] = value
    try:
        picture = read_picture(bytes(data), "x", pixel_limit=1_000_000, turning=Turning.UPRIGHT)
    except SpecError:
        return
    assert picture.pixels.shape == (picture.height, picture.width, 3)


def test_without_pillow_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PrerequisiteError, match=r"fewbits\[detection\]"):
        read_picture(b"x", "x")


@pytest.mark.skipif(not COCO.is_dir(), reason="the COCO-mini images are not beside this checkout")
def test_real_photographs_have_the_size_that_their_labels_name() -> None:
    from fewbits.workloads.detection.coco import open_coco

    coco = open_coco(COCO, "val")
    for image in coco.images[:12]:
        picture = open_picture(coco.folder / image.file_name)
        assert (picture.width, picture.height) == (image.width, image.height)
        assert picture.pixels.std() > 5
