"""Archives of OCR engines: the same bytes each time, and nothing but what belongs there."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core import archive
from fewbits.core.errors import SpecError
from fewbits.quantizers.ocr.archive import MEMBERS, open_ocr_archive, write_ocr_archive

FILES = {name: name.encode() * 40 for name in MEMBERS}


def zipped(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in entries:
            target.writestr(name, data)
    return path


@given(contents=st.lists(st.binary(max_size=400), min_size=4, max_size=4))
def test_members_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    files = dict(zip(MEMBERS, contents, strict=True))
    path = tmp_path_factory.mktemp("archive") / "ocr.zip"
    write_ocr_archive(path, files)
    assert open_ocr_archive(path) == files


def test_bytes_depend_on_the_members_alone(tmp_path: Path) -> None:
    write_ocr_archive(tmp_path / "a.zip", FILES)
    write_ocr_archive(tmp_path / "b.zip", dict(reversed(FILES.items())))
    first = (tmp_path / "a.zip").read_bytes()
    assert first == (tmp_path / "b.zip").read_bytes()
    # a fixed digest: no clock, user or platform gets in
    assert hashlib.sha256(first).hexdigest() == "779b7719fcc416d86381151f7b4bc8b5886eb21f17f58a37752e4793f9f56902"


@pytest.mark.parametrize("names", [MEMBERS[:-1], (*MEMBERS, "extra")])
def test_other_members_are_not_written(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json"):
        write_ocr_archive(tmp_path / "a.zip", dict.fromkeys(names, b""))
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    "names",
    [
        MEMBERS[:-1],
        (*MEMBERS, "more.onnx"),
        (*MEMBERS, "det.onnx"),
        (*MEMBERS[:-1], "../cls.onnx"),
        (*MEMBERS[:-1], "/cls.onnx"),
        (*MEMBERS[:-1], "sub/cls.onnx"),
        (),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_other_members_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = zipped(tmp_path / "a.zip", [(name, b"x") for name in names])
    with pytest.raises(SpecError, match="is no archive of an OCR engine"):
        open_ocr_archive(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    """What unpacks to gigabytes (a zip bomb) is never unpacked."""
    path = zipped(tmp_path / "a.zip", [(name, bytes(1_000_000)) for name in MEMBERS], zipfile.ZIP_DEFLATED)
    with pytest.raises(SpecError, match="compressed"):
        open_ocr_archive(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [(MEMBERS[0], b""), (MEMBERS[1], b""), (MEMBERS[2], b""), (MEMBERS[3], bytes(5000))])
    with zipfile.ZipFile(path) as source:
        entries = source.infolist()
        offset = entries[3].header_offset
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    place = int.from_bytes(data[end + 16 : end + 20], "little")
    for entry in entries:
        # central directory (APPNOTE 4.3.12): sizes at 20 and 24, offset at 42
        data[place + 20 : place + 24] = data[place + 24 : place + 28] = (5000).to_bytes(4, "little")
        data[place + 42 : place + 46] = offset.to_bytes(4, "little")
        place += 46 + len(entry.filename)
    path.write_bytes(data)
    with pytest.raises(SpecError, match="is no archive of an OCR engine"):
        open_ocr_archive(path)


def test_large_members_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ocr_archive(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(archive, "MEMBER_LIMIT_BYTES", 100)
    with pytest.raises(SpecError, match="is no archive of an OCR engine"):
        open_ocr_archive(tmp_path / "a.zip")


@pytest.mark.parametrize("keep", [0, 1, 30, 200, -1, -30])
def test_cut_off_and_damaged_archives_are_refused(tmp_path: Path, keep: int) -> None:
    write_ocr_archive(tmp_path / "a.zip", FILES)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[:keep])
    with pytest.raises(SpecError, match="is no archive of an OCR engine"):
        open_ocr_archive(tmp_path / "a.zip")


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    write_ocr_archive(tmp_path / "a.zip", FILES)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(FILES["det.onnx"]) + 3] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(SpecError, match="is no archive of an OCR engine"):
        open_ocr_archive(tmp_path / "a.zip")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.zip"):
        with pytest.raises(SpecError, match="is no archive of an OCR engine"):
            open_ocr_archive(path)
