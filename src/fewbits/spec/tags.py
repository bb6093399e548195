"""Quant tags in one spelling, so that duplicates are seen and the nearest known tag can be named."""

from __future__ import annotations

from collections.abc import Callable

from fewbits.core.errors import Problem, SpecError
from fewbits.records.schemes import find_recipe_tag, find_scheme
from fewbits.spec.detector_schemes import parse_scheme, scheme_tag
from fewbits.spec.extraction_engines import parse_engine

LOCAL_RUNTIMES = ("llamacpp", "scripted")
"""Of text models."""
DETECTOR_RUNTIME = "onnx"
EXTRACTION_RUNTIME = "extraction"
OWN_RUNTIMES = {
    DETECTOR_RUNTIME: "detectors on labelled images: fewbits detect sweep",
    EXTRACTION_RUNTIME: "lab reports to JSON: fewbits extract bench",
}
"""Runtimes of other kinds of work, and the command that uses them; no flag of a text sweep names them."""
SERVER_RUNTIMES = ("ollama", "openai")
"""These already hold the model, under tags of their own, and take an address."""
RUNTIMES = LOCAL_RUNTIMES + SERVER_RUNTIMES
_ANY_TAG_RUNTIMES = ("scripted", *SERVER_RUNTIMES)


_OWN_TAGS: dict[str, Callable[[str, str], str]] = {
    DETECTOR_RUNTIME: lambda tag, path: scheme_tag(parse_scheme(tag, path)),
    EXTRACTION_RUNTIME: lambda tag, path: parse_engine(tag, path).tag,
}


def canonical_tag(tag: str, runtime: str, path: str) -> tuple[str, Problem | None]:
    """Return a tag in its usual spelling (`q4-k-m` becomes `Q4_K_M`), and a problem where the runtime could not build it.

    A server may name its variants freely, so there an unknown tag is kept as written. Whether a recipe of that tag exists is
    the quantizer's to say.
    """
    if runtime in _OWN_TAGS:
        try:
            return _OWN_TAGS[runtime](tag, path), None
        except SpecError as error:
            return tag, error.problems[0]
    if runtime in LOCAL_RUNTIMES and (recipe := find_recipe_tag(tag)) is not None:
        return recipe, None
    try:
        return find_scheme(tag, path).tag, None
    except SpecError as error:
        return (tag, None) if runtime in _ANY_TAG_RUNTIMES else (tag, error.problems[0])
