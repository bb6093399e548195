"""Flags of the commands that run one variant: the model, the engine, the controls."""

from __future__ import annotations

import argparse

from fewbits.spec.flags import add_chosen_arguments

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_QUANT = "Q8_0"

_SETTINGS = (
    "runtime",
    "base_url",
    "script",
    "execution_lane",
    "vram_profile",
    "seed",
    "threads",
    "affinity_policy",
    "warmup_steps",
    "temperature",
    "max_tokens",
    "context_size",
    "trial_timeout_seconds",
    "control_profile",
)
"""Settings of a sweep that a single variant takes too."""


def add_single_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them. Values stay text: `spec.load` checks all of them at once."""
    group = parser.add_argument_group("what is run")
    group.add_argument("--model-id", default=DEFAULT_MODEL, metavar="MODEL", help=f"the model ({DEFAULT_MODEL}, packaged)")
    group.add_argument(
        "--quant-tag", "--quant-tags", default=DEFAULT_QUANT, metavar="TAG", help=f"its quantization ({DEFAULT_QUANT})"
    )
    add_chosen_arguments(group, _SETTINGS)


def single_flags(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the settings of a sweep that were given here."""
    flags: dict[str, object] = {"models": arguments.model_id, "quants": arguments.quant_tag}
    return flags | {key: value for key, value in vars(arguments).items() if key in _SETTINGS}
