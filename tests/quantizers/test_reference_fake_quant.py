from __future__ import annotations

from typing import Any

import pytest

from fewbits.core.errors import SpecError
from fewbits.quantizers.reference.fake_quant import (
    E2M1_VALUES,
    ActivationScale,
    FakeQuantization,
    quantization_of,
    quantize_activation,
    quantize_weight,
    round_scaled,
)
from fewbits.records.quant_formats import QUANT_FORMATS, ScaleShare

torch = pytest.importorskip("torch")

INT8 = FakeQuantization(weight="int8", share=ScaleShare.CHANNEL)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest(values: Any, grid: list[float]) -> Any:
    """Round by looking at every grid value."""
    table = torch.tensor(grid, dtype=torch.float64)
    return table[(values.double()[..., None] - table).abs().argmin(dim=-1)].float()


@pytest.mark.parametrize(("kind", "steps"), [("int8", 127), ("int4", 7)])
def test_integers_per_output_channel(kind: str, steps: int) -> None:
    weight = random(6, 40)
    weight[2] = 0
    rounded = quantize_weight(weight, FakeQuantization(weight=kind, share=ScaleShare.CHANNEL))
    for row, result in zip(weight, rounded, strict=True):
        scale = float(row.abs().max()) / steps
        grid = [scale * level for level in range(-steps - 1, steps + 1)]
        assert torch.allclose(result, nearest(row, grid), atol=1e-6)
    assert torch.equal(rounded[2], torch.zeros(40))


def test_integers_per_tensor_and_per_input_channel() -> None:
    weight = random(5, 7)
    whole = quantize_weight(weight, FakeQuantization(weight="int8", share=ScaleShare.TENSOR))
    assert torch.allclose(whole, torch.round(weight / weight.abs().max() * 127) * weight.abs().max() / 127, atol=1e-6)
    columns = quantize_weight(weight, FakeQuantization(weight="int8", share=ScaleShare.CHANNEL, per_input_channel=True))
    assert torch.allclose(columns, quantize_weight(weight.t(), INT8).t())


def test_blocks_run_along_the_input_and_the_last_may_be_short() -> None:
    weight = random(3, 10)
    how = FakeQuantization(weight="int4", share=ScaleShare.BLOCK, block=4)
    expected = torch.cat(
        [quantize_weight(part, FakeQuantization(weight="int4", share=ScaleShare.CHANNEL)) for part in weight.split(4, dim=1)],
        dim=1,
    )
    assert torch.allclose(quantize_weight(weight, how), expected)


def test_convolutions_have_one_scale_per_output_channel() -> None:
    weight = random(4, 3, 2, 2)
    assert torch.equal(quantize_weight(weight, INT8), quantize_weight(weight.flatten(1), INT8).reshape(4, 3, 2, 2))


def test_fp8_is_the_nearest_e4m3_value() -> None:
    weight = random(8, 32)
    scale = weight.abs().max() / 448
    grid = sorted(
        {float(torch.tensor(code, dtype=torch.uint8).view(torch.float8_e4m3fn)) for code in range(256) if code not in (127, 255)}
    )
    rounded = quantize_weight(weight, FakeQuantization(weight="fp8", share=ScaleShare.TENSOR))
    assert torch.allclose(rounded, nearest(weight / scale, grid) * scale, atol=1e-6)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_fp4_is_the_nearest_e2m1_value_under_its_scale(power_of_two: bool) -> None:
    how = FakeQuantization(weight="fp4", share=ScaleShare.BLOCK, block=16, power_of_two_scales=power_of_two)
    weight = random(4, 64) * torch.logspace(-3, 1, 4)[:, None]
    weight[1, :16] = 0
    rounded = quantize_weight(weight, how)
    assert torch.equal(rounded[1, :16], torch.zeros(16))
    grid = sorted({sign * value for value in E2M1_VALUES for sign in (-1, 1)})
    whole = float(weight.abs().max()) / (6 * 448)
    for block, result in zip(weight.reshape(-1, 16), rounded.reshape(-1, 16), strict=True):
        if not block.any():
            continue
        largest = float(block.abs().max())
        if power_of_two:
            scale = min(2.0**power for power in range(-30, 10) if 6 * 2.0**power >= largest)
        else:
            scale = float(torch.tensor(max(largest / 6 / whole, 2.0**-9)).to(torch.float8_e4m3fn)) * whole
        assert torch.allclose(result, nearest((block / scale).clamp(-6, 6), grid) * scale, rtol=1e-5, atol=1e-7)


def test_fp4_ties_go_to_the_even_mantissa() -> None:
    how = FakeQuantization(weight="fp4", share=ScaleShare.BLOCK, block=9, power_of_two_scales=True)
    values = torch.tensor([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -2.5]])
    assert quantize_weight(values, how).tolist() == [[6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -2.0]]


@pytest.mark.parametrize("fmt", QUANT_FORMATS.values(), ids=lambda fmt: fmt.name)
def test_every_format_is_idempotent_on_weights_and_leaves_the_original_alone(fmt: Any) -> None:
    how = quantization_of(fmt, {}, "here")
    weight = random(8, 128, seed=3)
    before = weight.clone()
    once = quantize_weight(weight, how)
    assert torch.equal(weight, before)
    assert torch.allclose(quantize_weight(once, how), once, rtol=1e-4, atol=1e-6)
    # scales that are themselves rounded may clip the largest values a little
    assert (once - weight).abs().max() < 0.2 * weight.abs().max()


def test_static_activations_clip_what_calibration_never_saw() -> None:
    how = FakeQuantization(weight="int8", share=ScaleShare.CHANNEL, activation="int8")
    values = torch.tensor([[0.5, -0.5, 3.0, -3.0]])
    rounded = quantize_activation(values, how, torch.tensor([1.0]))
    assert rounded.flatten().tolist() == pytest.approx([64 / 127, -64 / 127, 1.0, -128 / 127])
    with pytest.raises(ValueError, match="calibrated"):
        quantize_activation(values, how, None)


def test_scales_per_token_do_not_depend_on_other_tokens() -> None:
    how = FakeQuantization(
        weight="int8", share=ScaleShare.CHANNEL, activation="int8", activation_scale=ActivationScale.TOKEN, dynamic=True
    )
    tokens = random(2, 3, 16)
    outlier = tokens.clone()
    outlier[0, 0] *= 1000
    assert torch.equal(quantize_activation(outlier, how, None)[:, 1:], quantize_activation(tokens, how, None)[:, 1:])
    whole = FakeQuantization(weight="int8", share=ScaleShare.CHANNEL, activation="int8", dynamic=True)
    assert not torch.equal(quantize_activation(outlier, whole, None)[:, 1:], quantize_activation(tokens, whole, None)[:, 1:])


def test_scales_per_channel_use_each_features_own_range() -> None:
    how = FakeQuantization(weight="int8", share=ScaleShare.CHANNEL, activation="int8", activation_scale=ActivationScale.CHANNEL)
    values = torch.tensor([[1.0, 100.0]])
    rounded = quantize_activation(values, how, torch.tensor([1.0, 100.0]))
    assert rounded.flatten().tolist() == pytest.approx([1.0, 100.0])


def test_activations_that_stay_float_are_the_same_object() -> None:
    values = random(2, 4)
    assert quantize_activation(values, INT8, None) is values


def test_low_precision_types_are_kept() -> None:
    weight = random(4, 8).bfloat16()
    assert quantize_weight(weight, INT8).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"*weight_quantizer": {"axis": None}}, {"share": ScaleShare.TENSOR, "block": None}),
        ({"*weight_quantizer": {"axis": 1}}, {"share": ScaleShare.CHANNEL, "per_input_channel": True}),
        ({"*weight_quantizer": {"block_sizes": {"-1": 64}}}, {"share": ScaleShare.BLOCK, "block": 64}),
        (
            {"*input_quantizer": {"type": "dynamic", "block_sizes": {-1: None}}},
            {"activation_scale": ActivationScale.TOKEN, "dynamic": True, "needs_ranges": False},
        ),
        ({"*input_quantizer": {"axis": -1}}, {"activation_scale": ActivationScale.CHANNEL, "needs_ranges": True}),
    ],
)
def test_overlays_are_followed(overrides: dict[str, Any], expected: dict[str, Any]) -> None:
    how = quantization_of(QUANT_FORMATS["INT8_DEFAULT_CFG"], overrides, "here")
    assert {name: getattr(how, name) for name in expected} == expected


def test_a_wrong_overlay_is_refused() -> None:
    with pytest.raises(SpecError, match="here"):
        quantization_of(QUANT_FORMATS["NVFP4_WEIGHT_ONLY_CFG"], {"*weight_quantizer": {"axis": 0}}, "here")


def test_rounding_to_a_range_of_zero_gives_zero() -> None:
    assert torch.equal(round_scaled(random(4), torch.tensor(0.0), "int8"), torch.zeros(4))
