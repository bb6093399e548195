"""What quantizing one group alone does to a model's predictions: the forward passes behind the `kl_div` score and the ablation.

Batches are the outer loop, so only one batch's logits are ever held. Layers before the quantized group compute what they computed
without it; where a model allows it, their outputs are kept and they are not run again, which about halves the work.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbits.quantizers.reference.layers import Rounding, forwards_replaced, quantized, require_reached
from fewbits.quantizers.torch.batches import NO_LABEL, forward_inputs

Groups = Mapping[str, Sequence[str]]
"""Group name -> names of the modules that are quantized together."""
_CELLS_AT_ONCE = 400_000
"""Logits that are converted to float64 together: what fits into a core's cache takes a third of the time."""
_CHECKED_QUARTERS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Per sample, in their order; nats per predicted token."""

    float_loss: tuple[float, ...]
    """Mean next-token loss of the float model."""
    loss_change: dict[str, tuple[float, ...]]
    """Group -> mean loss with the group quantized minus `float_loss`."""
    kl: dict[str, tuple[float, ...]]
    """Group -> mean KL(float || group quantized)."""


def perturb_groups(
    model: Any,
    batches: Sequence[dict[str, Any]],
    groups: Groups,
    rounding: Rounding,
    progress: Callable[[str], None],
) -> Perturbation:
    """Measure every group on every sample: one float pass per batch, then one pass with each group quantized.

    `batches` are those of `quantizers.torch.batches`. The model is left as it was. Raises `BackendError` when a module of a group
    is never reached.
    """
    import torch

    float_loss: list[float] = []
    loss_change: dict[str, list[float]] = {group: [] for group in groups}
    kl: dict[str, list[float]] = {group: [] for group in groups}
    stack = LayerStack.of(model, groups)
    with torch.inference_mode():
        for number, batch in enumerate(batches, start=1):
            progress(f"batch {number} of {len(batches)}: float")
            with stack.recorded(), _calls_seen(model, groups) as seen:
                logits = model(**forward_inputs(batch)).logits
            require_reached({member for members in groups.values() for member in members}, seen)
            if number == 1:
                stack.check(lambda: model(**forward_inputs(batch)).logits, logits)  # noqa: B023 - called at once
            reference = _Predictions.of(logits, batch["labels"])
            float_loss += reference.own_loss
            for done, (group, members) in enumerate(groups.items(), start=1):
                if done % 10 == 0:
                    progress(f"batch {number} of {len(batches)}: group {done} of {len(groups)}")
                with stack.prefix_kept(group), quantized(model, members, rounding):
                    other = model(**forward_inputs(batch)).logits
                losses, divergences = reference.compare(other)
                loss_change[group] += [loss - own for loss, own in zip(losses, reference.own_loss, strict=True)]
                kl[group] += divergences
    return Perturbation(
        float_loss=tuple(float_loss),
        loss_change={group: tuple(values) for group, values in loss_change.items()},
        kl={group: tuple(values) for group, values in kl.items()},
    )


@contextlib.contextmanager
def _calls_seen(model: Any, groups: Groups) -> Iterator[set[str]]:
    """Collect the names of the groups' modules that run inside the block."""
    seen: set[str] = set()
    with contextlib.ExitStack() as stack:
        for members in groups.values():
            for name in members:
                handle = model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
                stack.callback(handle.remove)
        yield seen


@dataclass(frozen=True, slots=True)
class _Predictions:
    """The float model's predictions on one batch, at the positions that have a next token."""

    logits: Any
    """float32 `[positions, vocabulary]`."""
    normaliser: Any
    """float64 `[positions]`: log of the sum of exp(logits)."""
    next_token: Any
    """int64 `[positions]`."""
    used: Any
    """bool `[samples, tokens - 1]`: which positions of the batch these are."""
    own_loss: list[float]
    """Per sample."""

    @classmethod
    def of(cls, logits: Any, labels: Any) -> _Predictions:
        used = labels[:, 1:] != NO_LABEL
        kept = logits[:, :-1][used].float()
        next_token = labels[:, 1:][used]
        normaliser = _normaliser(kept)
        loss = normaliser - _at(kept, next_token)
        return cls(kept, normaliser, next_token, used, _by_sample(loss, used))

    def compare(self, logits: Any) -> tuple[list[float], list[float]]:
        """Return, per sample, another model's mean loss and mean KL(float || other).

        KL = log-normaliser(other) - log-normaliser(float) - sum of p (other - float), in float64: the divergence of an 8-bit
        layer is smaller than the rounding of a float32 log-probability.
        """
        import torch

        kept = logits[:, :-1][self.used].float()
        normaliser = _normaliser(kept)
        shift = torch.empty_like(normaliser)
        for part in _parts(kept):
            p = torch.exp(self.logits[part].double() - self.normaliser[part, None])
            shift[part] = (p * (kept[part] - self.logits[part])).sum(dim=1)
        divergence = (normaliser - self.normaliser - shift).clamp(min=0.0)
        loss = normaliser - _at(kept, self.next_token)
        return _by_sample(loss, self.used), _by_sample(divergence, self.used)


def _parts(logits: Any) -> Iterator[slice]:
    positions, vocabulary = logits.shape
    step = max(1, _CELLS_AT_ONCE // vocabulary)
    for start in range(0, positions, step):
        yield slice(start, start + step)


def _normaliser(logits: Any) -> Any:
    import torch

    return torch.cat([torch.logsumexp(logits[part].double(), dim=1) for part in _parts(logits)])


def _at(logits: Any, tokens: Any) -> Any:
    return logits.gather(1, tokens[:, None])[:, 0].double()


def _by_sample(values: Any, used: Any) -> list[float]:
    """Average values per position over each sample's positions."""
    import torch

    table = torch.zeros(used.shape, dtype=torch.float64, device=values.device)
    table[used] = values
    means: list[float] = (table.sum(dim=1) / used.sum(dim=1)).tolist()
    return means


@dataclass(slots=True)
class LayerStack:
    """The model's list of layers, and their outputs in the last float pass."""

    layers: Sequence[Any]
    first_layer: dict[str, int]
    """Group -> number of layers that run before any of its modules."""
    outputs: list[Any] = field(default_factory=list)
    usable: bool = True

    @classmethod
    def of(cls, model: Any, groups: Groups) -> LayerStack:
        """Find the list that most of the groups' modules lie in. Without one, every pass runs the whole model."""
        import torch

        paths = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
        members = [member for names in groups.values() for member in names]
        counts = {path: sum(member.startswith(f"{path}.") for member in members) for path in paths}
        path = max(counts, key=lambda path: (counts[path], -len(path)), default="")
        if not counts.get(path):
            return cls((), {}, usable=False)
        layers = list(model.get_submodule(path))
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        first = {}
        for group, names in groups.items():
            inside = [int(name.removeprefix(f"{path}.").split(".")[0]) for name in names if name.startswith(f"{path}.")]
            if len(inside) == len(names):
                first[group] = min(inside)
            elif head is not None and all(model.get_submodule(name) is head for name in names):
                first[group] = len(layers)
        return cls(layers, first)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep every layer's output of the pass inside the block; those of an earlier pass are dropped."""
        outputs: list[Any] = [None] * len(self.layers)
        with contextlib.ExitStack() as stack:
            if self.usable:
                for index, layer in enumerate(self.layers):
                    handle = layer.register_forward_hook(functools.partial(_keep, outputs, index))
                    stack.callback(handle.remove)
            yield
        self.outputs = outputs

    def check(self, run: Callable[[], Any], logits: Any) -> None:
        """Give up the shortcut unless passes that skip 1/4, 1/2, 3/4 and all of the layers give exactly `logits`.

        Layers that hand each other more than their output (shared keys and values) fail here.
        """
        import torch

        if not self.usable:
            return
        try:
            self.usable = all(output is not None for output in self.outputs) and all(
                torch.equal(self._run_from(len(self.layers) * quarter // 4, run), logits) for quarter in _CHECKED_QUARTERS
            )
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            self.usable = False

    def _run_from(self, first: int, run: Callable[[], Any]) -> Any:
        with self._skipped(first):
            return run()

    @contextlib.contextmanager
    def prefix_kept(self, group: str) -> Iterator[None]:
        """Do not run the layers before `group` again inside the block."""
        with self._skipped(self.first_layer.get(group, 0) if self.usable else 0):
            yield

    @contextlib.contextmanager
    def _skipped(self, first: int) -> Iterator[None]:
        kept = [(self.layers[index], functools.partial(_give, self.outputs[index])) for index in range(first)]
        with forwards_replaced(kept):
            yield


def _keep(outputs: list[Any], index: int, _module: Any, _arguments: Any, output: Any) -> None:
    outputs[index] = output


def _give(output: Any, *_arguments: Any, **_keywords: Any) -> Any:
    return output


def mean_by_group(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average each group's samples."""
    return {group: math.fsum(samples) / len(samples) for group, samples in values.items()}
