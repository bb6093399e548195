"""Fitting layers one after the other, on a small real network: Brevitas layers, sampled inputs, biases, targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")

from torch.nn import functional  # noqa: E402

from fewbits.quantizers.brevitas import layers as brevitas_layers  # noqa: E402
from fewbits.quantizers.brevitas.activation_ranges import least_squares_range, range_between, saturated_share  # noqa: E402
from fewbits.quantizers.brevitas.fitting import Fitting, LayerFit, fit_layers  # noqa: E402
from fewbits.quantizers.brevitas.layers import ActivationQuantizer, ActivationRange, LayerPlan, WeightQuantizer  # noqa: E402
from fewbits.quantizers.brevitas.samples import (  # noqa: E402
    Sampling,
    record_float_inputs,
    sampled_columns,
    sampled_places,
    uniform_weights,
)
from fewbits.records.detector_quant import Step  # noqa: E402

SAMPLING = Sampling(samples=256, seed=3)
GRID = LayerPlan(3, WeightQuantizer.PER_CHANNEL, ActivationQuantizer.UNSIGNED)
NAMES = ("0", "2", "4", "6")


def network() -> Any:
    """Four convolutions: strided, depthwise, grouped, pointwise."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 12, 3, padding=1, groups=2),
        torch.nn.SiLU(),
        torch.nn.Conv2d(12, 6, 1),
    )
    return model.eval()


def pictures(count: int = 4) -> Any:
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return functional.interpolate(noise, size=(32, 32), mode="bilinear")


def fit(steps: Sequence[Step], plan: LayerPlan = GRID) -> tuple[Any, tuple[LayerFit, ...]]:
    model, images = network(), pictures()
    convolutions = {name: model.get_submodule(name) for name in NAMES}
    floats = record_float_inputs(model, convolutions, images, SAMPLING)
    plans = dict.fromkeys(NAMES, plan)
    layers = brevitas_layers.quantize_layers(model, plans)
    return model, fit_layers(model, layers, Fitting(plans, tuple(steps), SAMPLING), images, floats)


def distance(model: Any) -> float:
    with torch.no_grad():
        return float((model(pictures()) - network()(pictures())).square().mean())


@pytest.mark.parametrize("name", NAMES)
def test_sampled_columns_times_the_weights_are_the_convolution(name: str) -> None:
    model, images = network(), pictures()
    with torch.no_grad():
        for part_name, layer in model.named_children():
            if part_name == name:
                break
            images = layer(images)
        layer = model.get_submodule(name)
        places = sampled_places(images, layer, SAMPLING, name)
        columns = sampled_columns(images, layer, places)
        weights = layer.weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)
        products = (columns @ weights.transpose(1, 2)).transpose(0, 1).flatten(1) + layer.bias
        whole = layer(images).flatten(2).transpose(1, 2)
        expected = torch.cat([whole[image, chosen] for image, chosen in enumerate(places)])
    assert torch.allclose(products, expected, atol=1e-5)


def test_places_repeat_and_differ_between_layers() -> None:
    model, images = network(), pictures()
    first, again = (sampled_places(images, model[0], SAMPLING, "0") for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sampled_places(images, model[0], SAMPLING, "1"))
    assert first.shape == (4, 64)
    assert int(first.min()) >= 0
    assert int(first.max()) < 256


def test_half_of_the_places_go_where_they_matter() -> None:
    model, images = network(), pictures()
    importance = torch.zeros(4, 256)
    importance[:3, 17] = 2.0
    places = sampled_places(images, model[0], Sampling(samples=2000 * len(images), importance={"0": importance}), "0")
    shares = (places == 17).float().mean(dim=1)
    assert float(shares[:3].min()) > 0.45
    assert float(shares[3]) < 0.05


def test_a_mean_counts_every_place_alike_wherever_samples_are_dense() -> None:
    model, images = network(), pictures()
    layer = model[0]
    importance = functional.avg_pool2d(images.sum(dim=1), 2).flatten(1) ** 8  # far from uniform, and tied to the values
    sampling = Sampling(samples=40_000, most_per_image=10_000, importance={"0": importance})
    places = sampled_places(images, layer, sampling, "0")
    columns = sampled_columns(images, layer, places)[0]
    every = torch.arange(importance.shape[1]).expand(len(images), -1)
    truth = sampled_columns(images, layer, every)[0].mean(dim=0)
    weights = uniform_weights(images, layer, places, sampling, "0")
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    corrected = (columns * weights[:, None]).sum(dim=0)
    assert float((corrected - truth).abs().max()) < 0.25 * float((columns.mean(dim=0) - truth).abs().max())


def test_scales_and_weights_that_are_set_are_those_that_count() -> None:
    model = network()
    layer = brevitas_layers.quantize_layers(model, {"2": GRID})["2"]
    wanted = torch.linspace(0.01, 0.08, 8)
    codes = torch.randint(-3, 4, (8, 1, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    brevitas_layers.set_weights(layer, codes * wanted[:, None, None, None], wanted)
    assert torch.allclose(brevitas_layers.scales(layer), wanted)
    assert torch.allclose(brevitas_layers.quantized_weight(layer), codes * wanted[:, None, None, None])
    assert brevitas_layers.weight_bits(layer) == 3


def test_an_activation_range_that_is_set_is_the_one_that_counts() -> None:
    layer = brevitas_layers.quantize_layers(network(), {"0": GRID})["0"]
    brevitas_layers.set_activation_range(layer, ActivationRange(0.02, 14))
    values = torch.linspace(-1, 6, 300).reshape(1, 3, 10, 10)
    expected = ((values / 0.02).round() + 14).clamp(0, 255).sub(14) * 0.02
    assert torch.allclose(brevitas_layers.quantized_input(layer, values), expected, atol=1e-6)


def test_float_activations_pass_untouched() -> None:
    plan = LayerPlan(4, WeightQuantizer.PER_CHANNEL, ActivationQuantizer.NONE)
    layer = brevitas_layers.quantize_layers(network(), {"0": plan})["0"]
    values = torch.rand(1, 3, 4, 4)
    assert torch.equal(brevitas_layers.quantized_input(layer, values), values)


def test_ranges_keep_zero_exact_and_clip_outliers() -> None:
    values = torch.cat([torch.rand(100_000), torch.tensor([50.0])])
    found = least_squares_range(values)
    assert found.scale * (255 - found.zero_point) < 50
    assert found.zero_point == 0
    silu = functional.silu(torch.randn(50_000, generator=torch.Generator().manual_seed(2)) * 3)
    shifted = least_squares_range(silu)
    assert shifted.zero_point > 0
    assert saturated_share(silu, shifted) < 0.01
    assert range_between(0.0, 0.0).scale > 0
    assert range_between(-1.0, 1.0).zero_point == 128


def test_every_step_brings_the_output_closer_to_the_float_model() -> None:
    plain = distance(fit([Step.PER_CHANNEL])[0])
    compensated = distance(fit([Step.PER_CHANNEL, Step.CLIP, Step.GPTQ])[0])
    fitted = distance(fit([Step.PER_CHANNEL, Step.CLIP, Step.GPTQ, Step.TARGET, Step.BIAS])[0])
    assert fitted < compensated < plain


def test_biases_keep_the_float_model_s_means() -> None:
    model, _ = fit([Step.PER_CHANNEL, Step.BIAS])
    without, _ = fit([Step.PER_CHANNEL])
    with torch.no_grad():
        wanted = network()(pictures()).mean(dim=(0, 2, 3))
        off = (model(pictures()).mean(dim=(0, 2, 3)) - wanted).abs().mean()
        before = (without(pictures()).mean(dim=(0, 2, 3)) - wanted).abs().mean()
    assert float(off) < 0.2 * float(before)


def test_fits_report_every_layer_in_order() -> None:
    _, fits = fit([Step.PER_CHANNEL, Step.CLIP])
    assert [found.name for found in fits] == list(NAMES)
    assert [found.weights for found in fits] == [216, 72, 432, 72]
    assert all(found.weight_bits == 3 and 0 < found.relative_error < 1 for found in fits)
    assert any(found.clipped_weight_share > 0 for found in fits)
    assert all(found.saturated_input_share is not None and 0 <= found.saturated_input_share < 0.2 for found in fits)
    _, floating = fit([Step.PER_CHANNEL], LayerPlan(8, WeightQuantizer.PER_CHANNEL, ActivationQuantizer.NONE))
    assert all(found.saturated_input_share is None and found.relative_error < 1e-3 for found in floating)


def test_the_runbook_s_layers_are_left_to_brevitas() -> None:
    model, fits = fit([], LayerPlan(4, WeightQuantizer.RUNBOOK, ActivationQuantizer.NONE))
    assert fits == ()
    scales = brevitas_layers.scales(model[0])
    assert torch.equal(scales, scales[:1].expand(8))
    eight, _ = fit([], LayerPlan(8, WeightQuantizer.RUNBOOK, ActivationQuantizer.NONE))
    assert len(brevitas_layers.scales(eight[0]).unique()) > 1


def test_hooks_are_gone_afterwards() -> None:
    model, _ = fit([Step.PER_CHANNEL])
    with torch.no_grad():
        first, second = model(pictures()), model(pictures())
    assert torch.equal(first, second)
