"""The OCR quantizer: a scheme in, an archive of three networks out, through the artifact cache."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fewbits.core.codec import decode, digest, encode_canonical, encode_pretty
from fewbits.core.errors import BackendError, ExitCode, PrerequisiteError, SpecError
from fewbits.core.process import run_command
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.ocr.archive import DETECTION, MANIFEST, ORIENTATION, RECOGNITION, write_ocr_archive
from fewbits.quantizers.ocr.models import ARCHITECTURE, MODEL_ID, OcrFiles, packaged_files
from fewbits.quantizers.ocr.precision import NetworkPrecision
from fewbits.quantizers.ocr.worker import PRECISION, EnginePrecision, OcrBuildJob
from fewbits.records.base import Record
from fewbits.records.variant import Artifact, ModelKind, ModelSource, Sha256, TensorTypeCount, Variant
from fewbits.spec.ocr_schemes import OcrMethod, OcrScheme, ocr_scheme_tag, parse_ocr_scheme

METHOD_REVISION = 1
"""Raised whenever the same scheme would give other networks: what the cache holds is then made again."""
ARCHIVE_NAME = "ocr.zip"
BUILD_TIMEOUT_SECONDS = 3600.0
"""A build takes a minute or two on two cores; this only ends what hangs."""
_WORKER = "fewbits.quantizers.ocr.worker"
_TOOLS = ("onnx", "onnxruntime", "rapidocr")
_INT8_SHARE = 0.35
"""Of the float bytes: a quarter for the weights, the rest for scales, the classifier and the alphabet."""


class OcrManifest(Record, frozen=True, kw_only=True):
    """What an archive says about itself."""

    schema_version: str = "fewbits.ocr_engine.v1"
    scheme: str
    method_revision: int
    sources: dict[str, Sha256]
    """The float networks, by member name."""
    calibration_digest: Sha256 | None
    """`None` where no activation range was fixed beforehand."""
    precision: EnginePrecision
    tools: dict[str, str]


class OcrQuantizer:
    """Makes OCR engines. `pages` are picture files for static schemes, apart from whatever the variants are judged on."""

    def __init__(self, cache: ArtifactStore, pages: Sequence[Path] = (), *, threads: int = 1) -> None:
        self._cache, self._pages, self._threads = cache, tuple(pages), threads

    def locate(self, model_id: str) -> ModelSource:
        """Find the networks of the installed wheel.

        Raises `SpecError` for another model, `PrerequisiteError` without rapidocr, `StoreError`.
        """
        if model_id != MODEL_ID:
            raise SpecError.single("model", f"{model_id!r} is no OCR engine", f"known: {MODEL_ID}")
        files = packaged_files()
        return ModelSource(
            model_id=model_id,
            kind=ModelKind.PACKAGED,
            path=str(files.detection.parent),
            digest=digest(self._source_digests(files)),
            bytes=sum(path.stat().st_size for path in files.all),
        )

    def check(self, source: ModelSource, scheme: str) -> None:  # noqa: ARG002 - one model, which takes every scheme
        """Raise `SpecError` for an unknown scheme, and for a static one without calibration pages."""
        parsed = parse_ocr_scheme(scheme)
        if _is_static(parsed) and not self._pages:
            raise SpecError.single(scheme, "cannot be made without calibration pages", "generate some of the calibration split")

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate the archive's size, roughly; one quantized network alone counts as both."""
        whole = source.bytes or 0
        return whole if parse_ocr_scheme(scheme) is None else round(whole * _INT8_SHARE)

    def ensure(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the archive of a scheme, making it where the cache lacks it.

        Raises `SpecError` (scheme, pages), `PrerequisiteError`, `BackendError` (the build failed), `StoreError`.
        """
        self.check(source, scheme)
        parsed = parse_ocr_scheme(scheme)
        tag = ocr_scheme_tag(parsed)
        files = packaged_files()
        manifest = {
            "schema": "fewbits.ocr_engine.v1",
            "method": METHOD_REVISION,
            "sources": self._source_digests(files),
            "scheme": tag,
            "calibration": self._calibration_digest(parsed),
            "tools": tool_versions(),
        }

        def make(output: Path) -> Artifact:
            progress(f"making {tag} of {source.model_id}")
            return self._make(source, parsed, files, output)

        return self._cache.get_or_make(digest(manifest), ARCHIVE_NAME, make, progress)

    def _make(self, source: ModelSource, scheme: OcrScheme | None, files: OcrFiles, output: Path) -> Artifact:
        tag = ocr_scheme_tag(scheme)
        with tempfile.TemporaryDirectory(prefix="fewbits-ocr-") as temporary:
            folder = Path(temporary)
            _run_worker(self._job(tag, scheme, files, folder))
            try:
                precision = decode((folder / PRECISION).read_bytes(), EnginePrecision, PRECISION)
                members = {name: (folder / name).read_bytes() for name in (DETECTION, RECOGNITION, ORIENTATION)}
            except OSError as error:
                raise BackendError("onnxruntime", f"the build of {tag} ended well but left no {error.filename}") from error
        manifest = OcrManifest(
            scheme=tag,
            method_revision=METHOD_REVISION,
            sources=self._source_digests(files),
            calibration_digest=self._calibration_digest(scheme),
            precision=precision,
            tools=tool_versions(),
        )
        write_ocr_archive(output, {MANIFEST: encode_pretty(manifest), **members})
        return _artifact(source, manifest, len(self._pages) if _is_static(scheme) else 0)

    def _job(self, tag: str, scheme: OcrScheme | None, files: OcrFiles, folder: Path) -> OcrBuildJob:
        return OcrBuildJob(
            scheme=tag,
            detection=str(files.detection),
            recognition=str(files.recognition),
            orientation=str(files.orientation),
            pages=tuple(str(page.absolute()) for page in self._pages) if _is_static(scheme) else (),
            folder=str(folder),
            threads=self._threads,
        )

    def _source_digests(self, files: OcrFiles) -> dict[str, str]:
        """Return the digest of each float network. Raises `StoreError`."""
        return dict(zip((DETECTION, RECOGNITION, ORIENTATION), map(self._cache.compute_digest, files.all), strict=True))

    def _calibration_digest(self, scheme: OcrScheme | None) -> str | None:
        """Return one digest for all pages, in whatever order: ranges do not depend on it. Raises `StoreError`."""
        return digest(sorted(map(self._cache.compute_digest, self._pages))) if _is_static(scheme) else None


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that shape the networks. Raises `PrerequisiteError` where one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in _TOOLS}
    except importlib.metadata.PackageNotFoundError as error:
        raise PrerequisiteError(
            f"{error.name} is not installed", "Install it with `pip install 'fewbits[extraction]'`."
        ) from error


def _is_static(scheme: OcrScheme | None) -> bool:
    return scheme is not None and scheme.method is OcrMethod.STATIC


def _run_worker(job: OcrBuildJob) -> None:
    words = (sys.executable, "-P", "-m", _WORKER, encode_canonical(job).decode())
    # the library goes through sets of names: a fixed seed makes the same file of the same inputs
    result = run_command(words, timeout_seconds=BUILD_TIMEOUT_SECONDS, env={**os.environ, "PYTHONHASHSEED": "0"})
    if result.timed_out:
        raise BackendError("onnxruntime", f"no {job.scheme} after {BUILD_TIMEOUT_SECONDS / 60:.0f} minutes", tail=result.tail)
    if result.returncode == ExitCode.FAILED_CHECK:
        raise SpecError.single(job.scheme, "cannot be made from these pages", result.tail)
    if not result.ok:
        raise BackendError(
            "onnxruntime", f"could not make {job.scheme} of an OCR engine", returncode=result.returncode, tail=result.tail
        )


def _artifact(source: ModelSource, manifest: OcrManifest, pages: int) -> Artifact:
    networks = list(manifest.precision.networks.values())
    weights = sum(network.weights for network in networks)
    return Artifact(
        model_id=source.model_id,
        scheme=manifest.scheme,
        sha256=None,
        bytes=None,
        weights=weights,
        bits_per_weight=sum(network.weights * network.bits_per_weight for network in networks) / weights,
        census=_merged(networks),
        source_sha256=source.digest,
        source_scheme="FLOAT",
        recipe=(
            f"OcrQuantizer(cache, pages).ensure({{source}}, {manifest.scheme!r}, progress)  # fewbits.quantizers.ocr.quantizer",
        ),
        tool="onnxruntime",
        tool_version=manifest.tools["onnxruntime"],
        architecture=ARCHITECTURE,
        parameters=_parameters(manifest, pages),
    )


def _parameters(manifest: OcrManifest, pages: int) -> dict[str, int | str]:
    found: dict[str, int | str] = {"calibration_pages": pages}
    if manifest.calibration_digest is not None:
        found["calibration_digest"] = manifest.calibration_digest
    for name, network in manifest.precision.networks.items():
        stem = name.removesuffix(".onnx")
        found[f"{stem}_integer_products"] = network.integer_products
        found[f"{stem}_float_products"] = network.float_products
    return found


def _merged(networks: Sequence[NetworkPrecision]) -> tuple[TensorTypeCount, ...]:
    rows: dict[str, TensorTypeCount] = {}
    for row in (row for network in networks for row in network.census):
        old = rows.get(row.ggml_type)
        rows[row.ggml_type] = row if old is None else _sum(old, row)
    return tuple(rows[name] for name in sorted(rows))


def _sum(one: TensorTypeCount, other: TensorTypeCount) -> TensorTypeCount:
    return TensorTypeCount(
        ggml_type=one.ggml_type,
        tensors=one.tensors + other.tensors,
        weights=one.weights + other.weights,
        bytes=one.bytes + other.bytes,
    )
