"""From a checkpoint and a recipe to a quantized model in torch, one named step after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fewbits.quantizers.brevitas.checkpoint import DetectorCheckpoint
from fewbits.quantizers.brevitas.fitting import Fitting, LayerFit, fit_layers
from fewbits.quantizers.brevitas.layers import ActivationQuantizer, LayerPlan, WeightQuantizer, quantize_layers
from fewbits.quantizers.brevitas.library_methods import METHODS, collect_activation_statistics, equalize, quiet_brevitas
from fewbits.quantizers.brevitas.output_scores import LayerCost, LayerSensitivity, layer_sensitivities, rounding_costs
from fewbits.quantizers.brevitas.samples import Sampling, record_float_inputs
from fewbits.quantizers.brevitas.tuning import TuningRecord, TuningSettings, tune
from fewbits.quantizers.brevitas.yolov10 import Head, build_yolov10, convolutions, fold_batch_norms, layer_roles
from fewbits.records.detector_quant import LayerRole, Recipe, Step
from fewbits.spec.detector_schemes import FLOAT_ACTIVATION_BITS, SPARED_BITS

if TYPE_CHECKING:
    import torch
    from torch import nn

_SPARED: Mapping[Step, tuple[LayerRole, ...]] = {
    Step.SPARE_DISTRIBUTION: (LayerRole.DISTRIBUTION,),
    Step.SPARE_ENDS: (LayerRole.FIRST, LayerRole.LAST),
    Step.SPARE_DEPTHWISE: (LayerRole.DEPTHWISE,),
}


ChooseBits = Callable[[Mapping[str, LayerCost], int, Mapping[str, int], float], Mapping[str, int]]
"""Layers' costs at the base bits, the base bits, the least bits of each layer, the average bits allowed -> bits of each layer."""


@dataclass(frozen=True, slots=True)
class DetectorSource:
    """The float model that variants are made from: a checkpoint, which of its heads, and the image size."""

    checkpoint: DetectorCheckpoint
    head: Head
    image_size: int


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """A model ready for export, and what was done to each layer; `fits` leaves out layers that are the runbook's."""

    model: nn.Module
    plans: Mapping[str, LayerPlan]
    roles: Mapping[str, LayerRole]
    fits: tuple[LayerFit, ...]
    training: TuningRecord | None = None


class DetectorLab:
    """Makes variants of one float model on one set of calibration images; what they share is computed once.

    `images` float32[images, 3, size, size], RGB 0..1, stay in memory. The same inputs give the same models.
    """

    def __init__(self, source: DetectorSource, images: torch.Tensor, choose_bits: ChooseBits) -> None:
        self._source = source
        self.images = images
        self._choose_bits = choose_bits

    @cached_property
    def sensitivities(self) -> dict[str, LayerSensitivity]:
        """Where errors of each layer reach the output, in the folded float model."""
        model = build_float(self._source)
        return layer_sensitivities(model, convolutions(model), self.images, seed=0)

    def build(self, recipe: Recipe, progress: Callable[[str], None]) -> BuiltVariant:
        """Quantize the float model by a recipe, step by step. Slow parts are announced through `progress`."""
        model: Any = build_yolov10(self._source.checkpoint, self._source.head, self._source.image_size)
        if Step.FOLD in recipe.steps:
            fold_batch_norms(model)
        roles = layer_roles(model)
        if Step.EQUALIZE in recipe.steps:
            model = equalize(model, self.images)
        found = convolutions(model)
        is_weighted = Step.WEIGHTED in recipe.steps
        if (is_weighted or recipe.budget_bits is not None) and "sensitivities" not in vars(self):
            progress(f"reading where errors matter, on {len(self.images)} images")
        sampling = Sampling(importance={name: seen.places for name, seen in self.sensitivities.items()} if is_weighted else {})
        progress(f"reading what {len(found)} layers see")
        floats = record_float_inputs(model, found, self.images, sampling)
        plans = plan_layers(recipe, roles, {})
        if recipe.budget_bits is not None:
            progress(f"weighing {len(found)} layers under {recipe.budget_bits:g} bits on average")
            costs = rounding_costs(found, self.sensitivities, floats.columns, recipe.weight_bits)
            least = {name: plan.weight_bits for name, plan in plans.items()}
            plans = plan_layers(recipe, roles, self._choose_bits(costs, recipe.weight_bits, least, recipe.budget_bits))
        layers = quantize_layers(model, plans)
        with quiet_brevitas():
            if Step.UNSIGNED not in recipe.steps and recipe.activation_bits != FLOAT_ACTIVATION_BITS:
                collect_activation_statistics(model, self.images)
            progress(f"fitting {len(found)} layers")
            fits = fit_layers(model, layers, Fitting(plans, recipe.steps, sampling), self.images, floats)
            for step, method in METHODS.items():
                if step in recipe.steps:
                    progress(f"running {step}")
                    method(model, self.images)
        training = None
        if recipe.tuned:
            settings = TuningSettings()
            history = tune(model, build_float(self._source), self.images, settings, progress)
            training = TuningRecord(settings=settings, history=history)
        return BuiltVariant(model, plans, roles, fits, training)


def build_float(source: DetectorSource) -> nn.Module:
    """Return the float model in the one graph form that all variants share: batch norms folded, one head."""
    model = build_yolov10(source.checkpoint, source.head, source.image_size)
    fold_batch_norms(model)
    return model


def plan_layers(recipe: Recipe, roles: Mapping[str, LayerRole], layer_bits: Mapping[str, int]) -> dict[str, LayerPlan]:
    """Return how each layer is quantized: spared roles at 8 bits, the others at the recipe's, unless `layer_bits` names them."""
    spared = {role for step, its_roles in _SPARED.items() if step in recipe.steps for role in its_roles}
    weights = WeightQuantizer.PER_CHANNEL if Step.PER_CHANNEL in recipe.steps else WeightQuantizer.RUNBOOK
    activations = _activations(recipe)
    return {
        name: LayerPlan(layer_bits.get(name, SPARED_BITS if role in spared else recipe.weight_bits), weights, activations)
        for name, role in roles.items()
    }


def _activations(recipe: Recipe) -> ActivationQuantizer:
    if recipe.activation_bits == FLOAT_ACTIVATION_BITS:
        return ActivationQuantizer.NONE
    return ActivationQuantizer.UNSIGNED if Step.UNSIGNED in recipe.steps else ActivationQuantizer.SIGNED
