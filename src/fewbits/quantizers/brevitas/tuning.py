"""Short quantization-aware training of a quantized detector: the float model teaches, unlabelled training images are the school.

Weights are rounded in every forward pass and moved by the gradient that the rounded ones get (straight-through estimator,
arXiv 1308.3432); scales learn with them (learned step size quantization, arXiv 1902.08153). The start is a model that was already
fitted, so a few passes over a few images are enough; what comes back is never further from the teacher than what went in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from fewbits.core.errors import BackendError, Problem, SpecError
from fewbits.quantizers.brevitas.augmentation import augmented
from fewbits.quantizers.brevitas.library_methods import quiet_brevitas
from fewbits.quantizers.brevitas.tuned_layers import TunedLayers, fused, trainable, tuned_layers
from fewbits.quantizers.brevitas.tuning_loss import Observation, distillation_loss, head_inputs, observe
from fewbits.quantizers.brevitas.yolov10 import layer_roles
from fewbits.records.base import Rate, Record
from fewbits.records.detector_quant import LayerRole

if TYPE_CHECKING:
    import torch
    from torch import nn

HELD_OUT_SHARE = 0.1
_MOST_HELD_OUT = 32
_LARGEST_GRADIENT = 1.0
"""Norm over all gradients, per share of a range, above which a step's gradients are scaled down."""
_ADAM_EPSILON = 1e-12
"""Gradients are far below 1; Adam's usual 1e-8 would slow the smallest ones down."""


class TuningSettings(Record, frozen=True, kw_only=True):
    """How long and how fast a quantized detector is trained."""

    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    batch_images: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.0002
    """Of weights and biases: the most that one step moves them, about, as a share of their channel's range."""
    scale_learning_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.00005
    """Of scales: the most that one step moves them, about, as a share of their starting value."""
    warmup_share: Rate = 0.1
    """Share of the steps in which the rates rise from zero; then they fall to zero along a half cosine."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    augmented: bool = True
    """Whether images are mirrored, zoomed, shifted and made brighter or darker; the teacher sees the same."""


class TuningEpoch(Record, frozen=True, kw_only=True):
    """Mean loss of one pass over the training images, and the loss on the images held out after it. `None`: not finite."""

    train_loss: float | None
    held_out_loss: float | None


class TuningHistory(Record, frozen=True, kw_only=True):
    """What training did. Losses are distances from the teacher; no labels were used."""

    starting_loss: float
    """On the images held out, before the first step."""
    epochs: tuple[TuningEpoch, ...]
    best_epoch: int | None
    """Whose weights the model has now, counted from 1; `None` where it has those it came with."""
    collapsed: bool
    """The loss on the images held out was not finite, or larger at the end than at the start; nothing was changed then."""
    images: int
    held_out_images: int
    steps: int
    seconds: float


class TuningRecord(Record, frozen=True, kw_only=True):
    """How a model was trained, and what came of it."""

    settings: TuningSettings
    history: TuningHistory


def tune(
    model: nn.Module, teacher: Any, images: torch.Tensor, settings: TuningSettings, progress: Callable[[str], None]
) -> TuningHistory:
    """Train a quantized detector, in place, towards its float teacher.

    `model` has Brevitas layers under the names of the convolutions of `teacher`, a float `YoloV10` whose input is of the images'
    size. `images` [n, 3, size, size], n >= 2, are uint8, or float32 in 0..1; a tenth, at least one and at most 32, is held out:
    the loss on it chooses the epoch whose numbers stay, and tells a collapse, after which the model is as it was. Zero points and
    the box distribution's projection stay. The same arguments give the same model on the same machine with the same number of
    threads; nothing outside of the model is changed. Raises `SpecError`.
    """
    _check(images, teacher)
    started = time.monotonic()
    layers = {
        name: model.get_submodule(name) for name, role in layer_roles(teacher).items() if role is not LayerRole.DISTRIBUTION
    }
    tuned = tuned_layers(layers)
    train, held_out = _divided(images, settings.seed)
    school = _School(model, teacher, head_inputs(teacher), teacher.model[-1].point_strides, train)
    with fused(layers), trainable(model, tuned), quiet_brevitas():
        course = _train(school, tuned, held_out, settings, progress)
    return TuningHistory(
        starting_loss=course.starting_loss,
        epochs=tuple(course.epochs),
        best_epoch=course.best_epoch,
        collapsed=course.collapsed,
        images=len(train),
        held_out_images=len(held_out),
        steps=course.steps,
        seconds=time.monotonic() - started,
    )


def _check(images: torch.Tensor, teacher: Any) -> None:
    import torch

    size = teacher.image_size
    problems = []
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        problems.append(
            Problem("images", f"{list(images.shape)} is not [n, 3, {size}, {size}]", "the model is built for one size")
        )
    elif len(images) < 2:
        problems.append(Problem("images", f"{len(images)} cannot be divided into training and held-out images", "give 2 or more"))
    if images.dtype not in (torch.uint8, torch.float32):
        problems.append(Problem("images", f"numbers of type {images.dtype}", "give uint8, or float32 in 0..1"))
    if problems:
        raise SpecError(problems)


def _divided(images: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the images that are held out; both parts keep the order of the whole."""
    import torch

    count = min(_MOST_HELD_OUT, max(1, round(len(images) * HELD_OUT_SHARE)))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[count:].sort().values], images[order[:count].sort().values]


@dataclass(frozen=True, slots=True)
class _School:
    """A pupil, its teacher, and what both are asked."""

    model: nn.Module
    teacher: nn.Module
    readers: tuple[str, ...]
    point_strides: torch.Tensor
    images: torch.Tensor
    """What is trained on."""

    def lesson(self, images: torch.Tensor) -> Observation:
        """Return what the teacher says."""
        import torch

        with torch.no_grad():
            return observe(self.teacher, self.readers, images)

    def loss(self, images: torch.Tensor, lesson: Observation) -> torch.Tensor:
        """Return how far the pupil is from it."""
        return distillation_loss(observe(self.model, self.readers, images), lesson, self.point_strides)

    def floats(self, images: torch.Tensor) -> torch.Tensor:
        """Return images as the models take them."""
        import torch

        values = images.to(self.point_strides.device)
        return values.float() / 255 if values.dtype == torch.uint8 else values


@dataclass(slots=True)
class _Course:
    """How training goes."""

    starting_loss: float
    best_loss: float
    best_values: tuple[torch.Tensor, ...]
    best_epoch: int | None = None
    collapsed: bool = False
    steps: int = 0
    epochs: list[TuningEpoch] = field(default_factory=list)


def _train(
    school: _School,
    tuned: TunedLayers,
    held_out: torch.Tensor,
    settings: TuningSettings,
    progress: Callable[[str], None],
) -> _Course:
    exam = [(images, school.lesson(images)) for images in school.floats(held_out).split(settings.batch_images)]
    start = tuned.snapshot()
    course = _Course(starting_loss=(loss := _examined(school, exam)), best_loss=loss, best_values=start)
    if not (math.isfinite(loss) and tuned.finite()):
        raise BackendError("brevitas", "the quantized model gives numbers that are not finite before any training")
    try:
        for train_loss in _epochs(school, tuned, settings, course):
            held_out_loss = _examined(school, exam) if math.isfinite(train_loss) and tuned.finite() else math.nan
            _note(course, train_loss, held_out_loss, tuned)
            progress(
                f"epoch {len(course.epochs)} of {settings.epochs}: loss {train_loss:.4f} on training images, "
                f"{held_out_loss:.4f} on those held out ({course.starting_loss:.4f} at the start)"
            )
    except BaseException:
        tuned.restore(start)
        raise
    final = course.epochs[-1].held_out_loss
    course.collapsed = final is None or final > course.starting_loss
    tuned.restore(start if course.collapsed else course.best_values)
    course.best_epoch = None if course.collapsed else course.best_epoch
    return course


def _note(course: _Course, train_loss: float, held_out_loss: float, tuned: TunedLayers) -> None:
    finite = [loss if math.isfinite(loss) else None for loss in (train_loss, held_out_loss)]
    course.epochs.append(TuningEpoch(train_loss=finite[0], held_out_loss=finite[1]))
    if held_out_loss < course.best_loss:
        course.best_loss, course.best_epoch, course.best_values = held_out_loss, len(course.epochs), tuned.snapshot()


def _examined(school: _School, exam: Sequence[tuple[torch.Tensor, Observation]]) -> float:
    import torch

    with torch.no_grad():
        total = sum(float(school.loss(images, lesson)) * len(images) for images, lesson in exam)
    return total / sum(len(images) for images, _ in exam)


def _epochs(school: _School, tuned: TunedLayers, settings: TuningSettings, course: _Course) -> Iterator[float]:
    """Train, and yield the mean loss of every epoch; the first that is not finite is the last."""
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = _optimiser(tuned, settings)
    steps = settings.epochs * math.ceil(len(school.images) / settings.batch_images)
    for _ in range(settings.epochs):
        total = 0.0
        for chosen in torch.randperm(len(school.images), generator=generator).split(settings.batch_images):
            images = school.floats(school.images[chosen])
            images = augmented(images, generator) if settings.augmented else images
            loss = school.loss(images, school.lesson(images))
            total += float(loss.detach()) * len(images)
            if not math.isfinite(total):
                break
            loss.backward()
            _set_rates(optimiser, settings, _rate_share(course.steps, steps, settings.warmup_share))
            _step(optimiser, tuned)
            course.steps += 1
        yield total / len(school.images)
        if not math.isfinite(total):
            return


def _optimiser(tuned: TunedLayers, settings: TuningSettings) -> torch.optim.Optimizer:
    import torch

    groups = [{"params": [handle.shares for handle in handles]} for handles in (tuned.weights, tuned.scales) if handles]
    return torch.optim.Adam(groups, lr=settings.learning_rate, eps=_ADAM_EPSILON)


def _set_rates(optimiser: torch.optim.Optimizer, settings: TuningSettings, share: float) -> None:
    for group, rate in zip(optimiser.param_groups, (settings.learning_rate, settings.scale_learning_rate), strict=False):
        group["lr"] = rate * share


def _rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Return the share of the full rate at a step, counted from 0: a rising line, then half a cosine down to zero."""
    warmup = warmup_share * steps
    if step + 1 <= warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def _step(optimiser: torch.optim.Optimizer, tuned: TunedLayers) -> None:
    import torch

    for handle in tuned.handles:
        handle.take_gradient()
    torch.nn.utils.clip_grad_norm_([handle.shares for handle in tuned.handles], _LARGEST_GRADIENT)
    optimiser.step()
    tuned.write_back()
