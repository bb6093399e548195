"""Names and places of what a detector sweep leaves behind, as the runbook has them."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from fewbits.core.files import safe_name, storage_error
from fewbits.records.detector_run import Stage
from fewbits.spec.detector_schemes import FLOAT_TAG

_TRAINED = "-qat"


def variant_name(tag: str) -> str:
    """Return a variant's name in file names: `baseline`, `ptq_w4a8`, `qat_w4a8`."""
    if tag == FLOAT_TAG:
        return "baseline"
    kind, mode = ("qat", tag.removesuffix(_TRAINED)) if tag.endswith(_TRAINED) else ("ptq", tag)
    return f"{kind}_{safe_name(mode.lower())}"


class DetectionFolder:
    """Paths below a run root. Creating the object touches nothing."""

    def __init__(self, root: Path, model_stem: str) -> None:
        self.root, self._stem = root, safe_name(model_stem)
        self.stages_path = root / "stages.json"
        self.labels_path = root / "labels.json"
        self.censuses_path = root / "censuses.json"
        self.sanity_path = root / "sanity.json"
        self.notes_path = root / "notes.md"
        self.calibration_list_path = root / "calibration_images.txt"
        self.image_ids_path = root / "image_ids.txt"

    def exported_path(self, tag: str) -> Path:
        """The graph as exported."""
        return self.root / "onnx" / f"{self._graph(tag)}.onnx"

    def cleaned_path(self, tag: str) -> Path:
        """The cleaned graph, which is measured."""
        return self.root / "onnx" / f"{self._graph(tag)}-opt.onnx"

    def _graph(self, tag: str) -> str:
        if tag == FLOAT_TAG:
            return f"{self._stem}-baseline-fp32"
        kind, _, mode = variant_name(tag).partition("_")
        return f"{self._stem}-{mode}-qcdq-{kind}"

    def export_record_path(self, tag: str) -> Path:
        """`baseline_export.json`, `ptq_<mode>_export.json`, `qat_<mode>_export.json`."""
        return self.root / f"{variant_name(tag)}_export.json"

    def metrics_path(self, tag: str) -> Path:
        """COCO metrics of a variant."""
        return self.root / f"{variant_name(tag).replace('_', '-', 1)}-coco" / "metrics.json"

    def smoke_path(self, tag: str) -> Path:
        """What one call on random numbers gave."""
        return self.root / "smoke" / variant_name(tag).replace("_", "-", 1) / "infer-summary.json"

    def log_path(self, tag: str, stage: Stage) -> Path:
        """What a stage said."""
        short = {Stage.EVALUATE: "eval"}.get(stage, stage.value)
        return self.root / "logs" / f"{variant_name(tag)}_{short}.log"


def place(source: Path, target: Path) -> None:
    """Put a file of the cache into a run folder: the same bytes under a second name, a copy where links cannot be made.

    Raises `StoreError`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        try:
            temporary.replace(target)
        finally:
            # replacing a name by another name of the same file does nothing and leaves both
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(target, error) from error
