from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewbits.core.errors import BackendError, PrerequisiteError, StoreError
from fewbits.core.process import CommandResult
from fewbits.quantizers import packaged_files, packages
from fewbits.quantizers.llamacpp import models
from fewbits.quantizers.llamacpp.models import PACKAGED_MODELS, fetch_model
from fewbits.quantizers.packaged_files import PackagePart, cached_path
from fewbits.store.artifacts import ArtifactCache

PIECES = {"toy-part1": b"GGUF first ", "toy-part2": b"second"}
TOY = models.PackagedModel(
    name="toy",
    file_name="toy.gguf",
    parts=models._numbered("toy==1.0", 2),
    sha256=hashlib.sha256(b"".join(PIECES.values())).hexdigest(),
    bytes=17,
    weights=1,
    scheme="Q4_0",
    licence="MIT",
    about="two pieces",
)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Offer the toy model's wheels in place of the package index; returns the requirements that were asked for."""
    asked: list[str] = []

    def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
        asked.append(requirement)
        name = requirement.split("==", maxsplit=1)[0]
        wheel = folder / f"{name}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"toy/data/part0{name[-1]}.bin", PIECES[name])
            archive.writestr("toy/data/part12.bin.txt", b"something else")
        return wheel

    monkeypatch.setattr(packaged_files, "download", download)
    monkeypatch.setitem(PACKAGED_MODELS, "toy", TOY)
    return asked


def test_parts_are_joined_checked_and_kept(cache: ArtifactCache, offered: list[str]) -> None:
    path = fetch_model("toy", cache, print, environ={})
    assert path == cached_path(cache, TOY)
    assert path.read_bytes() == b"GGUF first second"
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.gguf"]
    assert fetch_model("toy", cache, pytest.fail, environ={}) == path
    assert offered == ["toy-part1==1.0", "toy-part2==1.0"]


def test_a_damaged_file_is_fetched_again(cache: ArtifactCache, offered: list[str]) -> None:
    path = fetch_model("toy", cache, print, environ={})
    path.write_bytes(b"GGUF first sec0nd")
    assert fetch_model("toy", cache, print, environ={}).read_bytes() == b"GGUF first second"
    assert len(offered) == 4


def test_wrong_bytes_are_not_kept(cache: ArtifactCache, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED_MODELS, "toy", dataclasses.replace(TOY, sha256="0" * 64))
    with pytest.raises(StoreError, match="nothing was kept"):
        fetch_model("toy", cache, print, environ={})
    assert list((cache.root / "models" / "toy").iterdir()) == []


def test_a_member_that_is_not_there(cache: ArtifactCache, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (PackagePart("toy-part1==1.0", "other.bin"),)
    monkeypatch.setitem(PACKAGED_MODELS, "toy", dataclasses.replace(TOY, parts=parts))
    with pytest.raises(StoreError, match="holds 0 files"):
        fetch_model("toy", cache, print, environ={})


def test_leftovers_of_a_killed_fetch_are_removed(cache: ArtifactCache, offered: list[str]) -> None:
    leftover = cached_path(cache, TOY).parent / ".fetch-dead"
    leftover.mkdir(parents=True)
    (leftover / "toy.gguf").write_bytes(b"half")
    fetch_model("toy", cache, print, environ={})
    assert not leftover.exists()


def test_two_at_once_fetch_once(cache: ArtifactCache, offered: list[str]) -> None:
    threads = [threading.Thread(target=fetch_model, args=("toy", cache, print), kwargs={"environ": {}}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(offered) == 2


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_models_without_a_licence_are_opt_in(cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def download(requirement: str, folder: Path, options: Sequence[str] = ()) -> Path:
        raise PrerequisiteError("asked", requirement)

    monkeypatch.setattr(packaged_files, "download", download)
    with pytest.raises(PrerequisiteError, match="no licence file"):
        fetch_model(name, cache, print, environ={"FEWBITS_ACCEPT_UNLICENSED_MODELS": "0"})
    with pytest.raises(PrerequisiteError, match=r"asked.*part1=="):
        fetch_model(name, cache, print, environ={"FEWBITS_ACCEPT_UNLICENSED_MODELS": "1"})
    with pytest.raises(PrerequisiteError, match=r"asked.*part1=="):
        fetch_model(name, cache, print, environ={}, accept_unlicensed=True)


def test_no_room_is_said_before_fetching(cache: ArtifactCache, offered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(StoreError, match=r"not enough disk space to fetch toy.*missing"):
        fetch_model("toy", cache, print, environ={})
    assert offered == []


def answer(monkeypatch: pytest.MonkeyPatch, stderr: str, returncode: int = 1) -> list[tuple[str, ...]]:
    commands: list[tuple[str, ...]] = []

    def run(words: Sequence[str], **_: object) -> CommandResult:
        commands.append(tuple(words))
        return CommandResult(tuple(words), returncode, "", stderr, timed_out=False)

    monkeypatch.setattr(packages, "run_command", run)
    return commands


@pytest.mark.parametrize(
    ("stderr", "error", "said"),
    [
        ("/venv/bin/python: No module named pip", PrerequisiteError, "has no pip"),
        (
            "WARNING: Retrying ... NewConnectionError(...)\nERROR: No matching distribution found",
            PrerequisiteError,
            "did not answer",
        ),
        ("ERROR: No matching distribution found for x==1", PrerequisiteError, "does not offer x==1"),
        ("OSError: [Errno 28] No space left on device", StoreError, "disk is full"),
        ("Traceback: surprise", BackendError, "surprise"),
    ],
)
def test_pip_s_failures_become_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, error: type[Exception], said: str
) -> None:
    answer(monkeypatch, stderr)
    with pytest.raises(error, match=said):
        packages.download("x==1", tmp_path)


def test_the_download_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = answer(monkeypatch, "", returncode=0)
    (tmp_path / "x-1.whl").write_bytes(b"")
    assert packages.download("x==1", tmp_path, ("--only-binary", ":all:")) == tmp_path / "x-1.whl"
    (words,) = commands
    assert words[1:5] == ("-m", "pip", "download", "--no-deps")
    assert words[-5:] == ("--only-binary", ":all:", "--dest", str(tmp_path), "x==1")


@pytest.fixture(params=["as it is", "as before 3.11.4"])
def unpacking_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack with and without Python's own filter: Debian 12's Python has none."""
    if request.param != "as it is":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)


@pytest.mark.usefixtures("unpacking_python")
def test_source_archives_are_unpacked_whole(tmp_path: Path) -> None:
    tree = tmp_path / "source"
    (tree / "tools").mkdir(parents=True)
    (tree / "tools" / "run.sh").write_text("#!/bin/sh\n")
    (tree / "tools" / "run.sh").chmod(0o755)
    (tree / "link.sh").symlink_to("tools/run.sh")
    archive = tmp_path / "good.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", archive, "source"], check=True)
    packages.unpack_sdist(archive, tmp_path / "inside")
    script = tmp_path / "inside" / "source" / "link.sh"
    assert script.read_text() == "#!/bin/sh\n"
    assert os.access(script, os.X_OK)


@pytest.mark.usefixtures("unpacking_python")
def test_source_archives_cannot_write_outside(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../evil"))
    inside = tmp_path / "a" / "inside"
    inside.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot unpack"):
        packages.unpack_sdist(archive, inside)
    assert not (tmp_path / "evil").exists()


@pytest.mark.usefixtures("unpacking_python")
def test_absolute_names_in_source_archives_land_inside(tmp_path: Path) -> None:
    archive = tmp_path / "absolute.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("/fewbits-test/absolute"))
    packages.unpack_sdist(archive, tmp_path / "inside")
    assert (tmp_path / "inside" / "fewbits-test" / "absolute").exists()


@pytest.mark.usefixtures("unpacking_python")
@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_source_archives_cannot_link_outside(tmp_path: Path, target: str) -> None:
    archive = tmp_path / "evil.tar.gz"
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, target
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(link)
    with pytest.raises(StoreError, match="cannot unpack"):
        packages.unpack_sdist(archive, tmp_path / "inside")
