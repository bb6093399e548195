"""Variants in order of their bits per weight, and which of them is the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fewbits.core.errors import SpecError
from fewbits.records.plan import Plan
from fewbits.records.schemes import find_scheme
from fewbits.records.variant import Artifact

Artifacts = Mapping[tuple[str, str], Artifact]
"""(model id, quant tag) -> manifest."""


def nominal_bits(tag: str) -> float | None:
    """Return the bits per weight that a tag stands for; `None` for a tag that is no llama.cpp scheme."""
    try:
        return find_scheme(tag).nominal_bits_per_weight
    except SpecError:
        return None


def rank_quants(artifacts: Mapping[str, Artifact | None]) -> dict[str, int]:
    """Return tag -> rank, 0 = fewest bits per weight; ties by file size, then tag, so ranks are unique.

    Measured bits count; without a file the tag's nominal ones. A variant about which neither is known ranks highest:
    it must never win as the one with the fewest bits.
    """

    def order(tag: str) -> tuple[float, int, str]:
        artifact = artifacts[tag]
        bits = _bits(tag, artifact)
        return (math.inf if bits is None else bits, artifact.bytes or 0 if artifact else 0, tag)

    return {tag: rank for rank, tag in enumerate(sorted(artifacts, key=order))}


def session_ranks(plan: Plan, model_id: str, artifacts: Artifacts) -> dict[str, int]:
    """Return `rank_quants` of one model's variants, the plan's tags taken once each."""
    return rank_quants({tag: artifacts.get((model_id, tag)) for tag in dict.fromkeys(plan.spec.quants)})


def compared_ranks(plan: Plan, model_id: str, artifacts: Artifacts, reference: str) -> dict[str, int]:
    """Return `session_ranks` without the reference: the variants that get a verdict."""
    return {tag: rank for tag, rank in session_ranks(plan, model_id, artifacts).items() if tag != reference}


def reference_tag(plan: Plan, model_id: str, artifacts: Artifacts) -> str:
    """Return the variant that the others are compared with: the plan's, else the one with the most bits that are known.

    A variant of unknown precision is the reference only when there is no other.
    """
    if plan.spec.reference_quant is not None:
        return plan.spec.reference_quant
    ranks = session_ranks(plan, model_id, artifacts)
    return max(ranks, key=lambda tag: (_bits(tag, artifacts.get((model_id, tag))) is not None, ranks[tag]))


def _bits(tag: str, artifact: Artifact | None) -> float | None:
    if artifact is not None and artifact.bits_per_weight is not None:
        return artifact.bits_per_weight
    return nominal_bits(tag)
