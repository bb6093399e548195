"""Measured ablation: quantize one group, run held-out text, see what really happens. The truth that a score is to predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fewbits.quantizers.reference.layers import Rounding
from fewbits.quantizers.reference.perturb import Groups, mean_by_group, perturb_groups
from fewbits.records.sensitivity import GroupAblation


@dataclass(frozen=True, slots=True)
class Ablation:
    """Every group's effect, and the unquantized model beside it."""

    float_loss_nats: float
    """Mean next-token loss of the unquantized model over the samples, nats per token."""
    groups: tuple[GroupAblation, ...]

    def mean_kl_nats(self) -> dict[str, float]:
        """Return group -> mean KL(float || quantized) per token over all samples, nats."""
        return mean_by_group({group.group: group.kl_nats for group in self.groups})

    def mean_loss_change_nats(self) -> dict[str, float]:
        """Return group -> mean change of the loss per token over all samples, nats; may be negative."""
        return mean_by_group({group.group: group.loss_change_nats for group in self.groups})


def ablate(
    model: Any, batches: Sequence[dict[str, Any]], groups: Groups, rounding: Rounding, progress: Callable[[str], None]
) -> Ablation:
    """Quantize each group alone (weights and activations, as the format says) and compare with the float model on every sample.

    Samples are the independent units. Forward passes only; one batch's logits are held at a time; the model's weights are never
    touched. Raises `BackendError` when a group's modules are never reached.
    """
    found = perturb_groups(model, batches, groups, rounding, progress)
    return Ablation(
        float_loss_nats=math.fsum(found.float_loss) / len(found.float_loss),
        groups=tuple(
            GroupAblation(group=group, loss_change_nats=found.loss_change[group], kl_nats=found.kl[group]) for group in groups
        ),
    )
