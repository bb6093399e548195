"""Fit every layer in turn, each on the inputs that the layers before it really give it: ranges, scales, roundings, biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbits.quantizers.brevitas import layers as brevitas_layers
from fewbits.quantizers.brevitas.activation_ranges import least_squares_range, saturated_share
from fewbits.quantizers.brevitas.layers import ActivationQuantizer, LayerPlan, WeightQuantizer
from fewbits.quantizers.brevitas.learned_rounding import LayerSamples, RoundingDescent, learned_rounding
from fewbits.quantizers.brevitas.rounding import (
    absmax_scales,
    clipped_scales,
    compensated,
    fitted_target,
    largest_code,
    nearest,
    output_error,
    whole_number_scales,
)
from fewbits.quantizers.brevitas.samples import FloatInputs, Sampling, sampled_columns, sampled_places, uniform_weights
from fewbits.records.detector_quant import Step

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Fitting:
    """What is fitted, and how: a plan for every layer by name, the ladder's steps, and where inputs are sampled."""

    plans: Mapping[str, LayerPlan]
    steps: Sequence[Step]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class LayerFit:
    """How one layer came out. Shares are 0..1; `None` where the layer has no such thing."""

    name: str
    weight_bits: int
    weights: int
    relative_error: float
    """Mean squared error of the layer's output against the float model's, over the variance of that output, on the samples."""
    clipped_weight_share: float
    """Weights beyond the largest code of their scale."""
    saturated_input_share: float | None
    """Inputs outside of the activation's range."""


@dataclass(frozen=True, slots=True)
class _Samples:
    """A layer's sampled inputs, float32[groups, samples, columns], now and in the float model."""

    now: torch.Tensor
    then: torch.Tensor
    counts: torch.Tensor
    """float32[samples]: what each counts in a mean over all positions."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """A layer's sampled inputs, now and in the float model, as means and second moments in float64."""

    gram: torch.Tensor
    drift: torch.Tensor
    mean: torch.Tensor
    """float64[groups, 1, columns]: zeros where biases are not refitted."""
    float_mean: torch.Tensor
    float_gram: torch.Tensor


def fit_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], fitting: Fitting, images: torch.Tensor, floats: FloatInputs
) -> tuple[LayerFit, ...]:
    """Fit the Brevitas `layers` of `model`, in place, in one forward pass over `images` (float32[images, 3, size, size]).

    Every layer is fitted the moment the pass reaches it and then computes as a quantized layer, so that later ones see its error.
    `floats` (used up) are the float model's inputs at the same sampled places. Layers whose plan is the runbook's are left alone.
    """
    import torch

    fits: list[LayerFit] = []
    hooks = []
    for name, layer in layers.items():
        plan = fitting.plans[name]
        if plan.weights is WeightQuantizer.RUNBOOK:
            continue

        def fit(module: Any, inputs: tuple[Any, ...], name: str = name, plan: LayerPlan = plan) -> None:
            places = sampled_places(inputs[0], module, fitting.sampling, name)
            saturated = _fit_activation(module, plan, inputs[0])
            seen = sampled_columns(brevitas_layers.quantized_input(module, inputs[0]), module, places)
            counts = uniform_weights(inputs[0], module, places, fitting.sampling, name)
            error, clipped = _fit_weights(module, plan, fitting.steps, _Samples(seen, floats.columns.pop(name), counts))
            fits.append(LayerFit(name, plan.weight_bits, module.weight.numel(), error, clipped, saturated))

        hooks.append(layer.register_forward_pre_hook(fit))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(fits)


def _fit_activation(layer: Any, plan: LayerPlan, values: torch.Tensor) -> float | None:
    if plan.activations is not ActivationQuantizer.UNSIGNED:
        return None
    # of all values, not of the sampled columns: a range that misses extremes costs more than one that fits the objects best
    found = least_squares_range(values)
    brevitas_layers.set_activation_range(layer, found)
    return saturated_share(values, found)


def _fit_weights(layer: Any, plan: LayerPlan, steps: Sequence[Step], samples: _Samples) -> tuple[float, float]:
    """Fit weights, scales and bias; returns the relative output error and the share of clipped weights."""
    groups, rows = layer.groups, layer.out_channels // layer.groups
    weights = layer.weight.data.double().reshape(groups, rows, -1)
    columns = _moments(samples, centred=Step.BIAS in steps)
    bits = plan.weight_bits
    exact = whole_number_scales(weights, bits)
    if exact is not None:  # the box distribution's projection: 0 to 15 at 8 bits; nothing is gained by fitting what is exact
        target, scales = weights, exact
    else:
        target = fitted_target(weights, columns.gram, columns.drift) if Step.TARGET in steps else weights
        scales = clipped_scales(target, columns.gram, bits) if Step.CLIP in steps else absmax_scales(target, bits)
    if Step.GPTQ in steps:
        values = compensated(target, columns.gram, scales, bits)
    elif Step.LEARNED in steps:
        wanted = (samples.then - columns.float_mean.float()) @ weights.float().transpose(1, 2)
        lesson = LayerSamples(target, samples.now - columns.mean.float(), wanted)
        values = learned_rounding(lesson, scales, bits, RoundingDescent())
    else:
        values = nearest(target, scales, bits)
    # rounding to nearest is left to the layer itself: whoever rounds in another way later still finds the real weights
    kept_values = target if Step.GPTQ not in steps and Step.LEARNED not in steps else values
    brevitas_layers.set_weights(layer, kept_values.float(), scales.flatten().float())
    if Step.BIAS in steps and layer.bias is not None:
        shift = (weights * columns.float_mean).sum(dim=2) - (values * columns.mean).sum(dim=2)
        layer.bias.data.add_(shift.flatten().float())
    clipped = float((target.abs() > scales * (largest_code(bits) + 0.5)).double().mean())
    return _relative_error(weights, values, columns), clipped


def _moments(samples: _Samples, *, centred: bool) -> _Columns:
    """Return moments around the means over all positions, which a refitted bias keeps, wherever samples are dense."""
    count = samples.now.shape[1]
    weights = samples.counts[None, :, None] * float(centred)
    mean, float_mean = ((part * weights).sum(dim=1, keepdim=True) for part in (samples.now, samples.then))
    now, then = samples.now - mean, samples.then - float_mean
    return _Columns(
        gram=(now.transpose(1, 2) @ now / count).double(),
        drift=((then - now).transpose(1, 2) @ now / count).double(),
        mean=mean.double(),
        float_mean=float_mean.double(),
        float_gram=(then.transpose(1, 2) @ then / count).double(),
    )


def _relative_error(weights: torch.Tensor, values: torch.Tensor, columns: _Columns) -> float:
    """|W x_float - V x|^2 / |W x_float|^2 from the moments: no second pass over the samples."""
    cross = columns.gram + columns.drift  # mean of x_float x^T
    own = output_error(weights, columns.float_gram)
    error = own - 2 * ((weights @ cross) * values).sum(dim=2, keepdim=True) + output_error(values, columns.gram)
    whole = float(own.sum())
    return max(0.0, float(error.sum())) / whole if whole > 0 else 0.0
