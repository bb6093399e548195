"""The `brevitas` quantizer: a YOLOv10 checkpoint and a scheme in, an ONNX file out, through the artifact cache.

Two steps, each cached under the digest of everything that goes into it: the export (calibrated, fitted, compared with torch), and
the cleaned graph that is measured. Every file says in its own metadata how it was made and how its output is to be read.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from fewbits.core.codec import decode, digest, encode_canonical, to_builtins
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.units import format_bytes
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.brevitas.build import ChooseBits, DetectorLab, DetectorSource, build_float
from fewbits.quantizers.brevitas.calibration import load_images
from fewbits.quantizers.brevitas.checkpoint import DetectorCheckpoint, read_checkpoint
from fewbits.quantizers.brevitas.export import INPUT_NAME, OPSET, export_detector
from fewbits.quantizers.brevitas.export_check import check_constants, output_gap
from fewbits.quantizers.brevitas.layer_reports import layer_reports
from fewbits.quantizers.brevitas.layers import require_brevitas
from fewbits.quantizers.brevitas.tuning import TuningSettings
from fewbits.quantizers.brevitas.weights import PACKAGED_DETECTORS, packaged_detector, resolve_weights
from fewbits.quantizers.brevitas.yolov10 import Head, build_yolov10
from fewbits.quantizers.onnx.agreement import open_session, run_all
from fewbits.quantizers.onnx.census import census_of
from fewbits.quantizers.onnx.cleanup import PASSES, clean_up
from fewbits.quantizers.onnx.graph import metadata, read_graph, set_metadata, write_graph
from fewbits.quantizers.packaged_files import find_fetched
from fewbits.records.detector_quant import Calibration, Recipe
from fewbits.records.detector_run import BuildReport, LayerReport
from fewbits.records.onnx_graph import BUILD_KEY, HEAD_KEY, NAMES_KEY, SCORES_KEY, QuantCensus
from fewbits.records.variant import Artifact, ModelKind, ModelSource, TensorTypeCount, Variant
from fewbits.spec.detector_schemes import parse_scheme, scheme_tag

METHOD_REVISION = 3
"""Raised whenever the same recipe would give another model or another build report: what the cache holds is then made again."""
CHECKED_IMAGES = 2
"""Real images that exports and clean-ups are compared on."""
_TOOLS = ("brevitas", "torch", "onnx", "onnxruntime", "onnxoptimizer")
_DISK_MARGIN = 1.1
_SHRINK = 3
"""A quantized graph holds one head of two, in INT8, with scales: about a third of the checkpoint or less."""


@dataclass(frozen=True, slots=True)
class DetectorBuild:
    """What all variants of a sweep share."""

    head: Head
    image_size: int
    calibration: Calibration | None
    """`None` where only the float model is made."""
    calibration_paths: tuple[Path, ...]
    checked_paths: tuple[Path, ...]
    """Real images for comparisons; at least one."""


class BrevitasQuantizer:
    """Makes detectors. Torch and Brevitas are loaded when something must be made, not for what the cache holds."""

    def __init__(
        self, cache: ArtifactStore, build: DetectorBuild, choose_bits: ChooseBits, environ: Mapping[str, str] | None = None
    ) -> None:
        self._cache, self._build, self._choose_bits, self._environ = cache, build, choose_bits, environ
        self._labs: dict[str, DetectorLab] = {}
        self._checkpoints: dict[Path, DetectorCheckpoint] = {}

    def locate(self, model_id: str) -> ModelSource:
        """Find a checkpoint by path or packaged name, fetching nothing and running none of its code.

        Raises `SpecError` (missing, no YOLOv10, hostile), `PrerequisiteError` (its licence was not accepted, no torch).
        """
        detector = packaged_detector(model_id)
        if detector is not None and find_fetched(self._cache, detector, self._cache.compute_digest) is None:
            return ModelSource(model_id=model_id, kind=ModelKind.PACKAGED, digest=detector.sha256, bytes=detector.bytes)
        return self._resolve(model_id, _silent)

    def known(self, source: ModelSource) -> DetectorCheckpoint | None:
        """Return what a located checkpoint holds, once it is clear that it can be built: this head, this image size.

        `None` where it is a packaged one that was not fetched. Raises `SpecError` as `build_yolov10`.
        """
        if source.path is None:
            return None
        checkpoint = self._checkpoint(Path(source.path))
        build_yolov10(checkpoint, self._build.head, self._build.image_size)
        return checkpoint

    def fetch(self, source: ModelSource, progress: Progress) -> ModelSource:
        """Return a source whose file is here. Raises `PrerequisiteError` (licence, offline), and what `ensure` raises."""
        return source if source.path is not None else self._resolve(source.model_id, progress)

    def require_room(self, source: ModelSource, schemes: Sequence[str]) -> None:
        """Raise `StoreError` where the disk cannot hold all that the cache lacks of these schemes; nothing is made."""
        missing = [tag for tag in schemes if self._cache.find(self._export_key(source, parse_scheme(tag)), _silent) is None]
        if missing:
            self._require_room(source, missing)

    def check(self, source: ModelSource, scheme: str) -> None:  # noqa: ARG002 - every YOLOv10 takes every scheme
        """Raise `SpecError` for an unknown scheme, and for one that needs calibration where there is none."""
        if parse_scheme(scheme) is not None and self._build.calibration is None:
            hint = "give a list of images, or let the sweep draw some from the train split"
            raise SpecError.single(scheme, "cannot be made without calibration images", hint)

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate a variant's file size, roughly: the checkpoint's size, a third of it where weights are integers."""
        whole = source.bytes or PACKAGED_DETECTORS["yolov10n"].bytes
        return whole if parse_scheme(scheme) is None else whole // _SHRINK

    def ensure(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the cleaned graph of a variant, making what the cache lacks.

        Raises `SpecError`, `PrerequisiteError`, `StoreError` (disk), `BackendError` (export, clean-up or comparison failed).
        """
        return self.clean(source, self.export(source, scheme, progress), progress)

    def export(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the graph as exported: calibrated and fitted, compared with torch on real images. Raises as `ensure`."""
        self.check(source, scheme)
        recipe = parse_scheme(scheme)
        if source.path is None:
            source = self._resolve(source.model_id, progress)
        path = Path(str(source.path))

        def make(output: Path) -> Artifact:
            self._require_room(source, (scheme,))
            progress(f"making {scheme} of {source.model_id}")
            self._export(self._checkpoint(path), recipe, output, progress)
            return self._artifact(source, recipe, output)

        key = self._export_key(source, recipe)
        made = self._cache.get_or_make(key, f"{scheme_tag(recipe)}-export.onnx", make, progress)
        return _renamed(made, source.model_id)

    def _export_key(self, source: ModelSource, recipe: Recipe | None) -> str:
        """Return the cache key of an export: everything that shapes the file."""
        images = self._build.calibration.images if recipe is not None and self._build.calibration is not None else ()
        return digest(
            {
                "schema": "fewbits.detector_export.v1",
                "method": METHOD_REVISION,
                "source_sha256": source.digest,
                "recipe": recipe,
                "head": self._build.head,
                "image_size": self._build.image_size,
                "calibration": [image.sha256 for image in images],
                "tools": tool_versions(),
                **({"training": TuningSettings()} if recipe is not None and recipe.tuned else {}),
            }
        )

    def clean(self, source: ModelSource, exported: Variant, progress: Progress) -> Variant:
        """Return the cleaned graph of an exported one. Raises `BackendError` when it would lose or change quantization."""
        key = digest(
            {
                "schema": "fewbits.detector_cleanup.v1",
                "export_sha256": exported.artifact.sha256,
                "passes": list(PASSES),
                "tools": tool_versions(),
            }
        )

        def make(output: Path) -> Artifact:
            scheme = exported.artifact.scheme
            progress(f"cleaning the graph of {scheme}")
            clean_up(_path_of(exported), output, self.checked_inputs)
            return self._artifact(source, parse_scheme(scheme), output)

        made = self._cache.get_or_make(key, f"{exported.artifact.scheme}.onnx", make, progress)
        return _renamed(made, source.model_id)

    @cached_property
    def checked_inputs(self) -> list[dict[str, Any]]:
        """Real images as the graph takes them: `[{"images": float32[1, 3, size, size]}, ...]`."""
        images = load_images(self._build.checked_paths[:CHECKED_IMAGES], self._build.image_size)
        return [{INPUT_NAME: image[None].numpy()} for image in images]

    def _resolve(self, model_id: str, progress: Progress) -> ModelSource:
        path = resolve_weights(model_id, self._cache, progress, environ=self._environ)
        checkpoint = self._checkpoint(path)
        return ModelSource(
            model_id=model_id, kind=ModelKind.CHECKPOINT, path=str(path), digest=checkpoint.sha256, bytes=checkpoint.bytes
        )

    def _checkpoint(self, path: Path) -> DetectorCheckpoint:
        if path not in self._checkpoints:
            self._checkpoints[path] = read_checkpoint(path)
        return self._checkpoints[path]

    def _export(self, checkpoint: DetectorCheckpoint, recipe: Recipe | None, output: Path, progress: Progress) -> None:
        """Make one variant in torch, write it, run it, and write down how it was made."""
        require_brevitas()
        source = DetectorSource(checkpoint, self._build.head, self._build.image_size)
        layers: tuple[LayerReport, ...] = ()
        training = None
        if recipe is None:
            model = build_float(source)
        else:
            lab = self._lab(source)
            built = lab.build(recipe, progress)
            model, training = built.model, built.training
            layers = layer_reports(built, lab.images[:CHECKED_IMAGES])
        progress("exporting")
        export_detector(model, output, self._build.image_size, quantized=recipe is not None)
        graph = read_graph(output)
        check_constants(model, [layer.name for layer in layers], graph)
        found = run_all(open_session(output, 1), self.checked_inputs)
        report = BuildReport(
            recipe=recipe,
            head=self._build.head.value,
            image_size=self._build.image_size,
            source_sha256=checkpoint.sha256,
            calibration=self._build.calibration if recipe is not None else None,
            layers=layers,
            runtime_gap=output_gap(model, self.checked_inputs, found),
            training=to_builtins(training) if training is not None else None,
            tools=tool_versions(),
        )
        entries = {HEAD_KEY: report.head, SCORES_KEY: "probabilities", BUILD_KEY: encode_canonical(report).decode()}
        if checkpoint.names is not None:
            entries[NAMES_KEY] = encode_canonical(list(checkpoint.names)).decode()
        set_metadata(graph, entries)
        write_graph(graph, output)

    def _lab(self, source: DetectorSource) -> DetectorLab:
        """Return the lab of one checkpoint: what its variants share is computed once."""
        key = source.checkpoint.sha256
        if key not in self._labs:
            images = load_images(self._build.calibration_paths, self._build.image_size)
            self._labs[key] = DetectorLab(source, images, self._choose_bits)
        return self._labs[key]

    def _artifact(self, source: ModelSource, recipe: Recipe | None, output: Path) -> Artifact:
        census = census_of(read_graph(output), output.stat().st_size)
        return Artifact(
            model_id=source.model_id,
            scheme=scheme_tag(recipe),
            sha256=None,
            bytes=None,
            weights=census.weights,
            bits_per_weight=census.level_bits_per_weight,
            census=_type_counts(census),
            source_sha256=source.digest,
            source_scheme="FLOAT",
            recipe=(f"fewbits detect sweep --weights {{source}} --schemes {scheme_tag(recipe)}",),
            tool="brevitas",
            tool_version=tool_versions()["brevitas"],
            architecture="yolov10",
            parameters={"head": self._build.head.value, "image_size": self._build.image_size, "opset": OPSET},
        )

    def _require_room(self, source: ModelSource, schemes: Sequence[str]) -> None:
        """Each scheme leaves two files: as exported, and cleaned."""
        needed = round(sum(2 * self.estimate_bytes(source, scheme) * _DISK_MARGIN for scheme in schemes))
        free = self._cache.free_bytes()
        if free < needed:
            what = f"{', '.join(schemes)} of {source.model_id}"
            msg = (
                f"not enough disk space to make {what}: about {format_bytes(needed)} needed in "
                f"{self._cache.root}, {format_bytes(free)} free. Free some space or set FEWBITS_CACHE to another folder."
            )
            raise StoreError(msg)


def build_report(path: Path) -> BuildReport:
    """Return how a file of ours was made. Raises `SpecError` for files that do not say it, `StoreError` for damaged text."""
    text = metadata(read_graph(path)).get(BUILD_KEY)
    if text is None:
        raise SpecError.single(str(path), "does not say how it was made", "only files that fewbits exported do")
    return decode(text.encode(), BuildReport, f"{path.name}: metadata {BUILD_KEY}")


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a graph. Raises `PrerequisiteError` where the extra is missing."""
    require_brevitas()
    return {name: importlib.metadata.version(name) for name in _TOOLS}


def _type_counts(census: QuantCensus) -> tuple[TensorTypeCount, ...]:
    """Group weight tensors by storage and levels; a tensor that two nodes share counts once."""
    unique = {tensor.name: tensor for tensor in census.weight_tensors}.values()
    kinds = sorted({(tensor.storage, tensor.level_bits, tensor.storage_bits) for tensor in unique})
    counts = []
    for storage, levels, bits in kinds:
        of_kind = [tensor.weights for tensor in unique if (tensor.storage, tensor.level_bits) == (storage, levels)]
        name = storage if levels == bits else f"{storage}, {levels}-bit levels"
        counts.append(TensorTypeCount(ggml_type=name, tensors=len(of_kind), weights=sum(of_kind), bytes=sum(of_kind) * bits // 8))
    return tuple(counts)


def _renamed(variant: Variant, model_id: str) -> Variant:
    """Return the variant under the name that this caller uses for the model."""
    return Variant(artifact=msgspec.structs.replace(variant.artifact, model_id=model_id), path=variant.path)


def _path_of(variant: Variant) -> Path:
    if variant.path is None:
        msg = f"{variant.artifact.scheme} of {variant.artifact.model_id} has no file"
        raise StoreError(msg)
    return variant.path


def _silent(_: str) -> None:
    """Progress for callers that do not want any."""
