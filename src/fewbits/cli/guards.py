"""`fewbits guards`: were the lab's conditions kept? Also `scripts/check_lab_guards.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fewbits.cli.gate_output import add_gate_arguments, finish
from fewbits.cli.numbers import celsius
from fewbits.core.errors import ExitCode

PROFILES = ("safe", "balanced", "stress")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--summary", type=Path, required=True, metavar="FILE", help="sweep_summary.json")
    parser.add_argument(
        "--cooldown-target-c", type=celsius, default=50.0, metavar="C", help="hottest start temperature, degrees Celsius (50)"
    )
    parser.add_argument(
        "--vram-profile",
        choices=PROFILES,
        default="safe",
        help="memory in use (GPU, or RAM for CPU inference) at most 0.50, 0.80 or 0.95 of what there is (safe)",
    )
    add_gate_arguments(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Judge and print."""
    from fewbits.api.gates import gate_guards
    from fewbits.records.base import VramProfile

    report = gate_guards(
        arguments.summary,
        cooldown_target_c=arguments.cooldown_target_c,
        profile=VramProfile(arguments.vram_profile),
        allow_skip=arguments.allow_skip,
    )
    return finish(report, arguments)
