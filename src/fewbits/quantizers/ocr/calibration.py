"""Calibration inputs: what rapidocr's own preparation of pages hands to the networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.core.errors import BackendError, SpecError
from fewbits.images.opening import Turning, open_picture
from fewbits.spec.ocr_schemes import OcrNetwork

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Inputs = dict[OcrNetwork, list[NDArray[np.float32]]]

SIDE_LIMIT = 2400
"""Pixels of the longer side that text is looked for on, as the extraction engines read pages."""


def record_inputs(detection: Path, recognition: Path, pages: Sequence[Path], threads: int) -> Inputs:
    """Read pages with the float networks and return their inputs: detection float32[1, 3, H, W], recognition [N, 3, 48, W].

    Raises `SpecError` for a page that is no picture, and where no text was found on any; `BackendError` where reading fails.
    """
    import numpy as np

    engine = _engine(detection, recognition, threads)
    found: Inputs = {network: [] for network in OcrNetwork}
    try:
        _load(engine)
        engine.text_det.session = _Recorder(engine.text_det.session, found[OcrNetwork.DETECTION])
        engine.text_rec.session = _Recorder(engine.text_rec.session, found[OcrNetwork.RECOGNITION])
        for page in pages:
            pixels = open_picture(page, turning=Turning.UPRIGHT).pixels
            engine(np.ascontiguousarray(pixels[:, :, ::-1]))  # rapidocr takes arrays as BGR
    except SpecError:
        raise
    except Exception as error:  # its own errors have no common base, and their texts may repeat what the page says
        raise BackendError("rapidocr", f"the calibration pages could not be read ({type(error).__name__})") from error
    if not found[OcrNetwork.RECOGNITION]:
        raise SpecError.single("calibration pages", f"no text was found on {len(pages)} pages", "give pages with text")
    return found


class _Recorder:
    """A session that keeps what it is given."""

    def __init__(self, session: Any, kept: list[NDArray[np.float32]]) -> None:
        self._session, self._kept = session, kept

    def __call__(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        self._kept.append(array.copy())
        answer: NDArray[np.float32] = self._session(array)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _engine(detection: Path, recognition: Path, threads: int) -> Any:
    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": str(detection),
            "Det.limit_type": "max",
            "Det.limit_side_len": SIDE_LIMIT,
            "Rec.model_path": str(recognition),
        }
    )


def _load(engine: Any) -> None:
    """Make both sessions: rapidocr makes each when it is first used. A blank strip runs through them."""
    import numpy as np

    blank = np.full((64, 320, 3), 255, dtype=np.uint8)
    engine(blank)
    engine(blank, use_det=False)
    engine.use_det = True  # the call above would stay in force
