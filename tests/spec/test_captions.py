"""Caption files: prefixes of each other, the same bytes every time, and nothing of the images that evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewbits.api.captions import SIZES, write_caption_files
from fewbits.core.errors import SpecError
from fewbits.spec.captions import read_captions

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini" / "captions_train2017.txt"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    annotations = [{"image_id": number // 5, "id": number, "caption": f"caption\n  number {number} "} for number in range(700)]
    path = tmp_path / "captions_train2017.json"
    image = {"coco_url": "http://images.cocodataset.org/train2017/000000000001.jpg"}
    path.write_text(json.dumps({"annotations": annotations[::-1], "images": [image]}))
    return path


def test_sizes_are_prefixes_and_repeat(coco: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert write_caption_files(coco, first) == SIZES
    write_caption_files(coco, second)
    write_caption_files(coco, second)
    texts = [(first / f"coco2017_captions_{size}.txt").read_text() for size in SIZES]
    assert [len(text.splitlines()) for text in texts] == list(SIZES.values())
    assert texts[2].startswith(texts[1])
    assert texts[1].startswith(texts[0])
    assert [path.read_bytes() for path in sorted(first.iterdir())] == [path.read_bytes() for path in sorted(second.iterdir())]
    assert all(line.startswith("caption number ") for line in texts[2].splitlines())
    assert len(set(texts[2].splitlines())) == 512


def test_the_order_is_drawn_from_the_seed(coco: Path, tmp_path: Path) -> None:
    write_caption_files(coco, tmp_path / "a", seed=1)
    write_caption_files(coco, tmp_path / "b", seed=2)
    name = "coco2017_captions_small.txt"
    assert (tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text()


def test_a_text_file_keeps_its_order_and_may_be_short(tmp_path: Path) -> None:
    source = tmp_path / "captions.txt"
    source.write_text("\ufeffone\n\ntwo\r\nthree", encoding="utf-8")
    assert write_caption_files(source, tmp_path / "out", sizes={"small": 2, "large": 9}) == {"small": 2, "large": 3}
    assert (tmp_path / "out" / "coco2017_captions_small.txt").read_text() == "one\ntwo\n"
    assert read_captions(tmp_path / "out" / "coco2017_captions_large.txt", None) == ("one", "two", "three")


@pytest.mark.parametrize("name", ["captions_val2017.json", "captions_val.txt", "test2017_captions.json", "Validation.json"])
def test_held_out_sources_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(SpecError, match="train images"):
        write_caption_files(tmp_path / name, tmp_path)


def test_held_out_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    image = {"coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"}
    path.write_text(json.dumps({"annotations": [{"image_id": 1, "id": 1, "caption": "x"}], "images": [image]}))
    with pytest.raises(SpecError, match="val2017"):
        write_caption_files(path, tmp_path)


@pytest.mark.parametrize("name", ["latest_captions.txt", "valued_captions.txt"])
def test_words_that_only_look_like_it_pass(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a dog\n")
    assert write_caption_files(tmp_path / name, tmp_path)["small"] == 1


@pytest.mark.parametrize("content", ["[", "{}", '{"annotations": []}', '{"annotations": [{"caption": 1}]}'])
def test_what_is_no_coco_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(SpecError, match="captions"):
        write_caption_files(path, tmp_path)


@pytest.mark.skipif(not REAL.is_file(), reason="no COCO captions on this machine: shared/data/coco-mini is not there")
def test_real_captions(tmp_path: Path) -> None:
    assert write_caption_files(REAL, tmp_path) == {"small": 16, "medium": 128, "large": 400}
