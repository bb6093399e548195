"""One question about one page to a loaded vision-language model: the prompt's tokens in, the new tokens' text out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewbits.core.errors import SpecError
from fewbits.runtimes.extraction.vision_load import LoadedVision, quiet, readable

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
"""A page, uint8[height, width, 3], RGB."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Draw tokens from the model's own distribution at `temperature` (> 0), from `seed` on; nothing else shapes it."""

    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SpecError.single("temperature", f"{self.temperature} is not above 0", "leave sampling out for greedy answers")


@dataclass(frozen=True, slots=True)
class VisionAnswer:
    """One answer. `truncated`: the limit of new tokens came before the model's end; `timed_out`: the deadline did."""

    text: str
    prompt_tokens: int
    new_tokens: int
    truncated: bool
    timed_out: bool


def ask_model(
    loaded: LoadedVision, pixels: Pixels, prompt: str, *, max_new_tokens: int, sampling: Sampling | None, deadline: float | None
) -> VisionAnswer:
    """Ask; greedy without `sampling`. `deadline` is a time of the monotonic clock.

    Raises `SpecError` for what is no page, `BackendError` (out of memory, the library failed).
    """
    import torch

    stop = _Deadline(deadline)
    with quiet(), readable(loaded.folder.name), torch.inference_mode(), _seeded(sampling, str(loaded.model.device)):
        inputs = model_inputs(loaded, pixels, prompt)
        given = inputs["input_ids"].shape[1]
        settings = _generation(sampling) | {"max_new_tokens": max_new_tokens}
        output = loaded.model.generate(**inputs, **settings, stopping_criteria=[stop])
        new = output[0, given:].tolist()
        text = loaded.processor.decode(new, skip_special_tokens=True)
    ended = bool(new) and new[-1] in _ends(loaded.model)
    return VisionAnswer(
        text=text,
        prompt_tokens=given,
        new_tokens=len(new),
        truncated=len(new) >= max_new_tokens and not ended,
        timed_out=stop.fired and not ended,
    )


def model_inputs(loaded: LoadedVision, pixels: Pixels, prompt: str) -> Any:
    """Return what the model is fed: the chat template's tokens, the picture's pixels in the model's float type."""
    content = [{"type": "image", "image": _picture(pixels)}, {"type": "text", "text": prompt}]
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs.to(loaded.model.device, dtype=loaded.model.dtype)  # only floats change their type: pixels, not tokens


def _generation(sampling: Sampling | None) -> dict[str, Any]:
    """Every setting that shapes an answer: the defaults in models' own files (sampling, repetition penalty) differ."""
    common: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0}
    if sampling is None:
        return common | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return common | {"do_sample": True, "temperature": sampling.temperature, "top_p": 1.0, "top_k": 0}


class _Deadline:
    """A stopping criterion: the model stops after the token during which the deadline passed."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self.fired = False

    def __call__(self, input_ids: Any, _scores: Any, **_more: Any) -> Any:
        import torch

        self.fired = self.fired or (self._deadline is not None and time.monotonic() >= self._deadline)
        return torch.full((input_ids.shape[0],), self.fired, device=input_ids.device, dtype=torch.bool)


@contextlib.contextmanager
def _seeded(sampling: Sampling | None, device: str) -> Iterator[None]:
    """Draw from the seed inside, and leave the global generators as they were."""
    if sampling is None:
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.startswith("cuda") else []):
        torch.manual_seed(sampling.seed)
        yield


def _picture(pixels: Pixels) -> Image.Image:
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise SpecError.single("pixels", f"{pixels.dtype}{list(pixels.shape)} is no RGB page", "give uint8[height, width, 3]")
    return Image.fromarray(pixels)


def _ends(model: Any) -> frozenset[int]:
    """Return the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())
