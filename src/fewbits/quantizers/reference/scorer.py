"""The two sensitivity scores, straight from their definitions: for checking a library, and for use without one.

Both are means over samples, so they do not depend on how many samples there are or how they are batched.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fewbits.quantizers.reference.layers import Rounding, layer_output, require_reached, rounded_weight
from fewbits.quantizers.reference.perturb import Groups, mean_by_group, perturb_groups
from fewbits.quantizers.torch.batches import forward_inputs, sample_losses
from fewbits.records.sensitivity import SensitivityMethod

Progress = Callable[[str], None]


def score_groups(
    model: Any,
    batches: Sequence[dict[str, Any]],
    groups: Groups,
    rounding: Rounding,
    *,
    method: SensitivityMethod,
    progress: Progress,
) -> dict[str, float]:
    """Return each group's score by `method`, 0 or more, higher = more sensitive. See the two functions below."""
    if method is SensitivityMethod.GRADIENT:
        return gradient_scores(model, batches, groups, rounding, progress)
    return divergence_scores(model, batches, groups, rounding, progress)


def divergence_scores(
    model: Any,
    batches: Sequence[dict[str, Any]],
    groups: Groups,
    rounding: Rounding,
    progress: Progress,
) -> dict[str, float]:
    """Return the mean over samples of the mean KL(float || only this group quantized) per token, nats."""
    return mean_by_group(perturb_groups(model, batches, groups, rounding, progress).kl)


def gradient_scores(
    model: Any,
    batches: Sequence[dict[str, Any]],
    groups: Groups,
    rounding: Rounding,
    progress: Progress,
) -> dict[str, float]:
    """Return S(g) = mean over samples of the sum over i of (dL/dY_i)^2 (Yq_i - Y_i)^2.

    Y are the outputs of the group's modules with the whole model in float, Yq what the same inputs give through the quantized
    module, L the sample's own mean next-token loss. It is the second-order term of the loss (the first vanishes at a trained
    optimum) with the Hessian replaced by the squared gradient, its expectation under the model's own labels (Fisher information),
    and everything off the diagonal dropped. The factor 1/2 is left out: for a sample of T predicted tokens whose labels follow
    the model's own distribution, and output errors that are independent of each other, the mean KL per token is about S T / 2.
    Raises `BackendError` when a module is never reached.
    Source: LeCun, Denker and Solla (1990), Optimal Brain Damage, NeurIPS 2 (diagonal second-order saliency); Dong et al. (2020),
    HAWQ-V2, NeurIPS 33 (curvature times quantization error); ModelOpt 0.47, `AutoQuantizeGradientSearcher`.
    """
    import torch

    sums = dict.fromkeys(groups, 0.0)
    reached: set[str] = set()
    samples = 0
    with _only_activations_get_gradients(model), torch.enable_grad():
        for number, batch in enumerate(batches, start=1):
            progress(f"batch {number} of {len(batches)}: gradients")
            totals: dict[str, Any] = {}
            with _squared_effects(model, groups, rounding, totals) as seen:
                losses = sample_losses(model(**forward_inputs(batch)).logits, batch["labels"])
                losses.sum().backward()
            reached |= seen
            samples += len(losses)
            for group, total in totals.items():
                sums[group] += float(total)
    require_reached({member for members in groups.values() for member in members}, reached)
    return {group: total / samples for group, total in sums.items()}


@contextlib.contextmanager
def _squared_effects(model: Any, groups: Groups, rounding: Rounding, totals: dict[str, Any]) -> Iterator[set[str]]:
    """Add up (gradient x output error)^2 per group over a forward and a backward pass; yields which modules got a gradient."""
    seen: set[str] = set()
    with contextlib.ExitStack() as stack:
        for group, members in groups.items():
            for name in members:
                hook = functools.partial(_watch, group=group, name=name, rounding=rounding, totals=totals, seen=seen)
                stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield seen


def _watch(
    module: Any,
    arguments: tuple[Any, ...],
    output: Any,
    *,
    group: str,
    name: str,
    rounding: Rounding,
    totals: dict[str, Any],
    seen: set[str],
) -> None:
    import torch

    with torch.no_grad():
        error = layer_output(module, arguments[0], rounded_weight(module, rounding.how), rounding, name).float()
        error -= output.float()

    def add(gradient: Any) -> None:
        seen.add(name)
        # doubles: float32 loses the small groups beside the squares of outlier channels
        effect = (gradient.float() * error).double().square().sum()
        totals[group] = totals[group] + effect if group in totals else effect

    if output.requires_grad:
        output.register_hook(add)


@contextlib.contextmanager
def _only_activations_get_gradients(model: Any) -> Iterator[None]:
    """Start the gradient at the embeddings' output, so that no gradient of a weight is computed or stored."""
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    handle = model.get_input_embeddings().register_forward_hook(lambda _module, _arguments, output: output.requires_grad_(True))
    try:
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        handle.remove()
        for parameter, required in parameters:
            parameter.requires_grad_(required)
