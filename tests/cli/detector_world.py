"""A whole world for detector sweeps in a few seconds: a random YOLOv10 with three classes, and three pictures a split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantizers.yolov10_samples import Sample, write_checkpoint

IMAGE_SIZE = 64
WIDTH, HEIGHT = 64, 48
SPLITS = {"val": (3, 5, 9), "train": (2, 4, 6)}
CATEGORIES = ({"id": 9, "name": "bird"}, {"id": 1, "name": "cat"}, {"id": 7, "name": "dog"})
"""In the order of their ids, the classes of `Sample`."""


@dataclass(frozen=True)
class DetectorWorld:
    """Where weights and pictures lie."""

    root: Path
    weights: Path
    coco: Path

    def arguments(self, out: Path, *more: str, action: str = "sweep", schemes: str = "") -> list[str]:
        """Return a command line without canary; `more` wins over what stands before it."""
        chosen = ["--schemes", schemes] if schemes else []
        data = ["--weights", str(self.weights), "--coco", str(self.coco), "--imgsz", str(IMAGE_SIZE), "--head", "one-to-one"]
        return ["detect", action, *data, *chosen, "--canary-runs", "0", "--out-dir", str(out), *more]

    def annotations(self, split: str = "val") -> Path:
        return self.coco / "annotations" / f"instances_{split}2017.json"

    def relabel(self, objects: Sequence[tuple[int, int, list[float]]]) -> None:
        """Replace the labels of the evaluated pictures: (image id, category id, box as x, y, width, height)."""
        write_labels(self.annotations(), SPLITS["val"], objects)


@contextmanager
def detector_world(root: Path) -> Iterator[DetectorWorld]:
    """Make a world with a cache of its own, for as long as the block lasts; torch computes on one thread."""
    import torch

    torch.set_num_threads(1)
    coco = root / "coco"
    rng = np.random.default_rng(0)
    for split, ids in SPLITS.items():
        for image_id in ids:
            write_picture(coco / f"{split}2017" / f"{image_id}.png", rng)
        write_labels(coco / "annotations" / f"instances_{split}2017.json", ids, [(one, 7, [10, 10, 20, 20]) for one in ids])
    write_checkpoint(root / "tiny.pt", Sample())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWBITS_CACHE", str(root / "cache"))
        patch.delenv("FEWBITS_ACCEPT_AGPL_WEIGHTS", raising=False)
        yield DetectorWorld(root, root / "tiny.pt", coco)


def write_picture(path: Path, rng: np.random.Generator) -> None:
    """Write coarse coloured noise."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    Image.fromarray(np.kron(cells, np.ones((8, 8, 1), dtype=np.uint8))).save(path)


def write_labels(path: Path, ids: Sequence[int], objects: Sequence[tuple[int, int, list[float]]]) -> None:
    """Write an annotation file in COCO's layout."""
    content: dict[str, Any] = {
        "images": [{"id": one, "file_name": f"{one}.png", "width": WIDTH, "height": HEIGHT} for one in ids],
        "categories": list(CATEGORIES),
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, (image, category, box) in enumerate(objects, start=1)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def fail_for(monkeypatch: pytest.MonkeyPatch, method: str, tags: Sequence[str], error: BaseException) -> None:
    """Let one step of the quantizer (`export`, `clean`) raise for some tags."""
    from fewbits.quantizers.brevitas.quantizer import BrevitasQuantizer

    real = getattr(BrevitasQuantizer, method)

    def step(self: Any, source: Any, what: Any, progress: Any) -> Any:
        if (what if isinstance(what, str) else what.artifact.scheme) in tags:
            raise error
        return real(self, source, what, progress)

    monkeypatch.setattr(BrevitasQuantizer, method, step)
