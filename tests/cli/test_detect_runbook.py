"""The runbook's shell script with a Python that only records, and what git does with models."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "run_yolov10m_brevitas_w4_ptq_qat.sh"
SCHEMES = "W8A16,W8A8,W4A16,W4A8"
KNOBS = (
    "RUN_ID",
    "RUN_ROOT",
    "IMG_SIZE",
    "MAX_EVAL_IMAGES",
    "CALIB_LIST",
    "COCO_ROOT",
    "RUN_QAT",
    "QAT_MODE",
    "CHECKPOINT",
    "SCHEMES",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script and a `python` that writes its arguments down and ends with $FAKE_EXIT."""
    root = tmp_path / "a checkout"
    (root / "scripts" / "cv-models").mkdir(parents=True)
    shutil.copy2(ROOT / "scripts" / "cv-models" / NAME, root / "scripts" / "cv-models" / NAME)
    python = root / "fake python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments.txt\necho told\necho warned >&2\nexit "${FAKE_EXIT:-0}"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return root


def run(checkout: Path, **knobs: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    environment = {key: value for key, value in os.environ.items() if key not in KNOBS}
    environment |= {"PYTHON": str(checkout / "fake python"), **knobs}
    script = checkout / "scripts" / "cv-models" / NAME
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False, cwd="/")
    recorded = checkout / "arguments.txt"
    return recorded.read_text().splitlines() if recorded.exists() else [], done


def test_defaults_without_any_file_are_said_and_used(checkout: Path) -> None:
    arguments, done = run(checkout, RUN_ID="first")
    root = "tmp/yolov10m_brevitas_w4a8_w4a16/first"
    sweep = ["-m", "fewbits", "detect", "sweep", "--weights", "yolov10n", "--coco", "datasets/coco2017/source-data"]
    assert arguments == [*sweep, "--schemes", SCHEMES, "--imgsz", "640", "--max-images", "100", "--out-dir", root]
    assert done.returncode == 0
    log = (checkout / root / "logs" / "runner.log").read_text()
    assert log == done.stdout
    assert "the packaged yolov10n is used" in log
    assert "drawn from the train split" in log
    assert {"told", "warned"} <= set(log.splitlines())


def test_files_at_the_default_places_are_taken(checkout: Path) -> None:
    for name in ("models/yolo10/checkpoints/yolov10m.pt", "datasets/quantize-calib/quant100.txt"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    arguments, done = run(checkout)
    assert arguments[arguments.index("--weights") + 1] == "models/yolo10/checkpoints/yolov10m.pt"
    assert arguments[arguments.index("--calib-list") + 1] == "datasets/quantize-calib/quant100.txt"
    assert sorted(done.stdout.split()) == ["told", "warned"]


def test_knobs_are_passed_on_whole(checkout: Path) -> None:
    knobs = {
        "RUN_ROOT": "my run",
        "CHECKPOINT": "a b.pt",
        "COCO_ROOT": "c d",
        "CALIB_LIST": "not there.txt",
        "IMG_SIZE": "320",
        "MAX_EVAL_IMAGES": "0",
        "SCHEMES": "W4A8-naive",
        "RUN_QAT": "1",
        "QAT_MODE": "w4a16",
    }
    arguments, _done = run(checkout, **knobs)
    passed = dict(zip(arguments[4::2], arguments[5::2], strict=False))
    # a list that somebody named is passed on, so that the sweep says what is wrong with it
    assert passed["--calib-list"] == "not there.txt"
    assert (passed["--weights"], passed["--coco"], passed["--out-dir"]) == ("a b.pt", "c d", "my run")
    assert (passed["--imgsz"], passed["--max-images"], passed["--schemes"]) == ("320", "0", "W4A8-naive")
    assert arguments[-3:] == ["--qat", "--qat-mode", "W4A16"]


@pytest.mark.parametrize("code", ["2", "3", "130"])
def test_the_exit_code_is_the_sweeps(checkout: Path, code: str) -> None:
    assert run(checkout, FAKE_EXIT=code)[1].returncode == int(code)


def test_an_unclear_switch_runs_nothing(checkout: Path) -> None:
    arguments, done = run(checkout, RUN_QAT="yes")
    assert (arguments, done.returncode) == ([], 2)
    assert "RUN_QAT is 'yes'" in done.stderr


def test_the_script_is_clean_and_may_be_run() -> None:
    script = ROOT / "scripts" / "cv-models" / NAME
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


def test_git_keeps_the_readme_and_no_weights() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def is_ignored(name: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", name], cwd=ROOT, check=False).returncode == 0

    assert not is_ignored("models/yolo10/README.md")
    ignored = ("models/yolo10/checkpoints/yolov10m.pt", "models/yolo10/y.pt", "models/other/README.md", "tmp/x", "datasets/x")
    assert [name for name in ignored if not is_ignored(name)] == []
