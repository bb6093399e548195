"""Quant tags in one spelling, so that duplicates are seen and the nearest known tag can be named."""

from __future__ import annotations

from fewbits.core.errors import Problem, SpecError
from fewbits.records.schemes import find_recipe_tag, find_scheme
from fewbits.spec.detector_schemes import parse_scheme, scheme_tag

LOCAL_RUNTIMES = ("llamacpp", "scripted")
"""Of text models."""
DETECTOR_RUNTIME = "onnx"
"""Of detectors; no flag of a text sweep names it."""
SERVER_RUNTIMES = ("ollama", "openai")
"""These already hold the model, under tags of their own, and take an address."""
RUNTIMES = LOCAL_RUNTIMES + SERVER_RUNTIMES
_ANY_TAG_RUNTIMES = ("scripted", *SERVER_RUNTIMES)


def canonical_tag(tag: str, runtime: str, path: str) -> tuple[str, Problem | None]:
    """Return a tag in its usual spelling (`q4-k-m` becomes `Q4_K_M`), and a problem where the runtime could not build it.

    A server may name its variants freely, so there an unknown tag is kept as written. Whether a recipe of that tag exists is
    the quantizer's to say.
    """
    if runtime == DETECTOR_RUNTIME:
        try:
            return scheme_tag(parse_scheme(tag, path)), None
        except SpecError as error:
            return tag, error.problems[0]
    if runtime in LOCAL_RUNTIMES and (recipe := find_recipe_tag(tag)) is not None:
        return recipe, None
    try:
        return find_scheme(tag, path).tag, None
    except SpecError as error:
        return (tag, None) if runtime in _ANY_TAG_RUNTIMES else (tag, error.problems[0])
