"""Where the OCR networks come from: rapidocr's wheel holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewbits.core.errors import PrerequisiteError

MODEL_ID = "pp-ocrv6-small"
ARCHITECTURE = "pp-ocrv6"


@dataclass(frozen=True, slots=True)
class OcrFiles:
    """The float ONNX files: text detection, text recognition, and the classifier of lines that lie upside down."""

    detection: Path
    recognition: Path
    orientation: Path

    @property
    def all(self) -> tuple[Path, Path, Path]:
        """The three paths in that order."""
        return self.detection, self.recognition, self.orientation


def packaged_files() -> OcrFiles:
    """Return the files of the installed wheel. Raises `PrerequisiteError` without rapidocr, or where it lacks one."""
    try:
        import rapidocr
    except ImportError as error:
        raise PrerequisiteError("rapidocr is not installed", "Install it with `pip install 'fewbits[extraction]'`.") from error
    folder = Path(rapidocr.__file__).parent / "models"
    files = OcrFiles(
        folder / "PP-OCRv6_det_small.onnx", folder / "PP-OCRv6_rec_small.onnx", folder / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    )
    for path in files.all:
        if not path.is_file():
            raise PrerequisiteError(f"rapidocr's wheel lacks {path.name}", "Install rapidocr 3.10, whose wheel holds the models.")
    return files
