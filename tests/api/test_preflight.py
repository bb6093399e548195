from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from fewbits.api import preflight as use_case
from fewbits.api.preflight import PACKAGES, PreflightRequest, run_preflight, token_source
from fewbits.core.codec import decode, encode_pretty
from fewbits.core.errors import SpecError
from fewbits.probes import accelerators
from fewbits.probes.accelerators import TorchView, torch_view
from fewbits.records.preflight import CheckStatus, Gpu, Preflight, WantedDevice
from fewbits.report.terminal_preflight import render_preflight

TOKEN = "hf_" + "Zq7" * 11
CARD = Gpu(name="NVIDIA GeForce RTX 4060", memory_bytes=8_585_740_288, bf16=True)
CUDA = TorchView(version="2.13.0", cuda_version="13.0", gpus=(CARD,))
NO_CUDA = TorchView(version="2.13.0+cpu", problem="PyTorch 2.13.0+cpu is built without CUDA")
NO_TORCH = TorchView(problem="PyTorch is not installed")
Usage = namedtuple("Usage", "total used free")


class Machine:
    """A machine made up: everything that the preflight asks is answered here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.torch, self.free = NO_CUDA, 100 * 2**30
        self.driver: tuple[Gpu, ...] = ()
        self.installed: set[str] = set(PACKAGES) - {"onnxruntime-gpu"}
        self.folder = folder
        self.pages = folder / "pages"
        self.pages.mkdir()
        (self.pages / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        for name in use_case.TOKEN_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(use_case, "torch_view", lambda _hidden: self.torch)
        monkeypatch.setattr(use_case, "driver_gpus", lambda: self.driver)
        monkeypatch.setattr(use_case, "driver_version", lambda: None)
        monkeypatch.setattr(use_case, "_installed", lambda name: "1.0" if name in self.installed else None)
        monkeypatch.setattr("fewbits.api.preflight.shutil.disk_usage", lambda _path: Usage(0, 0, self.free))

    def preflight(self, **options: Any) -> Preflight:
        options = {"input_dir": self.pages, "output": self.folder / "out" / "preflight.json"} | options
        found = run_preflight(PreflightRequest(**options))
        assert decode(encode_pretty(found), Preflight, "x") == found
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def statuses(found: Preflight) -> dict[str, str]:
    return {check.name: check.status.value for check in found.checks}


def said(found: Preflight, name: str) -> str:
    (check,) = (check for check in found.checks if check.name == name)
    assert (check.remedy == "") == (check.status is CheckStatus.PASS)
    return f"{check.status.value} {check.found} -> {check.remedy}"


def able(found: Preflight) -> list[str]:
    return [engine.engine for engine in found.engines if engine.can_run]


def test_an_rtx_4060_passes_and_gets_four_bits(machine: Machine) -> None:
    machine.torch = CUDA
    (machine.folder / "token").write_text(TOKEN)
    found = machine.preflight(required_gpus=("4060",), device=WantedDevice.CUDA)
    assert set(statuses(found).values()) == {"PASS"}
    assert found.status is CheckStatus.PASS
    assert found.gpus == (CARD,)
    chosen = found.recommended
    assert (chosen.engine, chosen.device, chosen.torch_dtype, chosen.quantization) == (
        "vision",
        WantedDevice.CUDA,
        "bfloat16",
        "4bit",
    )
    assert able(found) == ["ocr", "ocr-int8", "ocr+chat", "vision-bf16", "vision-fp16", "vision-nf4"]


@pytest.mark.parametrize("name", ["4060", "rtx 4060", "geforce  RTX"])
def test_the_name_of_a_gpu_is_matched_in_any_case(name: str, machine: Machine) -> None:
    machine.torch = CUDA
    assert statuses(machine.preflight(required_gpus=(name,)))["gpu_name"] == "PASS"


def test_another_gpu_than_the_required_one_fails(machine: Machine) -> None:
    machine.torch = CUDA
    found = machine.preflight(required_gpus=("4090",))
    assert found.status is CheckStatus.FAIL
    assert said(found, "gpu_name").startswith("FAIL 4090 is required; there is NVIDIA GeForce RTX 4060")
    with pytest.raises(SpecError, match="the name is empty"):
        machine.preflight(required_gpus=(" ",))


def test_a_required_gpu_that_is_not_the_first_says_how_to_choose_it(machine: Machine) -> None:
    machine.torch = TorchView(version="2.13.0", cuda_version="13.0", gpus=(Gpu(name="Tesla T4", memory_bytes=16 * 10**9), CARD))
    assert "set CUDA_VISIBLE_DEVICES=1" in said(machine.preflight(required_gpus=("4060",)), "gpu_name")


def test_small_memory_and_no_bfloat16_warn(machine: Machine) -> None:
    machine.torch = TorchView(version="2", cuda_version="12", gpus=(Gpu(name="GTX 1060", memory_bytes=6 * 10**9, bf16=False),))
    found = machine.preflight()
    assert said(found, "gpu_memory").startswith("WARN 5.6 GiB: less than 8 GB -> use --quantize-4bit")
    assert "use --torch-dtype float16" in said(found, "bf16")
    assert "vision-bf16" not in able(found)
    assert (found.recommended.torch_dtype, found.recommended.quantization) == ("float16", "4bit")


def test_a_large_gpu_needs_no_quantization(machine: Machine) -> None:
    machine.torch = TorchView(version="2", cuda_version="12", gpus=(Gpu(name="H200", memory_bytes=150 * 10**9, bf16=True),))
    chosen = machine.preflight().recommended
    assert (chosen.torch_dtype, chosen.quantization) == ("bfloat16", "none")
    assert machine.preflight(device=WantedDevice.CPU).recommended.engine == "ocr"


@pytest.mark.parametrize("torch", [NO_CUDA, NO_TORCH])
def test_without_cuda_it_warns_and_says_what_runs(torch: TorchView, machine: Machine) -> None:
    machine.torch = torch
    if torch.version is None:
        machine.installed -= {"torch"}
    found = machine.preflight()
    assert found.status is CheckStatus.WARN
    assert said(found, "cuda").startswith(f"WARN none: {torch.problem}, so vision-language models cannot run; OCR needs no GPU")
    assert able(found) == ["ocr", "ocr-int8", "ocr+chat"]
    assert (found.recommended.engine, found.recommended.device) == ("ocr", WantedDevice.CPU)
    shown = render_preflight(found)
    assert "can run here:\n  ocr: OCR and layout rules on the CPU\n" in shown
    assert "cannot run here:\n  vision-bf16: " in shown


def test_missing_cuda_fails_only_where_it_is_needed(machine: Machine) -> None:
    assert statuses(machine.preflight(device=WantedDevice.CUDA))["cuda"] == "FAIL"
    assert statuses(machine.preflight(required_gpus=("4060",)))["cuda"] == "FAIL"
    assert set(statuses(machine.preflight(device=WantedDevice.CPU)).values()) == {"PASS", "WARN"}
    assert statuses(machine.preflight(device=WantedDevice.CPU))["cuda"] == "PASS"
    machine.installed -= {"rapidocr"}
    found = machine.preflight()
    assert (statuses(found)["cuda"], statuses(found)["engines"]) == ("FAIL", "FAIL")
    assert able(found) == []


def test_a_gpu_that_pytorch_cannot_use_is_named(machine: Machine) -> None:
    machine.driver = (Gpu(name="NVIDIA GeForce RTX 4060"),)
    found = machine.preflight()
    assert "install the PyTorch build for the driver's CUDA version" in said(found, "cuda")
    assert said(found, "gpu_name").startswith("PASS 1: NVIDIA GeForce RTX 4060")
    assert said(found, "gpu_memory").startswith("WARN the driver does not tell it")
    machine.torch = NO_TORCH
    assert "pip install 'fewbits[vision]'" in said(machine.preflight(), "cuda")


@pytest.mark.parametrize("name", use_case.TOKEN_VARIABLES)
def test_a_token_is_found_and_never_told(name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, TOKEN)
    found = machine.preflight()
    assert said(found, "hugging_face_token").startswith(f"PASS present in {name} (")
    for text in (encode_pretty(found).decode(), render_preflight(found)):
        assert TOKEN[3:] not in text
        assert str(len(TOKEN)) not in said(found, "hugging_face_token")


def test_where_tokens_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_source({}) is None
    assert token_source({"HF_TOKEN": "  "}) is None
    for place, environment in (
        (tmp_path / ".cache" / "huggingface" / "token", {}),
        (tmp_path / "cache" / "huggingface" / "token", {"XDG_CACHE_HOME": str(tmp_path / "cache")}),
        (tmp_path / "home" / "token", {"HF_HOME": str(tmp_path / "home")}),
        (tmp_path / "mine", {"HF_TOKEN_PATH": str(tmp_path / "mine"), "HF_HOME": "/nowhere"}),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(" \n")
        assert token_source(environment) is None
        place.write_text(TOKEN)
        assert token_source(environment) == "the token file"
        place.unlink()


def test_input_files_are_counted_never_named(machine: Machine) -> None:
    (machine.pages / "Jane Doe.jpg").touch()
    found = machine.preflight()
    assert said(found, "input_files").startswith("WARN 2 files, 1 of them neither picture nor PDF inside")
    assert "Jane" not in encode_pretty(found).decode()


@pytest.mark.parametrize("name", ["none", "empty", os.fsdecode(b"\xff")])
def test_a_missing_or_empty_folder_fails(name: str, machine: Machine) -> None:
    (machine.folder / "empty").mkdir()
    found = machine.preflight(input_dir=machine.folder / name)
    assert found.status is CheckStatus.FAIL
    assert said(found, "input_files").startswith("FAIL ")
    assert "--input-dir" in said(found, "input_files")


@pytest.mark.parametrize(("free", "status"), [(10 * 2**20, "FAIL"), (2**30, "WARN"), (2**31, "PASS")])
def test_a_low_disk(free: int, status: str, machine: Machine) -> None:
    machine.free = free
    assert statuses(machine.preflight())["output"] == status


def test_an_output_that_cannot_be_written(machine: Machine) -> None:
    (machine.folder / "file").touch()
    found = said(machine.preflight(output=machine.folder / "file" / "deep" / "preflight.json"), "output")
    assert found.startswith("FAIL cannot write ")
    assert "is a folder" in said(machine.preflight(output=machine.pages), "output")


class TestTorch:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fewbits.probes.accelerators.importlib.util.find_spec", lambda _name: True)

    def test_it_is_asked_without_the_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        code = "import json, os; print(json.dumps(dict(version=os.environ.get('HF_TOKEN', 'none'), cuda_version=None,"
        monkeypatch.setattr(accelerators, "_ASK_TORCH", f"{code} available=False, gpus=[])))")
        found = torch_view(use_case.TOKEN_VARIABLES)
        assert (found.version, found.problem) == ("none", "PyTorch none is built without CUDA")

    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            ("raise SystemExit('libcudart is missing')", "PyTorch cannot be imported: libcudart is missing"),
            ("import os; os.abort()", "PyTorch cannot be imported: -6"),
            ("import time; time.sleep(60)", "PyTorch did not answer within 0 s"),
        ],
    )
    def test_its_failures_are_one_sentence(self, code: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accelerators, "_ASK_TORCH", code)
        if "sleep" in code:
            monkeypatch.setattr(accelerators, "TORCH_TIMEOUT_SECONDS", 0.2)
        assert torch_view().problem == problem

    def test_its_answer_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = '{"name": "RTX 4060", "memory_bytes": 8585740288, "bf16": true}'
        answer = '{"version": "2", "cuda_version": "13.0", "available": true, "gpus": [%s]%s}'
        monkeypatch.setattr(accelerators, "_ASK_TORCH", f"print('noise'); print('''{answer % (gpu, '')}''')")
        assert torch_view() == TorchView("2", "13.0", (Gpu(name="RTX 4060", memory_bytes=8585740288, bf16=True),))
        broken = answer % ("", ', "problem": "no kernel image"')
        monkeypatch.setattr(accelerators, "_ASK_TORCH", f"print('''{broken}''')")
        assert torch_view().problem == "PyTorch cannot compute on the GPU: no kernel image"

    def test_it_is_not_started_where_it_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fewbits.probes.accelerators.importlib.util.find_spec", lambda _name: None)
        assert torch_view() == NO_TORCH


def test_the_driver_s_own_files_name_its_gpus(tmp_path: Path) -> None:
    place = tmp_path / "gpus" / "0000:01:00.0"
    place.mkdir(parents=True)
    (place / "information").write_text("Model: \t\t NVIDIA GeForce RTX 4060\nIRQ:   \t\t 130\n")
    assert accelerators._proc_gpus(tmp_path) == (Gpu(name="NVIDIA GeForce RTX 4060"),)
    assert accelerators._proc_gpus(tmp_path / "none") == ()
