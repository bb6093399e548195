from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fewbits.api import preflight as use_case
from fewbits.cli.extract_preflight import main
from fewbits.core.codec import decode
from fewbits.probes.accelerators import TorchView
from fewbits.records.preflight import Gpu, Preflight

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "Zq7" * 11
CARD = Gpu(name="NVIDIA GeForce RTX 4060", memory_bytes=8_585_740_288, bf16=True)


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(use_case, "torch_view", lambda _hidden: TorchView("2.13.0", "13.0", (CARD,)))
    monkeypatch.setattr(use_case, "_installed", lambda _name: "1.0")
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_the_runbook_s_command_passes_on_its_machine_and_keeps_the_token(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUGGINGFACE_TOKEN", TOKEN)
    output = tmp_path / "benchmark_runs" / "preflight.json"
    words = ["--input-dir", str(pages), "--require-4060", "--output", str(output)]
    assert main(words) == 0
    assert main([*words, "--json"]) == 0
    shown, errors = capsys.readouterr()
    written = output.read_text()
    assert json.loads(written)["required_gpus"] == ["4060"]
    assert "  PASS gpu_name: 1: NVIDIA GeForce RTX 4060\n" in shown
    assert shown.endswith(written)
    assert errors == ""
    assert TOKEN[3:] not in shown + written


def test_a_failed_check_is_written_too(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "preflight.json"
    assert main(["--input-dir", str(pages / "none"), "--require-gpu", "4090", "--output", str(output)]) == 2
    found = decode(output.read_bytes(), Preflight, "x")
    assert {check.name for check in found.checks if check.status == "FAIL"} == {"gpu_name", "input_files"}
    assert "  FAIL input_files: " in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_one_message(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--input-dir", str(pages), "--output", str(tmp_path / "file" / "preflight.json")]) == 2
    shown, errors = capsys.readouterr()
    assert "  FAIL output: cannot write" in shown
    assert errors.startswith("preflight_gpu.py: cannot write ")
    assert errors.count("\n") == 1


def test_an_empty_name_is_refused(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--input-dir", str(pages), "--require-gpu", "", "--output", str(tmp_path / "p.json")]) == 2
    assert "--require-gpu: the name is empty" in capsys.readouterr().err


def test_the_script_opens_the_door() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "preflight_gpu.py"), "--help"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0
    assert "--require-4060" in result.stdout
