from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection_samples import labelled
from fewbits.core.errors import SpecError
from fewbits.records.detection import ImageRequest
from fewbits.workloads.detection.coco import CocoSet
from fewbits.workloads.detection.lists import (
    digest_images,
    draw_images,
    first_images,
    overlapping,
    read_id_list,
    read_image_list,
)

SET = CocoSet(tuple(labelled(3 * number, []) for number in range(1, 11)), (), Path("images"), Path("labels.json"), "0" * 64)


def ids(images: object) -> list[int]:
    return [image.image_id for image in images]  # type: ignore[attr-defined]


def listed(folder: Path, text: str | bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(call: object) -> list[str]:
    with pytest.raises(SpecError) as caught:
        call()  # type: ignore[operator]
    return [str(problem) for problem in caught.value.problems]


def test_the_first_images() -> None:
    assert ids(first_images(SET, 3)) == [3, 6, 9]
    assert first_images(SET) == SET.images
    assert first_images(SET, 99) == SET.images
    assert "0 is not a number of images" in problems_of(lambda: first_images(SET, 0))[0]


@given(seed=st.integers(0, 500), count=st.integers(1, 10))
def test_draws_are_nested_sorted_and_without_repeats(seed: int, count: int) -> None:
    drawn = ids(draw_images(SET, count, seed))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count
    assert set(ids(draw_images(SET, max(1, count - 1), seed))) <= set(drawn)


def test_a_draw_is_fixed_for_ever() -> None:
    # sha256 of "<seed>\nimages\n<id>" alone decides
    words = sorted(ids(SET.images), key=lambda number: hashlib.sha256(f"7\nimages\n{number}".encode()).digest())
    assert ids(draw_images(SET, 4, 7)) == sorted(words[:4])
    drawn = {tuple(ids(draw_images(SET, 4, seed))) for seed in range(40)}
    assert len(drawn) > 30
    share = sum(3 in ids(draw_images(SET, 4, seed)) for seed in range(1000)) / 1000
    assert 0.35 < share < 0.45


@pytest.mark.parametrize("count", [0, -1, 11])
def test_draws_that_cannot_be_made(count: int) -> None:
    assert "between 1 and 10" in problems_of(lambda: draw_images(SET, count, 1))[0]


def test_a_list_of_ids(tmp_path: Path) -> None:
    path = listed(tmp_path, "\ufeff# which images\r\n9\n\n 3  # the first\n000012\n")
    assert ids(read_id_list(path, SET)) == [3, 9, 12]


def test_every_wrong_line_of_an_id_list_is_named(tmp_path: Path) -> None:
    path = listed(tmp_path, "3\nx\n-3\n3.0\n4\n3\n" + "9" * 5000 + "\n\u0663\n")
    problems = problems_of(lambda: read_id_list(path, SET))
    assert [problem.split("line ")[1].split(":")[0] for problem in problems] == ["2", "3", "4", "5", "6", "7", "8"]
    assert "there is no image 4 in labels.json" in problems[3]
    assert "image 3 stands twice (first on line 1)" in problems[4]
    assert max(map(len, problems)) < 300


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_empty_lists(tmp_path: Path, text: str) -> None:
    path = listed(tmp_path, text)
    assert "the list names no image" in problems_of(lambda: read_id_list(path, SET))[0]
    assert "the list names no image" in problems_of(lambda: read_image_list(path))[0]


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in problems_of(lambda: read_image_list(tmp_path / "none.txt"))[0]
    assert "Is a directory" in problems_of(lambda: read_id_list(tmp_path, SET))[0]
    assert "not UTF-8" in problems_of(lambda: read_image_list(listed(tmp_path, b"\xff\xfe\x00")))[0]
    with (tmp_path / "huge.txt").open("wb") as handle:
        handle.truncate(100 * 1024 * 1024)
    assert "too large" in problems_of(lambda: read_image_list(tmp_path / "huge.txt"))[0]


def test_a_list_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "pictures", there):
        folder.mkdir(parents=True)
    (here / "pictures" / "a #1.jpg").write_bytes(b"a")
    (there / "b.jpg").write_bytes(b"b")
    (tmp_path / "c.jpg").write_bytes(b"c")
    monkeypatch.chdir(there)
    path = listed(here, f"# beside the list, in the current folder, absolute\npictures/a #1.jpg\nb.jpg\n{tmp_path / 'c.jpg'}\n")
    assert read_image_list(path) == (here / "pictures" / "a #1.jpg", Path("b.jpg"), tmp_path / "c.jpg")


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "empty.jpg").touch()
    path = listed(tmp_path, "a.jpg\nnone.jpg\nempty.jpg\na.jpg\n.\na\0b\n" + "x" * 5000 + "\n")
    problems = problems_of(lambda: read_image_list(path))
    assert [problem.split("line ")[1].split(":")[0] for problem in problems] == ["2", "3", "4", "5", "6", "7"]
    assert "stands twice (first on line 1)" in problems[2]


def test_digests_and_what_two_lists_share(tmp_path: Path) -> None:
    for name, content in (("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"1")):
        (tmp_path / name).write_bytes(content)
    first, second, third = digest_images([tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")])
    assert first == ImageRequest(file_name="a.jpg", sha256=hashlib.sha256(b"1").hexdigest())
    # the content counts, not the name
    assert overlapping([first, second], [third]) == (first,)
    assert overlapping([second], [first, third]) == ()
    assert "none.jpg: No such file" in problems_of(lambda: digest_images([tmp_path / "none.jpg"]))[0]
