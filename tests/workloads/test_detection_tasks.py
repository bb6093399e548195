from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import get_args

import pytest

from detection_samples import labelled, thing
from fewbits.core.codec import decode, encode_canonical
from fewbits.core.errors import SpecError
from fewbits.records.base import Bucket
from fewbits.records.task import DetectionCheck, TaskBank, TaskId, task_digest
from fewbits.workloads.detection.coco import CocoSet
from fewbits.workloads.detection.tasks import detection_bank, task_id


def coco_in(folder: Path) -> CocoSet:
    images = (labelled(7, [thing(1, 0, 0, 5, 5)]), labelled(12, []))
    for image in images:
        (folder / image.file_name).write_bytes(str(image.image_id).encode())
    return CocoSet(images, (), folder, folder / "labels.json", "ab" * 32)


def test_one_task_per_image(tmp_path: Path) -> None:
    coco = coco_in(tmp_path)
    bank = detection_bank(coco, coco.images[::-1], "coco-mini val")
    assert (bank.name, bank.version) == ("coco-mini val", "abababababab")
    assert [task.id for task in bank.tasks] == ["image-000000000012", "image-000000000007"]
    task = bank.tasks[1]
    assert (task.bucket, task.tier, task.prompt) == (Bucket.DETECTION, 1, "Find the objects in 000000000007.jpg.")
    assert task.image is not None
    assert (task.image.file_name, task.image.sha256) == ("000000000007.jpg", hashlib.sha256(b"7").hexdigest())
    assert task.checks == (DetectionCheck(image_id=7, width=640, height=480, objects=coco.images[0].objects),)
    assert decode(encode_canonical(bank), TaskBank, "bank") == bank


def test_another_picture_under_the_same_name_is_another_task(tmp_path: Path) -> None:
    coco = coco_in(tmp_path)
    before = task_digest(detection_bank(coco, coco.images, "x").tasks[0])
    (tmp_path / coco.images[0].file_name).write_bytes(b"other")
    assert task_digest(detection_bank(coco, coco.images, "x").tasks[0]) != before


@pytest.mark.parametrize("image_id", [0, 139, 10**12, 2**63 - 1])
def test_ids_fit(image_id: int) -> None:
    pattern = get_args(TaskId)[1].pattern
    assert re.search(pattern, task_id(image_id))


def test_images_that_cannot_be_asked_about(tmp_path: Path) -> None:
    coco = coco_in(tmp_path)
    with pytest.raises(SpecError, match="no image to ask about"):
        detection_bank(coco, [], "x")
    (tmp_path / coco.images[1].file_name).unlink()
    with pytest.raises(SpecError, match="the file of image 12 is missing"):
        detection_bank(coco, coco.images, "x")
