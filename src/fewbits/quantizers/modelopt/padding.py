"""Keep padding out of what layers see: padded positions enter a layer as zeros, so that they reach no statistic and no score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class PaddingGuard:
    """Hooks on layers that set padded positions of their input to zero. A context manager: on leaving, the hooks are gone.

    A zero changes no maximum of absolute values, which is what calibration collects; attention never looks at padding. What a
    real position computes stays as it is.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        self._layers = list(layers)
        self._handles: list[Any] = []
        self._padding: Any = None

    def __enter__(self) -> PaddingGuard:
        self._handles = [layer.register_forward_pre_hook(self._blank) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def set_batch(self, batch: dict[str, Any]) -> None:
        """Take the padding of the batch that the model is about to run on."""
        padding = batch["attention_mask"] == 0
        self._padding = padding if bool(padding.any()) else None

    def _blank(self, _layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        padding = self._padding
        if padding is None or not inputs:
            return None
        values = inputs[0]
        if values.dim() >= 2 and tuple(values.shape[:2]) == tuple(padding.shape):
            shape = (*padding.shape, *([1] * (values.dim() - 2)))
        elif values.dim() == 2 and values.shape[0] == padding.numel():
            shape = (padding.numel(), 1)  # positions of all samples in one row
        else:
            return None
        return (values.masked_fill(padding.reshape(shape), 0), *inputs[1:])
