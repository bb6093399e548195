"""Which quantizer makes variants for which runtime; looked up by name, imported on use."""

from __future__ import annotations

from collections.abc import Mapping

from fewbits.core.errors import SpecError
from fewbits.quantizers.base import ArtifactStore
from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
from fewbits.quantizers.llamacpp.recipe_build import RecipeSource

QUANTIZER_FOR_RUNTIME: dict[str, str] = {"llamacpp": "llamacpp"}
"""Runtime -> the quantizer whose artifacts it runs. Runtimes whose server holds the models have none."""


def create_quantizer(
    runtime_name: str,
    cache: ArtifactStore,
    *,
    threads: int | None = None,
    accept_unlicensed: bool = False,
    environ: Mapping[str, str] | None = None,
    recipes: RecipeSource | None = None,
) -> LlamaCppQuantizer:
    """Return the quantizer for a runtime; `recipes` knows what `recipe-...` tags stand for.

    Raises `SpecError` for a runtime that builds no variants.
    """
    if QUANTIZER_FOR_RUNTIME.get(runtime_name) == "llamacpp":
        return LlamaCppQuantizer(cache, threads=threads, accept_unlicensed=accept_unlicensed, environ=environ, recipes=recipes)
    known = ", ".join(QUANTIZER_FOR_RUNTIME)
    raise SpecError.single(f"runtime {runtime_name!r}", "builds no variants", f"runtimes that do: {known}")
