"""A run from its claim to its reports, with a quantizer that answers at once: what is recorded, what failures leave."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sensitivity_samples as samples
from fewbits.api.sensitivity import regenerate_reports, run_sensitivity
from fewbits.core.errors import BackendError, Problem, SpecError, StoreError
from fewbits.core.files import sha256_file
from fewbits.records.sensitivity import OutputSettings, RunStatus, SensitivityManifest, SensitivitySpec
from fewbits.sensitivity.lm_run import failure_words, git_state, loaded_versions, source_files
from fewbits.store.sensitivity_runs import find_manifest, read_manifest

MANIFEST = "wint8_aint8_autoquant_lm_quant_manifest.json"
FILES = {
    MANIFEST,
    "composed-config.yaml",
    "layer-sensitivity-report.md",
    "layer-sensitivity-report.json",
    "layer-sensitivity-depth.svg",
    "layer-sensitivity-ranking.svg",
    ".lock",
}


@dataclass
class Quantizer:
    """Stands in for ModelOpt: answers with the sample's groups, or fails as told."""

    inputs: tuple[Path, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    error: BaseException | None = None
    calls: int = 0

    def check_device(self, spec: SensitivitySpec) -> list[Problem]:
        return self.problems

    def run_autoquant(self, spec: SensitivitySpec, progress: Callable[[str], None]) -> Any:
        self.calls += 1
        progress("scoring")
        if self.error is not None:
            raise self.error
        sample = samples.sample_manifest(spec=spec)
        return types.SimpleNamespace(
            groups=sample.layer_sensitivity,
            excluded=sample.excluded,
            adjusted_effective_bits=8.745,
            selected_effective_bits=8.00625,
            selected_score=0.9,
            budget_satisfied=True,
            scored_samples=128,
            calibration_samples=128,
            padding_ratio=0.2,
            quantization=sample.quantization,
            timings_seconds={"load": 1.0, "calibrate_and_score": 2.0},
            peak_cuda_bytes=None,
            inputs=self.inputs,
            versions={"nvidia-modelopt": "0.47.0"},
            warnings=("the last batch was short",),
        )


@pytest.fixture
def quantizer(monkeypatch: pytest.MonkeyPatch) -> Quantizer:
    backend = Quantizer()
    module = types.ModuleType("fewbits.quantizers.modelopt.autoquant")
    module.check_device = backend.check_device  # type: ignore[attr-defined]
    module.run_autoquant = backend.run_autoquant  # type: ignore[attr-defined]
    package = types.ModuleType("fewbits.quantizers.modelopt")
    package.autoquant = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fewbits.quantizers.modelopt", package)
    monkeypatch.setitem(sys.modules, "fewbits.quantizers.modelopt.autoquant", module)
    return backend


def run(folder: Path, spec: SensitivitySpec | None = None) -> SensitivityManifest:
    return run_sensitivity(spec or samples.sample_spec(), folder, samples.COMPOSED, lambda _: None)


def test_a_run_leaves_everything_that_the_layout_names(tmp_path: Path, quantizer: Quantizer) -> None:
    manifest = run(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert read_manifest(tmp_path / "run" / MANIFEST).manifest == manifest
    assert manifest.status is RunStatus.OK
    assert (manifest.requested_effective_bits, manifest.adjusted_effective_bits) == (8.0, 8.745)


def test_the_manifest_says_what_it_took(tmp_path: Path, quantizer: Quantizer) -> None:
    manifest = run(tmp_path)
    assert manifest.versions["nvidia-modelopt"] == "0.47.0"
    assert {"fewbits", "python"} <= set(manifest.versions)
    assert manifest.hardware["fingerprint"].count("|") == 4
    assert set(manifest.git) == {"commit", "dirty"}
    assert manifest.timings_seconds["total"] > 0
    peak = manifest.peak_memory_bytes["rss"]
    assert peak is not None
    assert 10 * 2**20 < peak < 2**40
    assert manifest.peak_memory_bytes["cuda"] is None
    assert manifest.seeds == {"autoquant": 0}
    assert manifest.run_config == {"composed_yaml": samples.COMPOSED}
    assert manifest.warnings == ("the last batch was short",)


def test_reports_come_back_byte_for_byte_and_touch_nothing_else(tmp_path: Path, quantizer: Quantizer) -> None:
    run(tmp_path)
    reports = [path for path in tmp_path.iterdir() if path.name.startswith("layer-sensitivity-")]
    others = {path: (sha256_file(path), path.stat().st_mtime_ns) for path in tmp_path.iterdir() if path not in reports}
    first = {path: path.read_bytes() for path in reports}
    for path in reports:
        path.unlink()
    assert sorted(regenerate_reports(tmp_path, None)) == sorted(reports)
    assert {path: path.read_bytes() for path in reports} == first
    assert sorted(regenerate_reports(tmp_path / MANIFEST, None)) == sorted(reports)
    assert {path: path.read_bytes() for path in reports} == first
    assert others == {path: (sha256_file(path), path.stat().st_mtime_ns) for path in tmp_path.iterdir() if path not in reports}


def test_a_finished_run_is_kept(tmp_path: Path, quantizer: Quantizer) -> None:
    run(tmp_path)
    with pytest.raises(StoreError, match="holds a finished run"):
        run(tmp_path)
    assert quantizer.calls == 1, "nothing heavy may start"
    run(tmp_path, samples.sample_spec(output_layout=OutputSettings(overwrite=True)))
    assert {path.name for path in (tmp_path / "superseded" / "1").iterdir()} == FILES - {".lock"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BackendError("ModelOpt", "out of memory; use a smaller batch_size"), "ModelOpt: out of memory"),
        (MemoryError(), "out of memory"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "3"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (RuntimeError("a \ud800 lone surrogate"), "lone surrogate"),
        (RuntimeError("x" * 10_000), "xxx"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_ends_a_run_is_recorded_and_raised_again(
    tmp_path: Path, quantizer: Quantizer, error: BaseException, words: str
) -> None:
    quantizer.error = error
    with pytest.raises(type(error)):
        run(tmp_path)
    manifest = read_manifest(find_manifest(tmp_path)).manifest
    assert manifest.status is RunStatus.FAILED
    assert words in manifest.failure
    assert len(manifest.failure) <= 4000
    assert (manifest.layer_sensitivity, manifest.selected_score, manifest.scored_samples) == ({}, None, 0)
    assert manifest.spec == samples.sample_spec()
    with pytest.raises(StoreError, match="that run failed"):
        regenerate_reports(tmp_path, None)
    quantizer.error = None
    assert run(tmp_path).status is RunStatus.OK


def test_a_device_that_cannot_do_it_is_said_before_anything_is_loaded(tmp_path: Path, quantizer: Quantizer) -> None:
    quantizer.problems = [Problem("autoquant.device", "NVFP4 needs CUDA", "choose another pair")]
    with pytest.raises(SpecError, match="NVFP4 needs CUDA"):
        run(tmp_path)
    assert quantizer.calls == 0
    assert "NVFP4 needs CUDA" in read_manifest(find_manifest(tmp_path)).manifest.failure


def test_where_even_the_failure_cannot_be_written_the_first_error_is_raised(
    tmp_path: Path, quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer.error = BackendError("ModelOpt", "the first error")

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("fewbits.store.sensitivity_runs.atomic_write", full)
    said: list[str] = []
    with pytest.raises(BackendError, match="the first error"):
        run_sensitivity(samples.sample_spec(), tmp_path, "", said.append)
    assert "the failure could not be recorded: the disk is full" in said


def test_inputs_are_named_as_the_user_wrote_them(tmp_path: Path, quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths stay relative, even where the quantizer names its files absolutely."""
    monkeypatch.chdir(tmp_path)
    for name in ("models/tiny/config.json", "data/captions.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    base = samples.sample_spec()
    spec = msgspec.structs.replace(
        base,
        model=msgspec.structs.replace(base.model, path="models/tiny"),
        dataset=msgspec.structs.replace(base.dataset, captions_path="data/captions.txt"),
    )
    quantizer.inputs = (tmp_path / "models/tiny/config.json", tmp_path / "data/captions.txt")
    manifest = run(tmp_path / "run", spec)
    assert [source.path for source in manifest.inputs] == ["models/tiny/config.json", "data/captions.txt"]
    assert [source.sha256 for source in manifest.inputs] == [sha256_file(path) for path in quantizer.inputs]
    for path in (tmp_path / "run").iterdir():
        assert str(tmp_path) not in path.read_text()


def test_a_file_from_elsewhere_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert source_files([tmp_path / "x"], ("models/tiny",))[0].path == "x"
    assert source_files([tmp_path / "x"], (str(tmp_path),))[0].path == str(tmp_path / "x")


def test_versions_are_of_what_is_loaded() -> None:
    assert "msgspec" not in loaded_versions()
    assert ("torch" in loaded_versions()) == ("torch" in sys.modules)


def test_the_commit_is_a_full_one_or_none() -> None:
    state = git_state()
    assert state["commit"] is None or re.fullmatch(r"[0-9a-f]{40}", str(state["commit"]))
    assert (state["commit"] is None) == (state["dirty"] is None)


def test_a_failure_has_words() -> None:
    assert failure_words(ValueError()) == "ValueError"
    assert failure_words(MemoryError("3 GiB")) == "out of memory: 3 GiB"
