"""Labelled images as tasks: one question per image, through the same bank, plan and journal as every other kind of work."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.core.errors import Problem
from fewbits.core.files import sha256_file
from fewbits.records.base import Bucket
from fewbits.records.detection import ImageRequest, LabelledImage
from fewbits.records.task import DetectionCheck, Task, TaskBank
from fewbits.workloads.detection.coco import CocoSet, refuse_problems, require_files

_VERSION_DIGITS = 12


def detection_bank(coco: CocoSet, images: Sequence[LabelledImage], name: str) -> TaskBank:
    """Return one task per image, in the order given; the bank's version is the start of the annotation file's digest.

    Reads every image once for its digest. Raises `SpecError` naming the files that are missing, empty or not readable, and
    when `images` is empty.
    """
    if not images:
        refuse_problems([Problem("images", "there is no image to ask about")], str(coco.annotations))
    require_files(coco, images)
    tasks, problems = [], []
    for image in images:
        try:
            tasks.append(_task(image, sha256_file(coco.folder / image.file_name)))
        except OSError as error:
            problems.append(Problem(image.file_name, f"cannot read this image: {error.strerror or error}"))
    refuse_problems(problems, str(coco.folder))
    description = "Find the objects in labelled images (COCO format)."
    return TaskBank(name=name, version=coco.digest[:_VERSION_DIGITS], description=description, tasks=tuple(tasks))


def task_id(image_id: int) -> str:
    """Return the task id of an image: `image-000000000139`, so that ids sort as numbers do."""
    return f"image-{image_id:012d}"


def _task(image: LabelledImage, sha256: str) -> Task:
    check = DetectionCheck(image_id=image.image_id, width=image.width, height=image.height, objects=image.objects)
    return Task(
        id=task_id(image.image_id),
        bucket=Bucket.DETECTION,
        tier=1,
        prompt=f"Find the objects in {image.file_name}.",
        image=ImageRequest(file_name=image.file_name, sha256=sha256),
        checks=(check,),
    )
