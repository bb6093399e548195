"""Flags of the commands that run one variant: the model, the engine, the controls."""

from __future__ import annotations

import argparse

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_QUANT = "Q8_0"

_SETTINGS = {
    "runtime": ("--runtime", "llamacpp, ollama, openai or scripted"),
    "base_url": ("--base-url", "address of the server, for ollama and openai"),
    "script": ("--script", "file with the replies of the scripted runtime"),
    "execution_lane": ("--execution-lane", "label: ci or lab"),
    "vram_profile": ("--vram-profile", "label: safe, balanced or stress"),
    "seed": ("--seed", "seed of sampling and of the order of trials"),
    "threads": ("--threads", "compute threads; auto: all cores of this process"),
    "affinity_policy": ("--affinity-policy", "cores that the engine is pinned to: none, auto, or cores:0,2-3"),
    "warmup_steps": ("--warmup-steps", "unrecorded generations after the load"),
    "temperature": ("--temperature", "sampling temperature; 0 is greedy"),
    "max_tokens": ("--max-tokens", "longest answer in tokens"),
    "context_size": ("--context-size", "context of the model in tokens"),
    "trial_timeout_seconds": ("--trial-timeout-seconds", "longest time for one trial"),
    "control_profile": ("--control-profile", "named profile of controls and quality policy, or its file"),
}


def add_single_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them. Values stay text: `spec.load` checks all of them at once."""
    group = parser.add_argument_group("what is run")
    group.add_argument("--model-id", default=DEFAULT_MODEL, metavar="MODEL", help=f"the model ({DEFAULT_MODEL}, packaged)")
    group.add_argument(
        "--quant-tag", "--quant-tags", default=DEFAULT_QUANT, metavar="TAG", help=f"its quantization ({DEFAULT_QUANT})"
    )
    for key, (flag, words) in _SETTINGS.items():
        group.add_argument(flag, dest=key, metavar="VALUE", help=words)


def single_flags(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the settings of a sweep that were given here."""
    flags: dict[str, object] = {"models": arguments.model_id, "quants": arguments.quant_tag}
    return flags | {key: value for key in _SETTINGS if (value := getattr(arguments, key)) is not None}
