"""OCR variants through the cache, with the real networks of rapidocr's wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("rapidocr")

from PIL import Image, ImageDraw, ImageFont

from fewbits.core.codec import decode
from fewbits.core.errors import BackendError, SpecError
from fewbits.quantizers.ocr import quantizer as module
from fewbits.quantizers.ocr.archive import open_ocr_archive
from fewbits.quantizers.ocr.models import MODEL_ID
from fewbits.quantizers.ocr.quantizer import OcrManifest, OcrQuantizer
from fewbits.store.artifacts import ArtifactCache

LINE = "Hemoglobin 13.5 g/dL"


def picture(text: str, width: int = 400) -> Image.Image:
    image = Image.new("RGB", (width, 64), "white")
    ImageDraw.Draw(image).text((20, 12), text, font=ImageFont.load_default(32), fill="black")
    return image


def read_line(recognition: Path) -> str:
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "critical", "Rec.model_path": str(recognition)})
    return str(engine(np.asarray(picture(LINE)), use_det=False, use_cls=False).txts[0])


def silent(_: str) -> None:
    pass


def test_a_dynamic_recogniser_reads_a_line_and_is_made_once(cache: ArtifactCache, tmp_path: Path) -> None:
    quantizer = OcrQuantizer(cache)
    source = quantizer.locate(MODEL_ID)
    said: list[str] = []
    variant = quantizer.ensure(source, "int8-DYNAMIC-rec", said.append)
    assert said == [f"making INT8-dynamic-rec of {MODEL_ID}"]
    assert quantizer.ensure(source, "INT8-dynamic-rec", said.append) == variant
    assert len(said) == 1
    assert variant.path is not None
    members = open_ocr_archive(variant.path)
    (tmp_path / "rec.onnx").write_bytes(members["rec.onnx"])
    assert read_line(tmp_path / "rec.onnx") == LINE
    manifest = decode(members["manifest.json"], OcrManifest, "manifest")
    networks = manifest.precision.networks
    assert manifest.calibration_digest is None
    assert networks["rec.onnx"].integer_products > 30
    assert networks["det.onnx"].integer_products == networks["cls.onnx"].integer_products == 0
    artifact = variant.artifact
    assert artifact.scheme == "INT8-dynamic-rec"
    assert artifact.weights == sum(network.weights for network in networks.values())
    assert artifact.weights == sum(row.weights for row in artifact.census)
    # the recogniser holds two thirds of all weights
    assert artifact.bits_per_weight is not None
    assert 8 < artifact.bits_per_weight < 24
    assert variant.path.stat().st_size < 0.6 * (source.bytes or 0)


def test_static_schemes_need_pages_that_show_text(cache: ArtifactCache, tmp_path: Path) -> None:
    source = OcrQuantizer(cache).locate(MODEL_ID)
    with pytest.raises(SpecError, match="without calibration pages"):
        OcrQuantizer(cache).ensure(source, "INT8-static", silent)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "blank.png")
    with pytest.raises(SpecError, match="no text was found on 1 pages"):
        OcrQuantizer(cache, [tmp_path / "blank.png"]).ensure(source, "INT8-static", silent)


def test_unknown_models_and_schemes_are_refused(cache: ArtifactCache) -> None:
    quantizer = OcrQuantizer(cache)
    with pytest.raises(SpecError, match=MODEL_ID):
        quantizer.locate("tesseract")
    with pytest.raises(SpecError, match="no OCR scheme"):
        quantizer.check(quantizer.locate(MODEL_ID), "Q4_K_M")


def test_a_build_that_dies_leaves_nothing(cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = OcrQuantizer(cache)
    source = quantizer.locate(MODEL_ID)
    monkeypatch.setattr(module, "_WORKER", "fewbits.quantizers.ocr.no_such_worker")
    with pytest.raises(BackendError, match="could not make INT8-dynamic"):
        quantizer.ensure(source, "INT8-dynamic", silent)
    assert not list(cache.root.rglob("ocr.zip*"))
