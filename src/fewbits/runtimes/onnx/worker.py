"""The child process that holds one detector: `python -m fewbits.runtimes.onnx.worker '{"model": ..., "threads": ..., ...}'`.

One JSON object per line: first what was loaded (stdout), then one answer per request (stdin). The log goes to stderr. Images are
opened, checked and letterboxed before the clock starts; between its two reads lie the graph and the decoding of its output.
"""

from __future__ import annotations

import hashlib
import stat
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.core.codec import encode_canonical
from fewbits.core.errors import FewbitsError
from fewbits.images.letterbox import Letterboxed, letterbox, to_original
from fewbits.images.opening import FILE_BYTES_LIMIT, read_picture
from fewbits.records.detection import Detection, Detections
from fewbits.records.onnx_graph import HEAD_KEY, SCORES_KEY
from fewbits.runtimes.onnx.decode import Boxes, DecodeSettings, Floats, Head, OutputFormError, Scores, decode, looks_like_logits
from fewbits.runtimes.worker_loop import serve

AUTO = "auto"
_GREY = 114 / 255
_PLACES, _SCORE_PLACES = 2, 6


def main() -> int:
    """Load, tell, answer until stdin ends. Exit code 1 when the graph cannot be loaded."""
    return serve(Detector)


class Detector:
    """A loaded graph and how its output is read. `options` are what `runtime.DetectorOptions` and the controls say."""

    def __init__(self, options: dict[str, Any]) -> None:
        import onnxruntime

        self._options = options
        data = Path(options["model"]).read_bytes()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        settings.log_severity_level = 3  # warnings would push what matters out of the log's last lines
        # threads that spin on after a run would disturb the next variant's trial
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if options["optimised"] is not None:
            settings.optimized_model_filepath = str(Path(options["folder"]) / options["optimised"])
        self._session = onnxruntime.InferenceSession(data, settings, providers=options["providers"])
        self._input = self._session.get_inputs()[0]
        metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self._scores = _choice(options["scores"], metadata.get(SCORES_KEY))
        self._decoding = DecodeSettings(
            classes=len(options["category_ids"]),
            image_size=options["image_size"],
            confidence=options["confidence"],
            iou=options["iou"],
            max_detections=options["max_detections"],
            pre_nms_limit=options["pre_nms_limit"],
            head=Head(_choice(options["head"], metadata.get(HEAD_KEY)) or Head.ONE_TO_MANY),
        )
        self.description: dict[str, Any] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "version": onnxruntime.__version__,
            "providers": self._session.get_providers(),
            "threads": self._session.get_session_options().intra_op_num_threads,
            "inputs": [[value.name, value.type, value.shape] for value in self._session.get_inputs()],
            "outputs": [[value.name, value.type, value.shape] for value in self._session.get_outputs()],
            "metadata": metadata,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Find the objects of one image: `{"file": ..., "sha256": ...}`, or an empty object for a run on plain grey."""
        try:
            started = time.perf_counter()
            shown = self._shown(request)
            pixels = shown.pixels[None].astype(_element_type(self._input.type))
            prepared = time.perf_counter()
            return self._run(shown, pixels, preprocess_seconds=prepared - started)
        except (FewbitsError, OutputFormError, ValueError) as error:
            return {"problem": str(error)}
        except Exception as error:  # noqa: BLE001 - the runtime's exceptions have no base of their own
            return {"failure": f"{type(error).__name__}: {error}"}

    def _shown(self, request: dict[str, Any]) -> Letterboxed:
        size = self._options["image_size"]
        if "file" not in request:
            grey = np.full((3, size, size), _GREY, dtype=np.float32)
            return Letterboxed(pixels=grey, scale=1.0, left=0, top=0, width=size, height=size)
        path = Path(self._options["image_folder"]) / request["file"]
        data = _image_bytes(path)
        if hashlib.sha256(data).hexdigest() != request["sha256"]:
            msg = f"{request['file']} is not the image that was planned: its bytes have changed"
            raise ValueError(msg)
        return letterbox(read_picture(data, request["file"]).pixels, size)

    def _run(self, shown: Letterboxed, pixels: Any, *, preprocess_seconds: float) -> dict[str, Any]:
        began = time.perf_counter()
        raw = self._session.run(None, {self._input.name: pixels})[0]
        ran = time.perf_counter()
        boxes = decode(raw, self._score_kind(raw), self._decoding)
        ended = time.perf_counter()
        return {
            "text": self._text(boxes, shown),
            "wall_seconds": ended - began,
            "run_ms": (ran - began) * 1000,
            "decode_ms": (ended - ran) * 1000,
            "preprocess_ms": preprocess_seconds * 1000,
        }

    def _score_kind(self, raw: Floats) -> Scores:
        """Settle once, on the first output, what undeclared scores are."""
        if self._scores is None:
            self._scores = Scores.LOGITS if looks_like_logits(raw, self._decoding) else Scores.PROBABILITIES
        return Scores(self._scores)

    def _text(self, boxes: Boxes, shown: Letterboxed) -> str:
        corners = to_original(boxes.corners, shown)
        ids = self._options["category_ids"]
        found = (
            Detection(
                category_id=ids[int(place)],
                score=round(float(score), _SCORE_PLACES),
                x=round(float(box[0]), _PLACES),
                y=round(float(box[1]), _PLACES),
                width=round(float(box[2] - box[0]), _PLACES),
                height=round(float(box[3] - box[1]), _PLACES),
            )
            for box, score, place in zip(corners, boxes.scores, boxes.classes, strict=True)
        )
        # a box without area (wholly in the grey bars, or of negative size) shows nothing
        shown_boxes = tuple(one for one in found if one.width > 0 and one.height > 0)
        return encode_canonical(Detections(width=shown.width, height=shown.height, detections=shown_boxes)).decode()


def _choice(option: str, declared: str | None) -> str | None:
    """What the caller says wins over what the file says; neither: `None`."""
    return declared if option == AUTO else option


def _element_type(onnx_type: str) -> Any:
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    if onnx_type not in types:
        msg = f"the graph wants {onnx_type} as its input, where images are float or float16"
        raise OutputFormError(msg)
    return types[onnx_type]


def _image_bytes(path: Path) -> bytes:
    """Read a picture file. Raises `OSError`, and `ValueError` for what is no file or far too large for a picture."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_LIMIT:
        msg = f"{path.name} is no picture file, or larger than {FILE_BYTES_LIMIT} bytes"
        raise ValueError(msg)
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
