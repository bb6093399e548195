"""Recipes on a small random YOLOv10: every step runs, and the exported graph computes what torch computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("onnxruntime")

from fewbits.quantizers.brevitas.build import DetectorLab, DetectorSource, build_float  # noqa: E402
from fewbits.quantizers.brevitas.checkpoint import read_checkpoint  # noqa: E402
from fewbits.quantizers.brevitas.export import INPUT_NAME, export_detector  # noqa: E402
from fewbits.quantizers.brevitas.yolov10 import Head  # noqa: E402
from fewbits.quantizers.onnx.agreement import compare_arrays, open_session, run_all  # noqa: E402
from fewbits.quantizers.onnx.census import take_census  # noqa: E402
from fewbits.quantizers.onnx.cleanup import clean_up  # noqa: E402
from fewbits.records.onnx_graph import QuantCensus  # noqa: E402
from fewbits.sensitivity.detector_bits import choose_layer_bits  # noqa: E402
from fewbits.spec.detector_schemes import parse_scheme  # noqa: E402
from quantizers.yolov10_samples import Sample, write_checkpoint  # noqa: E402

SIZE = 64


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> DetectorLab:
    return make_lab(tmp_path_factory.mktemp("weights"))


def make_lab(folder: Path) -> DetectorLab:
    path = folder / "tiny.pt"
    write_checkpoint(path, Sample())
    source = DetectorSource(read_checkpoint(path), Head.ONE_TO_ONE, SIZE)
    return DetectorLab(source, pictures(), choose_layer_bits)


def pictures() -> Any:
    noise = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    return torch.nn.functional.interpolate(noise, size=(SIZE, SIZE), mode="bilinear")


def build(lab: DetectorLab, tag: str) -> Any:
    recipe = parse_scheme(tag)
    assert recipe is not None
    return lab.build(recipe, lambda _line: None).model


def distance(lab: DetectorLab, model: Any) -> float:
    with torch.no_grad():
        return float((model(pictures())[:, 4:] - build_float(lab._source)(pictures())[:, 4:]).abs().mean())


def exported(model: Any, folder: Path, *, quantized: bool = True) -> tuple[QuantCensus, float]:
    """Export, clean up, run on the pictures: the census, and the mean distance of scores from torch's."""
    export_detector(model, folder / "m.onnx", SIZE, quantized=quantized)
    inputs = [{INPUT_NAME: picture[None].numpy()} for picture in pictures()]
    clean_up(folder / "m.onnx", folder / "clean.onnx", inputs)
    with torch.no_grad():
        expected = [model(picture[None]).numpy()[:, 4:] for picture in pictures()]
    found = [output[:, 4:] for output in run_all(open_session(folder / "clean.onnx", 1), inputs)]
    return take_census(folder / "clean.onnx"), compare_arrays(expected, found).mean


def test_the_float_graph_is_plain_and_exact(lab: DetectorLab, tmp_path: Path) -> None:
    census, apart = exported(build_float(lab._source), tmp_path, quantized=False)
    assert (census.quantize_linear, census.dequantize_linear) == (0, 0)
    assert "BatchNormalization" not in census.operators
    assert census.level_bits_per_weight == 32
    assert apart < 1e-5


@pytest.mark.parametrize(
    ("tag", "weight_bits", "activations"),
    [
        ("W8A8", (8, 8), True),
        ("W4A8", (4, 8), True),
        ("W3A8", (3, 8), True),
        ("W4A16", (4, 8), False),
        ("W4A8-naive+fold", (4, 4), True),
        ("W8A16-naive+fold", (8, 8), False),
    ],
)
def test_exported_graphs_compute_what_torch_computes(
    lab: DetectorLab, tmp_path: Path, tag: str, weight_bits: tuple[int, int], activations: bool
) -> None:
    census, apart = exported(build(lab, tag), tmp_path)
    # rounding ties fall either way in two engines: a few values differ by a step
    assert apart < 2e-3
    bits = [tensor.level_bits for tensor in census.weight_tensors if tensor.scales]
    assert (min(bits), max(bits)) == weight_bits
    assert len(bits) == census.clip == len(census.weight_tensors)
    assert census.quantized_inputs == (len(bits) if activations else 0)
    assert census.quantize_linear == (len(bits) if activations else 0)
    assert "BatchNormalization" not in census.operators
    assert [tensor.storage for tensor in census.weight_tensors] == ["INT8"] * len(bits)


def test_the_naive_graph_keeps_its_batch_norms_out_of_the_weights(lab: DetectorLab, tmp_path: Path) -> None:
    export_detector(build(lab, "W4A8-naive"), tmp_path / "m.onnx", SIZE, quantized=True)
    census = take_census(tmp_path / "m.onnx")
    assert census.operators["BatchNormalization"] > 0
    assert {tensor.scales for tensor in census.weight_tensors} == {1}


def test_the_best_steps_beat_the_naive_ones(lab: DetectorLab) -> None:
    best, naive = distance(lab, build(lab, "W4A8")), distance(lab, build(lab, "W4A8-naive"))
    assert best < 0.5 * naive
    assert distance(lab, build(lab, "W8A16")) < best


def test_a_budget_is_kept_and_spent(lab: DetectorLab, tmp_path: Path) -> None:
    census, _ = exported(build(lab, "W3A8-mixed4.5"), tmp_path)
    assert census.level_bits_per_weight is not None
    assert 4.0 < census.level_bits_per_weight <= 4.5
    assert len({tensor.level_bits for tensor in census.weight_tensors}) > 2


@pytest.mark.parametrize("step", ["brevitas-gptq", "brevitas-gpfq", "brevitas-bias", "equalize", "learned"])
def test_other_methods_run_beside_ours(lab: DetectorLab, step: str) -> None:
    model = build(lab, f"W4A8-naive+fold+per-channel+clip+unsigned+{step}")
    with torch.no_grad():
        output = model(pictures())
    assert bool(torch.isfinite(output).all())
    assert distance(lab, model) < distance(lab, build(lab, "W4A8-naive"))


def test_training_keeps_what_it_does_not_improve(lab: DetectorLab) -> None:
    assert distance(lab, build(lab, "W3A8-qat")) < 1.2 * distance(lab, build(lab, "W3A8"))


def test_the_same_inputs_give_the_same_model(lab: DetectorLab, tmp_path: Path) -> None:
    again = make_lab(tmp_path)
    with torch.no_grad():
        one, other = (build(made, "W4A8")(pictures()).numpy() for made in (lab, again))
    assert np.array_equal(one, other)
