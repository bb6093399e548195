"""The OCR reader on pages whose content is known. The real networks run: one reader serves the whole module."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fewbits.core.errors import BackendError, SpecError
from fewbits.extraction.layout import read_report
from fewbits.runtimes.extraction.ocr_reader import OcrReader, OcrReading, _character_edges, _standing, packaged_models
from fewbits.runtimes.extraction.preprocessing import LONGEST_SIDE, prepared

if TYPE_CHECKING:
    from PIL import Image

pytest.importorskip("rapidocr")

FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
LINES = (
    ("Test", "Result", "Units", "Reference Range"),
    ("Hemoglobin", "13.5", "g/dL", "12.0 - 15.5"),
    ("Sodium", "141", "mmol/L", "136 - 145"),
    ("Platelets", "250", "10^3/uL", "150 - 400"),
)


def _page() -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (760, 260), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(FONT, 20) if FONT.is_file() else ImageFont.load_default(20)
    for row, cells in enumerate(LINES):
        for x, text in zip((30, 240, 380, 520), cells, strict=True):
            draw.text((x, 30 + 50 * row), text, font=font, fill="black")
    return image


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8)


@pytest.fixture(scope="module")
def reader() -> OcrReader:
    return OcrReader(threads=1, side_limit=960)


def _no_network(*_: Any, **__: Any) -> None:
    raise AssertionError("the OCR engine asked for a network connection")


def test_page_is_read_to_the_letter_quietly_and_offline(
    reader: OcrReader, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "socket", _no_network)
    monkeypatch.setattr(socket, "create_connection", _no_network)
    reading = reader.read(_pixels(_page()))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert sorted(word.text for word in reading.words) == sorted(text for cells in LINES for text in cells)
    assert (reading.width, reading.height, reading.turned_degrees) == (760, 260, 0)
    assert reading.detection_seconds > 0
    assert reading.recognition_seconds > 0
    assert all(0.5 < word.confidence <= 1 for word in reading.words)
    report = read_report(reading.words, reading.width, reading.height).report
    assert [(test.test_name, test.value, test.unit) for test in report.tests] == [
        ("Hemoglobin", "13.5", "g/dL"),
        ("Sodium", "141", "mmol/L"),
        ("Platelets", "250", "10^3/uL"),
    ]


def test_words_lie_where_they_were_printed(reader: OcrReader) -> None:
    places = {word.text: word for word in reader.read(_pixels(_page())).words}
    word = places["Hemoglobin"]
    (left, top), (right, bottom) = word.corners[0], word.corners[2]
    assert (left, top) == pytest.approx((30, 80), abs=8)
    assert right == pytest.approx(30 + 120, abs=20)
    assert bottom - top == pytest.approx(26, abs=10)
    assert word.characters is not None
    assert len(word.characters) == len(word.text)
    edges = [edge for character in word.characters for edge in character]
    assert edges == sorted(edges)
    assert left - 5 <= edges[0] <= edges[-1] <= right + 5


@pytest.mark.parametrize(("quarters", "degrees"), [(1, 90), (2, 180), (3, 270)])
def test_turned_pages_are_turned_back(reader: OcrReader, quarters: int, degrees: int) -> None:
    turned = np.ascontiguousarray(np.rot90(_pixels(_page()), quarters))
    reading = reader.read(turned)
    assert reading.turned_degrees == degrees
    assert (reading.width, reading.height) == (760, 260)
    assert {"Hemoglobin", "13.5", "g/dL"} <= {word.text for word in reading.words}


def test_colours_are_not_swapped(reader: OcrReader) -> None:
    """rapidocr takes arrays as blue, green, red."""
    seen: list[NDArray[np.uint8]] = []
    page = np.zeros((64, 64, 3), dtype=np.uint8)
    page[..., 0] = 200  # red
    original = reader._detect

    def spy(pixels: NDArray[np.uint8]) -> Any:
        seen.append(pixels)
        return original(pixels)

    reader._detect = spy  # type: ignore[method-assign,assignment]
    try:
        reader.read(page)
    finally:
        reader._detect = original  # type: ignore[method-assign]
    assert seen[0][0, 0].tolist() == [0, 0, 200]  # blue, green, red


@pytest.mark.parametrize("shape", [(40, 40, 3), (1, 1, 3), (600, 20, 3)])
def test_a_page_without_text_has_no_words(reader: OcrReader, shape: tuple[int, int, int]) -> None:
    reading = reader.read(np.full(shape, 255, dtype=np.uint8))
    assert reading.words == ()
    assert isinstance(reading, OcrReading)


def test_threads_are_those_asked_for(reader: OcrReader) -> None:
    sessions = [reader._engine.text_det.session, reader._engine.text_rec.session, reader._engine.text_cls.session]
    assert {session.session.get_session_options().intra_op_num_threads for session in sessions} == {1}


@pytest.mark.parametrize("threads", [0, -1, (os.cpu_count() or 1) + 1])
def test_threads_that_rapidocr_would_ignore_are_refused(threads: int) -> None:
    with pytest.raises(SpecError, match="threads"):
        OcrReader(threads=threads)


def test_recogniser_without_its_alphabet_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    import onnx

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "empty",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        )
    )
    path = tmp_path / "recognition.onnx"
    onnx.save(model, path)
    with pytest.raises(BackendError, match="character"):
        OcrReader(recognition=path)
    path.write_bytes(b"no model")
    with pytest.raises(BackendError, match="no readable ONNX file"):
        OcrReader(recognition=path)


def test_models_lie_in_the_wheel() -> None:
    models = packaged_models()
    assert models.detection.stat().st_size > 1_000_000
    assert models.recognition.stat().st_size > 1_000_000


def test_character_edges_meet_half_way_and_spaces_fill_what_is_between() -> None:
    corners = ((0.0, 0.0), (100.0, 0.0), (100.0, 20.0), (0.0, 20.0))
    edges = _character_edges("ab c", [0, 2, 8], 10, corners)
    assert edges is not None
    assert [pair for pair in edges if pair] == [(0.0, 15.0), (15.0, 35.0), (35.0, 75.0), (75.0, 95.0)]
    assert _character_edges("abc", [0, 1], 10, corners) is None


def test_standing_boxes() -> None:
    lying = np.array([[[0, 0], [90, 0], [90, 20], [0, 20]]], dtype=np.float32)
    upright = np.array([[[0, 0], [20, 0], [20, 90], [0, 90]]], dtype=np.float32)
    assert not _standing(lying)
    assert _standing(upright)
    assert not _standing(np.zeros((0, 4, 2), dtype=np.float32))


def test_pages_are_brought_within_bounds() -> None:
    page = np.zeros((1500, 1000, 3), dtype=np.uint8)
    same = prepared(page)
    assert same.pixels is page
    assert (same.scale, same.steps, same.confidence) == (1.0, (), None)
    large = prepared(np.zeros((6000, 3000, 3), dtype=np.uint8))
    assert large.pixels.shape == (LONGEST_SIDE, 2000, 3)
    assert large.steps == ("reduced from 3000 x 6000 to 2000 x 4000",)
    strip = prepared(np.zeros((1, 9000, 3), dtype=np.uint8))
    assert strip.pixels.shape == (1, LONGEST_SIDE, 3)


@pytest.mark.parametrize("page", [np.zeros((5, 5), dtype=np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), dtype=np.uint8)])
def test_what_is_no_page_is_refused(page: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepared(page)
