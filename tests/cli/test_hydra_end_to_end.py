"""The runner with nothing replaced: PyTorch and ModelOpt on a tiny random Qwen3-VL, from the command line to the rollup."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hydra")
pytest.importorskip("torch")

pytestmark = pytest.mark.xdist_group("modelopt")

ROOT = Path(__file__).resolve().parents[2]
QWEN = ROOT / "scripts" / "qwen"
CAPTIONS = ROOT.parent / "shared" / "data" / "coco-mini" / "captions_train2017.txt"
PUBLISHED = "models/tiny_qwen3_vl/layer-analysis"


def run(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=here, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder made with the scripts that a person would use."""
    if not CAPTIONS.is_file():
        pytest.skip("no COCO captions on this machine: shared/data/coco-mini is not there")
    folder = tmp_path_factory.mktemp("tiny")
    few = folder / "captions_train2017.txt"
    few.write_text("".join(CAPTIONS.read_text().splitlines(keepends=True)[:24]))
    for script, *words in (("make_tiny_model.py",), ("make_caption_files.py", str(few))):
        result = run(folder, str(QWEN / script), *words)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def swept(here: Path) -> Path:
    """Four published runs: two pairs, two sizes."""
    words = (
        "quant_pair=wint8_afp16,wint4_afp16",
        "dataset.size=small,medium",
        "output_layout=publish",
        "autoquant.verbose=false",
    )
    result = run(here, str(QWEN / "qwen3_lm_sensitivity.py"), "-m", "preset=dry_run", *words)
    assert result.returncode == 0, result.stderr
    assert "4 of 4 jobs ended well" in result.stdout
    return here


def test_published_runs_say_what_was_done(swept: Path) -> None:
    manifests = sorted((swept / PUBLISHED).rglob("*_quant_manifest.json"))
    assert len(manifests) == 4
    for path in manifests:
        manifest = json.loads(path.read_text())
        assert manifest["status"] == "OK"
        assert manifest["scored_samples"] == {"small": 16, "medium": 24}[manifest["spec"]["dataset"]["size"]]
        assert all(".visual." not in group for group in manifest["layer_sensitivity"])
        assert str(swept) not in path.read_text(), "no path of this machine"
        beside = {item.name for item in path.parent.iterdir()}
        assert {"composed-config.yaml", "layer-sensitivity-report.md", "layer-sensitivity-report.json"} <= beside


def test_reports_alone_come_back_byte_for_byte(swept: Path) -> None:
    folder = next((swept / PUBLISHED).rglob("*_wint8_afp16_lm_small"))
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
    for path in folder.glob("layer-sensitivity-*"):
        path.unlink()
    for _ in range(2):
        result = run(
            swept,
            str(QWEN / "qwen3_lm_sensitivity.py"),
            "runner.report_only=true",
            f"runner.output_dir={folder.relative_to(swept)}",
        )
        assert result.returncode == 0, result.stderr
        assert "layer-sensitivity-report.md" in result.stdout
        assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()} == before


def test_the_rollup_takes_the_folder_that_the_runner_names(swept: Path) -> None:
    result = run(swept, "-m", "fewbits", "sensitivity", "rollup", PUBLISHED, "--out", "rollup.json")
    assert result.returncode == 0, result.stderr
    rollup = json.loads((swept / "rollup.json").read_text())
    assert {(item["pair"], item["size"]) for item in rollup["runs"]} == {
        (pair, size) for pair in ("wint8_afp16", "wint4_afp16") for size in ("small", "medium")
    }
    assert len(rollup["between_sizes"]) == 2


@pytest.mark.slow
def test_a_failed_run_says_why_and_leaves_a_manifest(swept: Path) -> None:
    words = ("preset=dry_run", "quant_pair=wint8_afp16", "runner.output_dir=failed", "autoquant.disabled_layers=['*no_such*']")
    result = run(swept, str(QWEN / "qwen3_lm_sensitivity.py"), *words)
    assert result.returncode == 2
    assert "no_such" in result.stderr
    assert "Traceback" not in result.stderr
    (manifest,) = (swept / "failed").glob("*_quant_manifest.json")
    assert json.loads(manifest.read_text())["status"] == "FAILED"


@pytest.mark.slow
def test_a_single_dry_run_without_any_choice(here: Path) -> None:
    result = run(here, str(QWEN / "qwen3_lm_sensitivity.py"), "preset=dry_run")
    assert result.returncode == 0, result.stderr
    assert len(list((here / "tmp/model-experiments").rglob("wint8_aint8_lm_only_autoquant_lm_quant_manifest.json"))) == 1
