"""Per-layer sensitivity: one run with its manifest and reports, the reports again, and several runs in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fewbits.analysis.sensitivity import rollup
from fewbits.core.codec import encode_pretty, storable
from fewbits.core.errors import FewbitsError, SpecError, StoreError
from fewbits.core.files import atomic_write
from fewbits.records.sensitivity import SensitivityManifest, SensitivityRollup, SensitivitySpec
from fewbits.report.sensitivity import render_sensitivity_documents
from fewbits.report.sensitivity_rollup import render_rollup_markdown
from fewbits.sensitivity.lm_run import RunRecorder
from fewbits.store.sensitivity_runs import (
    LoadedManifest,
    SensitivityFolder,
    find_manifest,
    find_manifests_below,
    read_finished_manifest,
    read_manifest,
    write_documents,
)

ROLLUP_NAME = "sensitivity-rollup.json"


def run_sensitivity(
    spec: SensitivitySpec, directory: Path, composed_yaml: str, progress: Callable[[str], None]
) -> SensitivityManifest:
    """Score a model and leave manifest, reports, pictures and the composed configuration in `directory`; returns the manifest.

    Only one run at a time may have the folder, and a finished one is kept unless `output_layout.overwrite`. A run that fails or
    is interrupted leaves a manifest with status FAILED and the message, and the error is raised again: `SpecError` (a format that
    the device cannot run, an unreadable model), `PrerequisiteError`, `BackendError`, `StoreError`, or whatever else ended it.
    """
    folder = SensitivityFolder(directory)
    with folder.claimed(overwrite=spec.output_layout.overwrite):
        recorder = RunRecorder(spec, composed_yaml)
        try:
            manifest = recorder.measure(progress)
        except BaseException as error:
            _record_failure(folder, recorder.failed(error), progress)
            raise
        written = folder.write(manifest)
        write_documents(directory, _documents(written))
    return manifest


def _record_failure(folder: SensitivityFolder, manifest: SensitivityManifest, progress: Callable[[str], None]) -> None:
    """Write the manifest of a failed run; where even that fails, say so instead of hiding the first error."""
    try:
        folder.write(manifest)
    except FewbitsError as error:
        progress(f"the failure could not be recorded: {error}")


def regenerate_reports(directory: Path, scheme: str | None) -> list[Path]:
    """Write a run's reports again from its manifest alone; returns their paths. The same manifest gives the same bytes.

    `scheme` names the run where `directory` holds several; `directory` may be the manifest itself. Nothing else is read or
    changed. Raises `SpecError` (no manifest, or several and no `scheme`) and `StoreError` (damaged, of another version, or of a
    run that failed).
    """
    path = directory if scheme is None and directory.is_file() else find_manifest(directory, scheme)
    return write_documents(path.parent, _documents(read_finished_manifest(path)))


def _documents(loaded: LoadedManifest) -> dict[str, str]:
    return render_sensitivity_documents(loaded.manifest, loaded.path.name, loaded.sha256)


def rollup_runs(roots: Sequence[Path], out: Path) -> tuple[SensitivityRollup, list[Path]]:
    """Put every run at or below `roots` into one table, in `out` (JSON) and beside it as Markdown; returns it and both paths.

    Failed runs and manifests that cannot be read are part of it, with their reasons. Raises `SpecError` for a root without a
    manifest, and `StoreError` where none could be read.
    """
    if out.suffix == ".md":
        raise SpecError.single("--out", f"{out} would be overwritten by the Markdown beside it", "name a .json file")
    manifests: dict[str, SensitivityManifest] = {}
    skipped: dict[str, str] = {}
    for path in find_manifests_below(roots):
        name = storable(str(path))
        try:
            manifests[name] = read_manifest(path).manifest
        except (StoreError, SpecError) as error:
            skipped[name] = storable(str(error))
    if not manifests:
        msg = "no manifest could be read:\n" + "\n".join(f"  - {reason}" for reason in skipped.values())
        raise StoreError(msg)
    found = rollup(manifests, skipped)
    beside = out.with_suffix(".md")
    atomic_write(out, encode_pretty(found))
    atomic_write(beside, render_rollup_markdown(found).encode())
    return found, [out, beside]
