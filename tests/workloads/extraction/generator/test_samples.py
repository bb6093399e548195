"""Folders of generated pages: reproducible, whole or not at all, never mixed with other files."""

from __future__ import annotations

import errno
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewbits.core.errors import SpecError, StoreError
from fewbits.records.extraction import FlagSource, Level
from fewbits.workloads.extraction.generator.degrade import degraded
from fewbits.workloads.extraction.generator.layouts import LAYOUTS
from fewbits.workloads.extraction.generator.samples import generate_pages, generated_page, layout_of, write_pdf
from fewbits.workloads.extraction.labelled import read_labelled

TWO = (Level.CLEAN, Level.SCAN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "samples"
    generate_pages(folder, seed=3, count=4, levels=tuple(Level), name="four levels")
    return folder


def test_a_folder_holds_its_pages_and_their_labels(made: Path) -> None:
    labels = read_labelled(made, check_digests=True)
    assert sorted(path.name for path in made.iterdir()) == [
        "labels.json",
        "page-0001.png",
        "page-0002.jpg",
        "page-0003.png",
        "page-0004.jpg",
    ]
    assert [page.level for page in labels.pages] == list(Level)
    assert len({page.layout for page in labels.pages}) == 4
    for page in labels.pages:
        assert page.truth.tests
        assert all(isinstance(test.flag_source, FlagSource) for test in page.truth.tests)
        with Image.open(made / page.file_name) as image:
            assert image.mode == ("L" if page.level in ("scan", "fax") else "RGB")
            assert 1200 < image.width < 2000


def test_a_page_does_not_depend_on_how_many_are_made(made: Path, tmp_path: Path) -> None:
    fewer = generate_pages(tmp_path, seed=3, count=2, levels=tuple(Level), name="two")
    assert fewer.pages == read_labelled(made).pages[:2]
    assert (tmp_path / "page-0002.jpg").read_bytes() == (made / "page-0002.jpg").read_bytes()


@pytest.mark.parametrize("level", [Level.FAX, Level.PHOTO])
def test_equal_seeds_give_equal_bytes(made: Path, level: Level) -> None:
    page = next(page for page in read_labelled(made).pages if page.level == level)
    again = generated_page(page.seed or 0, level, page.layout or "")
    assert again.encoded.data == (made / page.file_name).read_bytes()
    assert again.truth == page.truth


def test_making_the_same_set_again_changes_nothing(made: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    generate_pages(made, seed=3, count=4, levels=tuple(Level), name="four levels")
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before


def test_another_set_is_never_mixed_in(made: Path) -> None:
    with pytest.raises(SpecError, match="holds other files"):
        generate_pages(made, seed=4, count=4, levels=tuple(Level), name="four levels")


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(SpecError, match="new or empty folder"):
        generate_pages(tmp_path, seed=3, count=1, levels=TWO, name="x")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_splits_share_no_page(tmp_path: Path) -> None:
    sets = [
        generate_pages(tmp_path / split, seed=0, count=2, levels=TWO, name=split, split=split) for split in ("tuning", "test")
    ]
    assert not {page.sha256 for page in sets[0].pages} & {page.sha256 for page in sets[1].pages}
    assert not {repr(page.truth) for page in sets[0].pages} & {repr(page.truth) for page in sets[1].pages}


@pytest.mark.parametrize(
    ("count", "levels", "split", "where"),
    [
        (0, TWO, "test", "count"),
        (10_000, TWO, "test", "count"),
        (1, (), "test", "levels"),
        (2, (*TWO, Level.SCAN), "test", "levels"),
        (1, TWO, "train", "split"),
    ],
)
def test_unusable_settings_are_refused(tmp_path: Path, count: int, levels: tuple[Level, ...], split: str, where: str) -> None:
    with pytest.raises(SpecError, match=where):
        generate_pages(tmp_path / "new", seed=0, count=count, levels=levels, name="x", split=split)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the first page's file and folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="disk is full"):
        generate_pages(tmp_path / "new", seed=0, count=3, levels=(Level.CLEAN,), name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        generate_pages(tmp_path / "file" / "pages", seed=0, count=1, levels=TWO, name="x")
    with pytest.raises(StoreError, match="cannot write"):
        generate_pages(tmp_path / "file", seed=0, count=1, levels=TWO, name="x")


def test_what_a_stopped_run_left_is_cleared(tmp_path: Path) -> None:
    stopped = tmp_path / ".fewbits-pages-abc"
    stopped.mkdir()
    (stopped / "page-0001.png").write_bytes(b"half")
    generate_pages(tmp_path, seed=0, count=1, levels=(Level.CLEAN,), name="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json", "page-0001.png"]


def test_each_level_shows_every_layout() -> None:
    for level in Level:
        assert {layout_of(level, index).name for index in range(len(LAYOUTS))} == {layout.name for layout in LAYOUTS}
    assert len({layout_of(level, index).name for level in Level for index in range(3)}) == len(LAYOUTS)


def test_levels_do_to_a_page_what_they_say() -> None:
    sheet = Image.new("RGB", (400, 520), "white")
    sheet.paste((20, 20, 20), (60, 60, 340, 90))
    clean, scan, fax, photo = (
        np.asarray(Image.open(BytesIO(degraded(sheet, level, 5, 150).data)).convert("L"), dtype=int) for level in Level
    )
    assert np.array_equal(clean, np.asarray(sheet.convert("L")))
    assert clean.shape == scan.shape == fax.shape
    assert photo.shape[0] > 520
    assert 3 < scan[200:400, 50:350].std() + 2 < 10
    assert fax.max() - fax.min() < 200 < clean.max() - clean.min()
    assert len(np.unique(fax)) <= 9
    # the paper's edges are askew, and a table is seen around it
    assert photo[0, 0] < photo[260, 220]


def test_pdfs_hold_their_pages_and_no_time(made: Path, tmp_path: Path) -> None:
    pages = [made / "page-0001.png", made / "page-0002.jpg"]
    first = write_pdf(pages, tmp_path / "a.pdf").read_bytes()
    assert first == write_pdf(pages, tmp_path / "b.pdf").read_bytes()
    assert first.startswith(b"%PDF-")
    assert b"/Count 2" in first
    with pytest.raises(SpecError, match="at least one page"):
        write_pdf([], tmp_path / "c.pdf")
