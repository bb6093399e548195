from __future__ import annotations

import builtins
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.images.pages import InputKind, Page, content_kind, find_inputs, kind_of, open_pages, parse_page_range
from fewbits.images.pdf import scale_for
from fewbits.images.tiff import page_offsets, single_page

image_module: Any = pytest.importorskip("PIL.Image")
pdfium: Any = pytest.importorskip("pypdfium2")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
"""Source: PDF 1.7 reference, algorithm 3.2, step 1."""


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> Any:
    return image_module.new("RGB", size, colour)


def write(path: Path, image: Any, kind: str, **options: Any) -> Path:
    image.save(path, kind, **options)
    return path


def problem_of(call: Any) -> str:
    with pytest.raises(SpecError) as caught:
        call()
    assert len(caught.value.problems) == 1
    return str(caught.value.problems[0])


def read_all(path: Path, **options: Any) -> list[Page]:
    with open_pages(path, **options) as pages:
        return list(pages)


def pdf_objects(*bodies: bytes, trailer: bytes = b"", root: int = 1) -> bytes:
    """Lay out objects 1.. with a correct cross-reference table."""
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    table += b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<< /Size %d /Root %d 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(bodies) + 1, root, trailer, len(data))
    return data + table + end


def one_page_pdf(
    content: bytes, *, box: bytes = b"0 0 144 72", extra: bytes = b"", more: tuple[bytes, ...] = (), **end: Any
) -> bytes:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R /Resources << %s >> >>" % (box, extra)
    stream = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
    kids = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return pdf_objects(b"<< /Type /Catalog /Pages 2 0 R >>", kids, page, stream, *more, **end)


def blank_pdf(path: Path, pages: int, size: tuple[float, float] = (144, 72)) -> Path:
    document = pdfium.PdfDocument.new()
    for _ in range(pages):
        document.new_page(*size)
    document.save(path)
    document.close()
    return path


def rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def encrypted_pdf(user_password: bytes) -> bytes:
    """A PDF by the standard security handler, revision 2. Source: PDF 1.7 reference, algorithms 3.2, 3.3 and 3.4."""
    identity, permissions = b"0123456789abcdef", -4
    owner_key = hashlib.md5((b"owner" + _PADDING)[:32]).digest()[:5]
    owner = rc4(owner_key, (user_password + _PADDING)[:32])
    seed = (user_password + _PADDING)[:32] + owner + struct.pack("<i", permissions) + identity
    key = hashlib.md5(seed).digest()[:5]
    handler = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P %d >>" % (
        owner.hex().encode(),
        rc4(key, _PADDING).hex().encode(),
        permissions,
    )
    content = rc4(hashlib.md5(key + struct.pack("<I", 4)[:3] + b"\0\0").digest()[:10], b"1 0 0 rg 0 0 144 72 re f")
    trailer = b"/Encrypt 5 0 R /ID [<%s> <%s>]" % ((identity.hex().encode(),) * 2)
    return one_page_pdf(content, more=(handler,), trailer=trailer)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("PNG", InputKind.PNG),
        ("JPEG", InputKind.JPEG),
        ("TIFF", InputKind.TIFF),
        ("BMP", InputKind.BMP),
        ("WEBP", InputKind.WEBP),
        ("GIF", InputKind.GIF),
    ],
)
def test_every_kind_of_picture_is_one_page_whatever_its_name(kind: str, found: InputKind, tmp_path: Path) -> None:
    path = write(tmp_path / "misnamed.pdf", flat((200, 100, 30), (48, 32)), kind)
    with open_pages(path) as pages:
        assert (pages.kind, pages.count, list(pages.numbers), len(pages)) == (found, 1, [1], 1)
        (page,) = pages
    assert (page.number, page.count, page.pixels.shape) == (1, 1, (32, 48, 3))
    assert page.pixels.dtype == np.uint8
    assert np.abs(page.pixels.astype(int) - (200, 100, 30)).max() <= 8


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[:, :2] = RED
    exif = image_module.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter clockwise: the left columns come to the top
    path = write(tmp_path / "photo.png", image_module.fromarray(stored), "PNG", exif=exif)
    (page,) = read_all(path)
    assert page.pixels.shape == (6, 4, 3)
    assert (page.pixels[:2] == RED).all()
    assert not page.pixels[2:].any()


def test_cmyk_and_animations_are_converted_and_said(tmp_path: Path) -> None:
    (page,) = read_all(write(tmp_path / "print.jpg", image_module.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"))
    assert page.notes == ("converted from CMYK",)
    assert page.pixels.min() >= 250
    frames = {"save_all": True, "append_images": [flat(GREEN), flat(BLUE)]}
    (page,) = read_all(write(tmp_path / "moving.gif", flat(RED), "GIF", **frames))
    assert (page.count, page.notes) == (1, ("frame 1 of 3 only",))
    assert (page.pixels == RED).all()


@pytest.mark.parametrize("big", [False, True])
def test_each_page_of_a_tiff_is_a_page(big: bool, tmp_path: Path) -> None:
    colours = (RED, GREEN, BLUE)
    rest = [flat(GREEN, (8, 5)), flat(BLUE, (3, 9))]
    path = write(tmp_path / "scan.tif", flat(RED), "TIFF", save_all=True, append_images=rest, big_tiff=big)
    pages = read_all(path)
    assert [(page.number, page.count, page.notes) for page in pages] == [(1, 3, ()), (2, 3, ()), (3, 3, ())]
    assert [page.pixels.shape[:2] for page in pages] == [(4, 6), (5, 8), (9, 3)]
    assert all((page.pixels == colour).all() for page, colour in zip(pages, colours, strict=True))
    assert [page.number for page in read_all(path, pages=(2, 3))] == [2, 3]
    assert "at most 2 are read at once" in problem_of(lambda: open_pages(path, page_limit=2))


def test_a_preview_in_a_tiff_is_no_page(tmp_path: Path) -> None:
    small = flat(BLUE, (2, 2))
    small.encoderinfo = {}
    path = tmp_path / "scan.tif"
    write(path, flat(RED), "TIFF", save_all=True, append_images=[small])
    data = bytearray(path.read_bytes())
    offsets, _ = page_offsets(bytes(data))
    data[offsets[1] + 2 : offsets[1] + 14] = struct.pack("<HHII", 254, 4, 1, 1)  # in place of ImageWidth, which it then lacks
    assert page_offsets(bytes(data)) == ((offsets[0],), ())


def test_a_tiff_whose_chain_of_pages_is_broken_gives_the_pages_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.tif", flat(RED), "TIFF", save_all=True, append_images=[flat(GREEN)])
    data = bytearray(path.read_bytes())
    offsets, _ = page_offsets(bytes(data))
    entries = struct.unpack_from("<H", data, offsets[0])[0]
    following = offsets[0] + 2 + 12 * entries
    for target, words in ((offsets[0], "circle"), (len(data) + 5, "damaged")):
        struct.pack_into("<I", data, following, target)
        path.write_bytes(data)
        (page,) = read_all(path)
        assert (page.pixels == RED).all()
        assert words in page.notes[0]


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]))
def test_the_chain_of_a_hostile_tiff_ends(rest: bytes, start: bytes) -> None:
    data = start + rest
    offsets, _ = page_offsets(data)
    assert len(set(offsets)) == len(offsets)
    for offset in offsets:
        assert len(single_page(data, offset)) == len(data)


def test_a_pdf_is_drawn_page_by_page_at_200_dpi(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    path.write_bytes(one_page_pdf(b"1 0 0 rg 0 36 144 36 re f"))
    with open_pages(path) as pages:
        assert (pages.kind, pages.count) == (InputKind.PDF, 1)
        page = pages.read(1)
    assert page.pixels.shape == (200, 400, 3)
    assert (page.pixels[:99] == RED).all()
    assert (page.pixels[101:] == 255).all()
    assert page.notes == ()
    assert page.pixels.flags.c_contiguous


def test_a_turned_pdf_page_is_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.pdf"
    path.write_bytes(
        one_page_pdf(b"1 0 0 rg 0 36 144 36 re f").replace(b"/Type /Page /Parent", b"/Rotate 90 /Type /Page /Parent")
    )
    (page,) = read_all(path)
    assert page.pixels.shape == (400, 200, 3)
    assert (page.pixels[:, 101:] == RED).all()


def test_five_hundred_pages_are_refused_until_some_are_chosen(tmp_path: Path) -> None:
    path = blank_pdf(tmp_path / "long.pdf", 500)
    assert problem_of(lambda: open_pages(path)) == (
        f"{path}: these are 500 pages, and at most 50 are read at once (choose some with --pages 1-50)"
    )
    with open_pages(path, pages=(499, 600)) as pages:
        assert [(page.number, page.count) for page in pages] == [(499, 500), (500, 500)]
    assert "there is no page 501: it has 500" in problem_of(lambda: open_pages(path, pages=(501, 502)))
    assert "--pages 11-60" in problem_of(lambda: open_pages(path, pages=(11, 100)))
    with open_pages(path, pages=(1, 2)) as pages, pytest.raises(ValueError, match="page 3 is not among"):
        pages.read(3)


@pytest.mark.parametrize("box", [(14_400_000, 14_400_000), (1e9, 1.0), (0.5, 9e7)])
def test_absurd_pdf_pages_stay_within_the_limit(box: tuple[float, float], tmp_path: Path) -> None:
    path = tmp_path / "huge.pdf"
    path.write_bytes(one_page_pdf(b"1 0 0 rg", box=b"0 0 %f %f" % box))
    (page,) = read_all(path, pixel_limit=20_000)
    assert page.pixels.shape[0] * page.pixels.shape[1] <= 20_000
    assert "instead of 200" in page.notes[0]


@given(st.floats(1e-3, 1e12), st.floats(1e-3, 1e12), st.integers(1, 10**8))
def test_the_scale_keeps_any_page_within_the_limit(width: float, height: float, limit: int) -> None:
    scale = scale_for(width, height, limit)
    assert scale is not None
    assert 0 < scale <= 200 / 72
    assert math.ceil(width * scale) * math.ceil(height * scale) <= limit


@pytest.mark.parametrize("size", [(0.0, 5.0), (-1.0, 5.0), (math.nan, 5.0), (math.inf, 5.0)])
def test_pages_without_a_size_have_no_scale(size: tuple[float, float]) -> None:
    assert scale_for(*size, 1000) is None


def test_a_picture_inside_a_pdf_is_bounded_too(tmp_path: Path) -> None:
    data = zlib.compress(b"\0" * 1000)
    picture = (
        b"<< /Type /XObject /Subtype /Image /Width 30000 /Height 30000 /ColorSpace /DeviceGray /BitsPerComponent 8"
        b" /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(data), data)
    )
    path = tmp_path / "bomb.pdf"
    path.write_bytes(one_page_pdf(b"144 0 0 72 0 0 cm /Im Do", extra=b"/XObject << /Im 5 0 R >>", more=(picture,)))
    found = problem_of(lambda: read_all(path))
    assert "bomb.pdf, page 1: a picture of 30000 x 30000 pixels" in found


def test_an_encrypted_pdf_is_refused_and_one_without_a_user_password_is_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.pdf"
    path.write_bytes(encrypted_pdf(b"secret"))
    assert "is encrypted and asks for a password" in problem_of(lambda: open_pages(path))
    path.write_bytes(encrypted_pdf(b""))
    (page,) = read_all(path)
    assert (page.pixels == RED).all()


def test_a_script_in_a_pdf_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "script.pdf"
    script = b"<< /S /JavaScript /JS (while (true) {}) >>"
    data = one_page_pdf(b"1 0 0 rg 0 0 144 72 re f", more=(script,))
    path.write_bytes(data.replace(b"/Type /Catalog", b"/OpenAction 5 0 R /Type /Catalog"))
    (page,) = read_all(path)
    assert (page.pixels == RED).all()


def test_a_pdf_without_pages_is_not_taken_for_the_encrypted_one_before_it(tmp_path: Path) -> None:
    secret, empty = tmp_path / "secret.pdf", tmp_path / "empty.pdf"
    secret.write_bytes(encrypted_pdf(b"secret"))
    empty.write_bytes(pdf_objects(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"))
    assert "encrypted" in problem_of(lambda: open_pages(secret))
    assert "the PDF is damaged, cut off, or has no pages" in problem_of(lambda: open_pages(empty))


@pytest.mark.parametrize("kept", [9, 40, 150])
def test_damaged_pdfs_are_one_sentence(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.pdf"
    path.write_bytes(one_page_pdf(b"1 0 0 rg")[:kept])
    assert problem_of(lambda: read_all(path)).startswith(f"{path}")


def test_one_damaged_page_leaves_the_others(tmp_path: Path) -> None:
    rest = [flat(GREEN, (60, 60)), flat(BLUE)]
    path = write(tmp_path / "scan.tif", flat(RED), "TIFF", save_all=True, append_images=rest)
    data = bytearray(path.read_bytes())
    offsets, _ = page_offsets(bytes(data))
    for at in range(offsets[1] + 2, offsets[1] + 2 + 12 * struct.unpack_from("<H", data, offsets[1])[0], 12):
        if struct.unpack_from("<H", data, at)[0] == 273:  # StripOffsets
            struct.pack_into("<I", data, at + 8, len(data) + 100)
    path.write_bytes(data)
    with open_pages(path) as pages:
        assert "scan.tif, page 2: the picture is damaged" in problem_of(lambda: pages.read(2))
        assert (pages.read(3).pixels == BLUE).all()


def test_thirty_thousand_pixels_square_are_never_decoded(tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    assert "has more than 50000000 pixels" in problem_of(lambda: read_all(path))


def test_what_is_no_page_is_refused_by_name(tmp_path: Path) -> None:
    empty, text, cut = tmp_path / "empty.png", tmp_path / "text.jpg", tmp_path / "cut.png"
    empty.touch()
    text.write_text("Hemoglobin 13.5 g/dL")
    cut.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert problem_of(lambda: open_pages(empty)).startswith(f"{empty}: the file is empty (0 bytes)")
    assert "neither a picture nor a PDF" in problem_of(lambda: open_pages(text))
    assert f"{cut}: " in problem_of(lambda: read_all(cut))
    assert "this is a folder" in problem_of(lambda: open_pages(tmp_path))
    assert "No such file" in problem_of(lambda: open_pages(tmp_path / "none.png"))
    assert "null byte" in problem_of(lambda: open_pages("a\0b"))
    os.mkfifo(tmp_path / "pipe.png")
    assert "a device or a pipe" in problem_of(lambda: open_pages(tmp_path / "pipe.png"))


@given(st.binary(max_size=60))
def test_any_bytes_have_a_kind_or_none(data: bytes) -> None:
    assert kind_of(data) in {None, *InputKind}


@pytest.mark.parametrize(("text", "pages"), [("7", (7, 7)), ("1-50", (1, 50)), (" 3-3 ", (3, 3))])
def test_page_ranges(text: str, pages: tuple[int, int]) -> None:
    assert parse_page_range(text) == pages


@pytest.mark.parametrize("text", ["", "0", "5-2", "1-", "-3", "1,2", "a", "٣", "1" * 9])
def test_bad_page_ranges(text: str) -> None:
    assert problem_of(lambda: parse_page_range(text)).startswith("--pages: ")


def test_a_folder_gives_its_pages_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.png", flat(RED), "PNG")
    write(tmp_path / "a.JPG", flat(RED), "JPEG")
    blank_pdf(tmp_path / "no suffix", 1)
    for name in ("labels.json", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "broken.tif").touch()
    (tmp_path / "inner.png").mkdir()
    write(tmp_path / "inner.png" / "deep.png", flat(RED), "PNG")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    odd = os.fsdecode(b"\xff\n.png")
    (tmp_path / odd).write_bytes((tmp_path / "b.png").read_bytes())
    names = [path.name for path in find_inputs(tmp_path)]
    assert names == ["a.JPG", "b.png", "broken.tif", "dangling.png", "link.png", "no suffix", odd]
    assert content_kind(tmp_path / "broken.tif") is None
    assert content_kind(tmp_path / "link.png") is InputKind.PNG
    assert find_inputs(tmp_path / "b.png") == (tmp_path / "b.png",)
    assert (read_all(tmp_path / odd)[0].pixels == RED).all()


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    assert "holds no picture and no PDF" in problem_of(lambda: find_inputs(tmp_path))
    assert "No such file" in problem_of(lambda: find_inputs(tmp_path / "none"))


def test_without_pypdfium2_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blank_pdf(tmp_path / "a.pdf", 1)
    importing = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name == "pypdfium2":
            raise ImportError(name)
        return importing(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PrerequisiteError, match=r"pip install 'fewbits\[extraction\]'"):
        open_pages(path)
