"""Pictures to words: the PP-OCR models in ONNX Runtime on the CPU, driven through rapidocr."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.extraction.words import Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENGINE = "rapidocr"
_SAMPLED_LINES = 12
"""Widest boxes that the 180 degree classifier looks at."""
_STANDING_SHARE = 0.5
"""Share of the boxes (by area) that must stand upright before the page counts as turned by 90 degrees."""
_ELONGATED = 2.0
"""Ratio of the sides from which a box tells the direction of its text."""
_LEAST_LINE_PROBABILITY = 0.3
"""Mean character probability below which a box is taken for a smudge. rapidocr's own default, 0.5, loses faded rows."""


@dataclass(frozen=True, slots=True)
class OcrModels:
    """Paths of the ONNX files: text detection, text recognition, and the classifier of lines that lie upside down."""

    detection: Path
    recognition: Path
    orientation: Path


@dataclass(frozen=True, slots=True)
class OcrReading:
    """What was read. Words are in pixels of the page after it was turned clockwise by `turned_degrees` (0, 90, 180, 270), which
    is `width` x `height`. Seconds include the preparation of each network's input.
    """

    words: tuple[Word, ...]
    width: int
    height: int
    turned_degrees: int
    detection_seconds: float
    recognition_seconds: float


def packaged_models() -> OcrModels:
    """Return the models that lie in rapidocr's wheel.

    Raises PrerequisiteError where rapidocr is not installed or its wheel lacks them.
    """
    try:
        import rapidocr
    except ImportError as error:
        raise PrerequisiteError("the OCR engine needs rapidocr", "Install fewbits with its `extraction` extra.") from error
    folder = Path(rapidocr.__file__).parent / "models"
    models = OcrModels(
        detection=folder / "PP-OCRv6_det_small.onnx",
        recognition=folder / "PP-OCRv6_rec_small.onnx",
        orientation=folder / "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    )
    for path in (models.detection, models.recognition, models.orientation):
        if not path.is_file():
            raise PrerequisiteError(
                f"rapidocr's wheel lacks {path.name}", "Install rapidocr 3.10 again: its wheel holds the models."
            )
    return models


class OcrReader:
    """The three networks, loaded once and kept. Not for use by several threads at once.

    `detection` and `recognition` default to the packaged files; quantized ones take their place. `threads` is what each
    network's operators may use (1 to the machine's cores). `side_limit` bounds the longer side in pixels of what is detected on.
    """

    def __init__(
        self, detection: Path | None = None, recognition: Path | None = None, *, threads: int = 1, side_limit: int = 1280
    ) -> None:
        cores = os.cpu_count() or 1
        if not 1 <= threads <= cores:
            raise SpecError.single("threads", f"{threads} is not between 1 and {cores}", "rapidocr would silently use all cores")
        packaged = packaged_models()
        self.models = OcrModels(detection or packaged.detection, recognition or packaged.recognition, packaged.orientation)
        self.threads = threads
        self._engine = _engine(self.models, threads, side_limit)
        self._load()

    def _load(self) -> None:
        """Make all sessions now: rapidocr would make them inside the first page's time. A blank strip runs through each."""
        import numpy as np

        blank = np.full((64, 320, 3), 255, dtype=np.uint8)
        try:
            self._detect(blank)
            self._engine.recognize_txt([blank])
            self._engine.cls_and_rotate([blank])
        except Exception as error:
            raise BackendError(ENGINE, f"the models could not be loaded ({type(error).__name__})") from error

    def read(self, pixels: NDArray[np.uint8]) -> OcrReading:
        """Read a page, uint8[h, w, 3] RGB. Pages that lie on their side or upside down are turned first.

        Raises BackendError where a network fails; the message holds nothing that was read.
        """
        try:
            return self._read(pixels)
        except Exception as error:
            raise BackendError(ENGINE, f"a page could not be read ({type(error).__name__})") from error

    def _read(self, pixels: NDArray[np.uint8]) -> OcrReading:
        import numpy as np

        page = np.ascontiguousarray(pixels[:, :, ::-1])  # rapidocr takes arrays as BGR
        began = time.perf_counter()
        crops, boxes = self._detect(page)
        turned = 0
        if _standing(boxes):
            page, turned = np.ascontiguousarray(np.rot90(page, -1)), 90
            crops, boxes = self._detect(page)
        if self._upside_down(crops):
            page, turned = np.ascontiguousarray(np.rot90(page, 2)), turned + 180
            crops, boxes = self._detect(page)
        detected = time.perf_counter()
        words = self._recognize(crops, boxes)
        ended = time.perf_counter()
        height, width = page.shape[:2]
        return OcrReading(tuple(words), width, height, turned, detected - began, ended - detected)

    def _detect(self, page: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
        """Return the boxes, float32[n, 4, 2], with the picture of each; none where there is no text."""
        import numpy as np
        from rapidocr.main import RapidOCRError

        record: dict[str, Any] = {}
        try:
            crops, found = self._engine.detect_and_crop(page, record)
        except RapidOCRError:  # its word for "no text"
            return [], np.zeros((0, 4, 2), dtype=np.float32)
        boxes = np.asarray(found.boxes, dtype=np.float32)
        return crops, boxes - np.array([record["padding_1"]["left"], record["padding_1"]["top"]], dtype=np.float32)

    def _upside_down(self, crops: Sequence[NDArray[np.uint8]]) -> bool:
        """Say whether most of the widest boxes, as sampled, lie upside down."""
        if not crops:
            return False
        widest = sorted(range(len(crops)), key=lambda index: -crops[index].shape[1])[:_SAMPLED_LINES]
        _, found = self._engine.cls_and_rotate([crops[index] for index in widest])
        return bool(sum(probability if "180" in label else -probability for label, probability in found.cls_res) > 0)

    def _recognize(self, crops: list[NDArray[np.uint8]], boxes: NDArray[np.float32]) -> list[Word]:
        if not crops:
            return []
        result = self._engine.recognize_txt(crops)
        words = []
        for box, text, probability, layout in zip(boxes, result.txts, result.scores, result.word_results, strict=True):
            if not text.strip() or probability < _LEAST_LINE_PROBABILITY:
                continue
            corners = tuple((float(x), float(y)) for x, y in box)
            columns = [column for word in layout.word_cols for column in word]
            edges = _character_edges(text, columns, layout.line_txt_len, corners)
            words.append(Word(text, corners, min(1.0, float(probability)), edges))
        return words


def _engine(models: OcrModels, threads: int, side_limit: int) -> Any:
    from rapidocr import RapidOCR

    _refuse_without_characters(models.recognition)
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return RapidOCR(
        params={
            "Global.log_level": "critical",  # its log lines would name files, and texts where it fails
            "Global.return_word_box": True,
            "Global.model_root_dir": str(models.detection.parent),
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": str(models.detection),
            "Det.limit_type": "max",
            "Det.limit_side_len": side_limit,
            "Rec.model_path": str(models.recognition),
            "Cls.model_path": str(models.orientation),
        }
    )


def _refuse_without_characters(recognition: Path) -> None:
    """Raise BackendError where the file lacks its alphabet: rapidocr would go and download one."""
    import onnx

    try:
        model = onnx.load(recognition, load_external_data=False)
    except Exception as error:
        raise BackendError(ENGINE, f"{recognition.name} is no readable ONNX file") from error
    if not any(entry.key == "character" for entry in model.metadata_props):
        raise BackendError(
            ENGINE, f"{recognition.name} lacks the metadata `character`; copy it from the model that it was made from"
        )


def _standing(boxes: NDArray[np.float32]) -> bool:
    """Say whether most of the text runs up or down the page: boxes that are much higher than wide, weighed by their length."""
    import numpy as np

    if not len(boxes):
        return False
    widths = np.linalg.norm(boxes[:, 1] - boxes[:, 0], axis=1)
    heights = np.linalg.norm(boxes[:, 3] - boxes[:, 0], axis=1)
    standing = heights[heights > _ELONGATED * widths].sum()
    lying = widths[widths > _ELONGATED * heights].sum()
    return bool(standing > _STANDING_SHARE * (standing + lying))


def _character_edges(
    text: str, columns: Sequence[int], line_columns: float, corners: Sequence[tuple[float, float]]
) -> tuple[tuple[float, float], ...] | None:
    """Return the left and right edge of each character of `text`, pixels of the page.

    The recogniser's time steps tell the centres of what is not white space (`columns`, out of `line_columns`); edges lie
    half-way to the neighbours, no further than half the usual distance, and within the box. White space takes what lies between.
    """
    places = [index for index, character in enumerate(text) if not character.isspace()]
    if not places or len(columns) != len(places) or line_columns <= 0:
        return None
    left, right = (corners[0][0] + corners[3][0]) / 2, (corners[1][0] + corners[2][0]) / 2
    centres = [left + (column + 0.5) / line_columns * (right - left) for column in columns]
    steps = sorted((b - a) / (j - i) for (a, i), (b, j) in pairwise(zip(centres, places, strict=True)))
    half = (steps[(len(steps) - 1) // 2] if steps else right - left) / 2
    edges: dict[int, tuple[float, float]] = {}
    for order, (place, centre) in enumerate(zip(places, centres, strict=True)):
        before = half if order == 0 else min(half, (centre - centres[order - 1]) / 2)
        after = half if order == len(places) - 1 else min(half, (centres[order + 1] - centre) / 2)
        edges[place] = (max(left, centre - before), min(right, centre + after))
    return tuple(edges.get(index) or _between(edges, index, left, right) for index in range(len(text)))


def _between(edges: dict[int, tuple[float, float]], index: int, left: float, right: float) -> tuple[float, float]:
    """Return the place of white space: from the character before it to the one after it."""
    before = [place for place in edges if place < index]
    after = [place for place in edges if place > index]
    return (edges[max(before)][1] if before else left, edges[min(after)][0] if after else right)
