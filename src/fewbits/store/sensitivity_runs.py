"""A sensitivity run's folder: one run, its manifest and what is drawn from it.

<folder>/<scheme>_quant_manifest.json       the truth: everything else is made from it
<folder>/composed-config.yaml               the configuration of the run, as composed
<folder>/layer-sensitivity-*                reports
<folder>/superseded/<n>/                    earlier runs that were overwritten on purpose
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.codec import decode, encode_pretty, storable
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write, safe_name, storage_error
from fewbits.records.sensitivity import SENSITIVITY_MANIFEST_SCHEMA, RunStatus, SensitivityManifest
from fewbits.spec.sensitivity_layout import manifest_name
from fewbits.store.folders import SUPERSEDED, hold_folder, set_aside
from fewbits.store.summaries import declared_version, read_bounded

MANIFEST_SUFFIX = "_quant_manifest.json"
CONFIG_NAME = "composed-config.yaml"
REPORT_STEM = "layer-sensitivity-"
"""What the names of a run's reports and pictures begin with."""
_HINT = "give the folder of a sensitivity run, or its manifest"


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """A manifest, where it lies, and the digest of its bytes."""

    manifest: SensitivityManifest
    path: Path
    sha256: str


def find_manifest(folder: Path, scheme: str | None = None) -> Path:
    """Return the manifest in `folder`: of `scheme`, or the only one.

    Raises `SpecError` for a folder without one, and for several without a `scheme`.
    """
    if scheme is not None:
        # looked up in the listing: a scheme is no path, whatever it holds
        path = next((path for path in _manifests(folder) if path.name == manifest_name(scheme)), None)
        if path is None:
            present = ", ".join(other.name.removesuffix(MANIFEST_SUFFIX) for other in _manifests(folder)) or "none"
            message = f"{folder} holds no manifest of the scheme {scheme!r} (schemes there: {storable(present)})"
            raise SpecError.single("scheme", message, _HINT)
        return path
    found = _manifests(folder)
    if not found:
        what = "does not exist" if not folder.exists() else "holds no " + "*" + MANIFEST_SUFFIX
        raise SpecError.single("manifest", f"{folder} {what}", _HINT)
    if len(found) > 1:
        names = ", ".join(path.name.removesuffix(MANIFEST_SUFFIX) for path in found)
        message = f"{folder} holds {len(found)} manifests (schemes: {storable(names)})"
        raise SpecError.single("scheme", message, "name the scheme, e.g. with --scheme")
    return found[0]


def find_manifests_below(roots: Sequence[Path]) -> list[Path]:
    """Return every manifest at or below `roots`, sorted, each once; earlier runs under `superseded/` are left out.

    A root may be a manifest itself. Raises `SpecError` naming every root that does not exist or holds none.
    """
    found: dict[Path, None] = {}
    problems = []
    for root in roots:
        below = _below(root)
        if not below:
            problems.append(str(root))
        found.update(dict.fromkeys(below))
    if problems:
        message = f"no *{MANIFEST_SUFFIX} in or below {storable(', '.join(problems))}"
        raise SpecError.single("DIR", message, "give folders of sensitivity runs")
    return list(found)


def _below(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name != SUPERSEDED)
        found += [Path(folder) / name for name in sorted(names) if name.endswith(MANIFEST_SUFFIX)]
    return found


def read_manifest(path: Path) -> LoadedManifest:
    """Read a manifest strictly, of a finished or of a failed run.

    Raises `SpecError` (no such file) and `StoreError` (truncated, no JSON object, another schema, another shape).
    """
    data = read_bounded(path, "manifest", _HINT)
    version = declared_version(data, path)
    family = SENSITIVITY_MANIFEST_SCHEMA.rpartition(".")[0]
    if version is None or not version.startswith(f"{family}."):
        said = "no schema_version" if version is None else f"schema_version {version!r}"
        msg = f"{path} is no sensitivity manifest of ours: it has {said}, {SENSITIVITY_MANIFEST_SCHEMA!r} is expected."
        raise StoreError(msg)
    if version != SENSITIVITY_MANIFEST_SCHEMA:
        msg = f"{path} was made by another version of fewbits: schema {version}; this one reads {SENSITIVITY_MANIFEST_SCHEMA}."
        raise StoreError(msg)
    try:
        manifest = decode(data, SensitivityManifest, str(path))
    except StoreError as error:
        why = f"no whole manifest of schema {SENSITIVITY_MANIFEST_SCHEMA}: it was edited, or made by another version"
        msg = f"{error}. This is {why}."
        raise StoreError(msg) from error
    return LoadedManifest(manifest, path, hashlib.sha256(data).hexdigest())


def read_finished_manifest(path: Path) -> LoadedManifest:
    """Read the manifest of a run that ended well. Raises as `read_manifest`, and `StoreError` for a failed run."""
    loaded = read_manifest(path)
    if loaded.manifest.status is not RunStatus.OK:
        msg = f"{path}: that run failed, so it has no scores: {storable(loaded.manifest.failure)}"
        raise StoreError(msg)
    return loaded


def refuse_finished_run(folder: Path, *, overwrite: bool) -> None:
    """Raise `StoreError` when `folder` holds a run that may not be replaced. A failed run may always be.

    A manifest that cannot be read counts as a run: nobody knows what it was.
    """
    if overwrite:
        return
    for path in _manifests(folder):
        if _is_finished(path):
            msg = (
                f"{folder} holds a finished run ({path.name}). Set runner.overwrite=true to move it to "
                f"{SUPERSEDED}/<n>/ and run again, or choose another folder."
            )
            raise StoreError(msg)


def _is_finished(path: Path) -> bool:
    try:
        return read_manifest(path).manifest.status is RunStatus.OK
    except (StoreError, SpecError):
        return True


def _manifests(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{MANIFEST_SUFFIX}") if path.is_file())


class SensitivityFolder:
    """The folder that one run writes to. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def claimed(self, *, overwrite: bool) -> Iterator[None]:
        """Hold the folder for one run. Raises `StoreError`: not writable, another run has it, or it holds a finished run.

        A claim dies with its process: what a killed run left is taken over.
        """
        refuse_finished_run(self.root, overwrite=overwrite)
        busy = (
            f"{self.root} is in use by another sensitivity run: two runs may not share a folder. Wait, or choose another folder."
        )
        with hold_folder(self.root, busy):
            refuse_finished_run(self.root, overwrite=overwrite)  # another run may have ended in between
            yield

    def file_of(self, manifest: SensitivityManifest) -> LoadedManifest:
        """Return a manifest as `write` will store it: its path and the digest of its bytes, for the reports made from it."""
        sha256 = hashlib.sha256(encode_pretty(manifest)).hexdigest()
        return LoadedManifest(manifest, self.root / manifest_name(manifest.scheme), sha256)

    def write(self, manifest: SensitivityManifest) -> LoadedManifest:
        """Replace whatever run is there by this manifest and its composed configuration; returns it as a reader will see it.

        A finished earlier run is moved to `superseded/<n>/`; a failed one is replaced. Reports are not written: they can always
        be made again from the manifest. Call it inside `claimed`. Raises `StoreError`.
        """
        self._make_room()
        path, data = self.root / manifest_name(manifest.scheme), encode_pretty(manifest)
        atomic_write(path, data)
        write_documents(self.root, {CONFIG_NAME: str(manifest.run_config.get("composed_yaml", ""))})
        # read back, so that a report made now has the very bytes of one that is made later (order of keys included)
        return LoadedManifest(decode(data, SensitivityManifest, str(path)), path, hashlib.sha256(data).hexdigest())

    def _make_room(self) -> None:
        """Move a finished run away, delete what a failed one left. What is not ours stays."""
        present = _manifests(self.root)
        reports = sorted(path for path in self.root.glob(f"{REPORT_STEM}*") if path.is_file())
        earlier = [*present, self.root / CONFIG_NAME, *reports]
        if any(_is_finished(path) for path in present):
            set_aside(self.root, earlier)
            return
        for path in earlier:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error) from error


def write_documents(folder: Path, documents: Mapping[str, str]) -> list[Path]:
    """Write texts under their names, each atomically; returns the paths. Raises `StoreError`, `ValueError` for an unsafe name."""
    written = []
    for name, text in documents.items():
        if safe_name(name) != name:
            msg = f"{name!r} is no file name of ours"
            raise ValueError(msg)
        atomic_write(folder / name, text.encode())
        written.append(folder / name)
    return written
