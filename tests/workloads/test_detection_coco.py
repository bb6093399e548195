from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.core.files import sha256_file
from fewbits.workloads.detection.coco import load_coco, open_coco, require_files

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini"


def coco_file(**changes: Any) -> dict[str, Any]:
    """Return a small file as COCO writes it; `changes` replace whole lists, and `None` takes one out."""
    tree = {
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 64, "height": 48, "license": 1},
            {"id": 4, "file_name": "a.jpg", "width": 32, "height": 32},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 9,
                "category_id": 3,
                "bbox": [1, 2.5, 10, 20],
                "area": 150.5,
                "iscrowd": 0,
                "segmentation": [[1]],
            },
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 900, "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}],
        "info": {"year": 2017},
    } | changes
    return {key: value for key, value in tree.items() if value is not None}


def written(folder: Path, tree: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return path


def problems_of(folder: Path, tree: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_coco(written(folder, tree), folder)
    return [str(problem) for problem in caught.value.problems]


def test_a_small_file(tmp_path: Path) -> None:
    path = written(tmp_path, coco_file())
    coco = load_coco(path, tmp_path / "images")
    assert [image.image_id for image in coco.images] == [4, 9]
    assert [(category.category_id, category.name) for category in coco.categories] == [(1, "person"), (3, "dog")]
    assert coco.images[0].objects == ()
    dog, crowd = coco.images[1].objects
    assert (dog.category_id, dog.bbox, dog.area, dog.crowd) == (3, (1, 2.5, 10, 20), 150.5, False)
    assert crowd.crowd is True
    assert (coco.digest, coco.annotations, coco.folder, coco.notes) == (sha256_file(path), path, tmp_path / "images", ())


def test_what_detection_sets_may_leave_out(tmp_path: Path) -> None:
    bare = [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [0, 0, 5, 4]}]
    only = load_coco(written(tmp_path, coco_file(annotations=bare)), tmp_path).images[1].objects[0]
    assert (only.area, only.crowd) == (20.0, False)


def test_boxes_without_extent_are_left_out_and_counted(tmp_path: Path) -> None:
    flat = [
        {"id": number, "image_id": 9, "category_id": 3, "bbox": [1, 1, *size]}
        for number, size in enumerate([(0, 5), (5, 0), (5, 5)])
    ]
    coco = load_coco(written(tmp_path, coco_file(annotations=flat)), tmp_path)
    assert len(coco.images[1].objects) == 1
    assert coco.notes == ("2 boxes of zero width or height left out",)


def one_annotation(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0} | changes]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": None}, "images: this key is missing"),
        ({"annotations": {}}, "annotations: this must be a list"),
        ({"images": [], "annotations": []}, "the file lists no image"),
        ({"images": [{"id": 9, "file_name": "b.jpg", "width": 64}]}, "images[0]: Object missing required field `height`"),
        (
            {"images": [{"id": "9", "file_name": "b.jpg", "width": 64, "height": 1}]},
            "images[0]: Expected `int`, got `str` - at `$.id`",
        ),
        ({"images": [{"id": 9, "file_name": "b.jpg", "width": 0, "height": 1}]}, "at `$.width`"),
        ({"images": [7]}, "images[0]: Expected `object`, got `int`"),
        ({"annotations": one_annotation(image_id=5)}, "annotation 1: it belongs to image 5, which is not in the file"),
        ({"annotations": one_annotation(category_id=2)}, "annotation 1: it has category 2, which is not in the file"),
        ({"annotations": one_annotation(bbox=[0, 0, -5, 5])}, "annotation 1: its box [0.0, 0.0, -5.0, 5.0] has a negative size"),
        ({"annotations": one_annotation(bbox=[0, 0, 5])}, "annotations[0]: Expected `array` of length 4 - at `$.bbox`"),
        ({"annotations": one_annotation(bbox=[0, 0, 5, None])}, "got `null` - at `$.bbox[3]`"),
        ({"annotations": one_annotation(bbox=[0, 0, 5, 1e300])}, "at `$.bbox[3]`"),
        ({"annotations": one_annotation(area=-1)}, "at `$.area`"),
        ({"annotations": one_annotation(iscrowd=2)}, "at `$.iscrowd`"),
        ({"annotations": one_annotation() * 2}, "annotations[1].id: the id 1 of this annotation is used twice"),
        (
            {"categories": [{"id": 3, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "p"}]},
            "this category is used twice",
        ),
        (
            {"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "dog"}]},
            "category 1: its name 'dog' is also that of category 3",
        ),
    ],
)
def test_one_thing_wrong(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    problems = problems_of(tmp_path, coco_file(**changes))
    assert len(problems) == 1, problems
    assert expected in problems[0]
    assert problems[0].startswith(str(tmp_path / "instances.json"))


def test_repeated_image_ids_and_shared_files(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "b.jpg", "width": 64, "height": 48}] * 2 + [
        {"id": 4, "file_name": "b.jpg", "width": 1, "height": 1}
    ]
    problems = problems_of(tmp_path, coco_file(images=images))
    assert any("the id 9 of this image is used twice" in problem for problem in problems)
    assert any("image 4: its file 'b.jpg' is also that of image 9" in problem for problem in problems)


@pytest.mark.parametrize(
    "name", ["../b.jpg", "/etc/passwd", "a/../../b.jpg", "a\\b.jpg", "C:/b.jpg", "", "  ", "a\nb.jpg", "a\0b.jpg"]
)
def test_file_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    images = [{"id": 9, "file_name": name, "width": 64, "height": 48}]
    problems = problems_of(tmp_path, coco_file(images=images))
    assert len(problems) == 1
    assert "leaves the image folder" in problems[0] or "cannot be printed" in problems[0]


def test_names_may_lie_in_folders_below(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "part 1/b..jpg", "width": 64, "height": 48}]
    assert load_coco(written(tmp_path, coco_file(images=images)), tmp_path).images[0].file_name == "part 1/b..jpg"


def test_every_problem_is_reported_at_once_up_to_a_bound(tmp_path: Path) -> None:
    several = coco_file(
        images=[{"id": 9, "file_name": "../b.jpg", "width": 64, "height": 48}],
        annotations=[*one_annotation(image_id=5), *one_annotation(bbox="x"), *one_annotation(id=3, category_id=8)],
        categories=None,
    )
    problems = problems_of(tmp_path, several)
    # without the list of categories nobody can say that category 8 is unknown
    assert [problem.split("instances.json: ")[1].split(":")[0] for problem in problems] == [
        "categories",
        "annotations[1]",
        "image 9",
        "annotation 1",
    ]
    many = [{"id": number, "image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1]} for number in range(1000)]
    problems = problems_of(tmp_path, coco_file(annotations=many))
    assert len(problems) == 21
    assert problems[-1].endswith("and 980 more problems of this kind")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": [}', "[" * 100_000, '{"images": ' + "[" * 100_000, "\ud800"])
def test_files_that_are_not_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SpecError, match=r"not a JSON object|must be a list|this key is missing"):
        load_coco(path, tmp_path)


def test_nan_is_named(tmp_path: Path) -> None:
    assert "NaN and Infinity are not JSON" in problems_of(tmp_path, coco_file(annotations=one_annotation(area=float("nan"))))[0]


@settings(max_examples=100, deadline=None)
@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "bbox", "images", "file_name", "width"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.mktemp("any"), {"images": data, "annotations": data, "categories": data})
    with pytest.raises(SpecError):
        load_coco(path, path.parent)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read the annotation file: No such file"):
        load_coco(tmp_path / "none.json", tmp_path)
    with pytest.raises(SpecError, match="cannot read the annotation file: Is a directory"):
        load_coco(tmp_path, tmp_path)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as handle:
        handle.truncate(3 * 1024**3)
    with pytest.raises(SpecError, match="too large for an annotation file"):
        load_coco(huge, tmp_path)


@pytest.mark.parametrize(
    ("file", "folder", "split"),
    [
        ("instances_val2017.json", "val2017", "val"),
        ("instances_val2017.json", "images/val2017", "val"),
        ("instances_val.json", "val", "val"),
        ("instances_val.json", "images/val", "val"),
        ("instances_val2017.json", "val2017", "val2017"),
    ],
)
def test_the_usual_layouts(tmp_path: Path, file: str, folder: str, split: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "annotations" / file).write_text(json.dumps(coco_file()))
    coco = open_coco(tmp_path, split)
    assert (coco.folder, coco.annotations.name) == (tmp_path / folder, file)


def test_a_folder_without_coco(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        open_coco(tmp_path, "val")
    shown = str(caught.value)
    assert "no annotation file" in shown
    assert "no image folder" in shown
    assert "looked for annotations/instances_val2017.json" in shown
    for split in ("", "../val", "a/b"):
        with pytest.raises(SpecError, match="not the name of a split"):
            open_coco(tmp_path, split)


def test_missing_and_empty_image_files_are_all_named(tmp_path: Path) -> None:
    coco = load_coco(written(tmp_path, coco_file()), tmp_path)
    (tmp_path / "b.jpg").touch()
    with pytest.raises(SpecError) as caught:
        require_files(coco, coco.images)
    assert "a.jpg: the file of image 4 is missing" in str(caught.value)
    assert "b.jpg: the file of image 9 is empty (0 bytes)" in str(caught.value)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    require_files(coco, coco.images)
    require_files(coco, [])


@pytest.mark.skipif(not COCO.is_dir(), reason="the COCO-mini labels are not beside this checkout")
def test_real_coco() -> None:
    coco = open_coco(COCO, "val")
    assert (len(coco.images), len(coco.categories), coco.notes) == (80, 80, ())
    assert sum(len(image.objects) for image in coco.images) == 815
    assert sum(one.crowd for image in coco.images for one in image.objects) == 11
    assert (coco.categories[0].name, coco.categories[-1].category_id) == ("person", 90)
    require_files(coco, coco.images)
