"""The runner as a person starts it: overrides, multirun, launchers, bad input. The scoring itself is a stand-in here.

The stand-in is put in by `sitecustomize`, which every Python process reads, so the launchers' workers have it too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hydra")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "qwen" / "qwen3_lm_sensitivity.py"
STAND_IN = """
import json, os, sys, time
from pathlib import Path

import fewbits.api.sensitivity as api
from fewbits.core.errors import BackendError
from fewbits.store.sensitivity_runs import refuse_finished_run
from fewbits.spec.sensitivity_layout import manifest_name, scheme_name

def run_sensitivity(spec, directory, composed_yaml, progress):
    assert "torch" not in sys.modules and "modelopt" not in sys.modules
    refuse_finished_run(directory, overwrite=spec.output_layout.overwrite)
    pair = spec.quant_pair.name
    progress(f"scoring {pair}")
    if pair == os.environ.get("STAND_IN_MEMORY"):
        raise BackendError("pytorch", "out of memory")
    if pair == os.environ.get("STAND_IN_BUG"):
        raise KeyError("a bug")
    if pair == os.environ.get("STAND_IN_KILLED"):
        os._exit(9)
    if os.environ.get("STAND_IN_WAIT"):
        time.sleep(60)
    directory.mkdir(parents=True, exist_ok=True)
    said = {"pair": pair, "size": spec.dataset.size, "pid": os.getpid(), "config": composed_yaml}
    (directory / manifest_name(scheme_name(spec))).write_text(json.dumps(said))

def regenerate_reports(directory, scheme):
    print("reports of", scheme)
    return [directory / "layer-sensitivity-report.md"]

api.run_sensitivity = run_sensitivity
api.regenerate_reports = regenerate_reports
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working folder with a model, captions of two sizes, and the stand-in."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    captions = tmp_path / "datasets" / "vlm-quantize-calib"
    captions.mkdir(parents=True)
    for size in ("small", "medium"):
        (captions / f"coco2017_captions_{size}.txt").write_text("a dog on a beach\n")
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    return tmp_path


@pytest.fixture
def environment(here: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(here / "stand_in"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(here: Path, environment: dict[str, str]) -> Run:
    def start(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *words]
        return subprocess.run(
            command, cwd=here, env=environment | variables, capture_output=True, text=True, timeout=120, check=False
        )

    return start


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    found = sorted(folder.rglob("*_quant_manifest.json"))
    return {str(path.parent.relative_to(folder)): json.loads(path.read_text()) for path in found}


def test_a_single_run_lands_in_a_folder_of_its_own(run: Run, here: Path) -> None:
    result = run("model.path=model", "dataset.size=small", "quant_pair=wint8_aint8")
    assert result.returncode == 0, result.stderr
    ((folder, manifest),) = manifests(here).items()
    base = "tmp/model-experiments/qwen3_lm_sensitivity/qwen3_vl_4b_instruct/wint8_aint8/default/small/"
    assert re.fullmatch(re.escape(base) + r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder)
    assert result.stdout == f"results: {folder}\n"
    assert "scoring wint8_aint8" in result.stderr
    assert "format_name: INT8_LM_DEFAULT_CFG" in manifest["config"]
    assert str(here) not in manifest["config"]


def test_the_sweep_of_the_runbook_publishes_six_runs(run: Run, here: Path) -> None:
    words = ("-m", "quant_pair=wint4_afp16,wint8_afp16,wfp8_afp8", "dataset.size=small,medium", "output_layout=publish")
    result = run(*words, "model.path=model")
    assert result.returncode == 0, result.stderr
    published = here / "models" / "qwen3_vl_4b_instruct" / "layer-analysis"
    found = manifests(published)
    assert len(found) == 6 == len(manifests(here))
    for folder, manifest in found.items():
        assert folder.endswith(f"default/qwen3_vl_4b_instruct_autoquant_{manifest['pair']}_lm_{manifest['size']}")
    assert {path.name for path in published.rglob("*")} & {".hydra", "multirun.yaml"} == set()
    assert "6 of 6 jobs ended well" in result.stdout
    assert "fewbits sensitivity rollup models/qwen3_vl_4b_instruct/layer-analysis\n" in result.stdout
    again = run("-m", "quant_pair=wint4_afp16,wint8_afp16", *words[2:], "model.path=model")
    assert again.returncode == 2
    assert again.stdout.count("holds a finished run") == 4
    assert manifests(published) == found


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_launchers_do_the_same(run: Run, here: Path, launcher: str) -> None:
    sweep = ("-m", "quant_pair=wint8_afp16,wint4_afp16,wfp8_afp8", "dataset.size=small", f"hydra/launcher={launcher}")
    result = run(*sweep, "model.path=model", STAND_IN_MEMORY="wint4_afp16")
    assert result.returncode == 1, result.stderr
    assert "2 of 3 jobs ended well" in result.stdout
    assert result.stdout.count("pytorch: out of memory") == 1
    found = manifests(here)
    assert {manifest["pair"] for manifest in found.values()} == {"wint8_afp16", "wfp8_afp8"}
    assert {folder.rpartition("/")[2] for folder in found} == {"0", "2"}, "each job has its number"


def test_jobs_that_fail_do_not_lose_the_others(run: Run, here: Path) -> None:
    result = run(
        "-m",
        "quant_pair=wint4_afp16,wint8_afp16,wfp8_afp16",
        "dataset.size=small,medum",
        "model.path=model",
        STAND_IN_MEMORY="wint4_afp16",
        STAND_IN_BUG="wfp8_afp16",
    )
    assert result.returncode == 1
    assert [manifest["pair"] for manifest in manifests(here).values()] == ["wint8_afp16"]
    assert "1 of 6 jobs ended well" in result.stdout
    assert "KeyError: 'a bug'" in result.stdout
    assert result.stdout.count("'medum' is not in dataset.size_to_max_samples") == 3
    (ledger,) = (here / "tmp/model-experiments/multirun-jobs").iterdir()
    records = [json.loads((ledger / f"{number}.json").read_text()) for number in range(6)]
    assert [record["status"] for record in records].count("OK") == 1
    assert records[0] | {"message": ""} == {
        "number": 0,
        "overrides": ["quant_pair=wint4_afp16", "dataset.size=small", "model.path=model"],
        "status": "FAILED",
        "directory": records[0]["directory"],
        "message": "",
        "exit_code": 1,
    }


def test_one_kind_of_failure_keeps_its_exit_code(run: Run) -> None:
    result = run("-m", "dataset.size=small,medum", "model.path=model")
    assert result.returncode == 2
    assert "1 of 2 jobs ended well" in result.stdout


def test_two_jobs_with_one_folder_are_named(run: Run, here: Path) -> None:
    sweep = ("-m", "quant_pair=wint8_afp16,wint4_afp16", "dataset.size=small", "model.path=model")
    result = run(*sweep, "runner.output_dir=results", "runner.overwrite=true")
    assert result.returncode == 2
    assert "results is the folder of job 0 of this multirun (quant_pair=wint8_afp16" in result.stdout
    assert [manifest["pair"] for manifest in manifests(here / "results").values()] == ["wint8_afp16"]


def test_a_preset_is_a_sweep_by_itself(run: Run, here: Path) -> None:
    result = run("preset=sweep_weight_only", "dataset.size=small", "model.path=model")
    assert result.returncode == 0, result.stderr
    assert {manifest["pair"] for manifest in manifests(here).values()} == {"wint8_afp16", "wfp8_afp16", "wint4_afp16"}


def test_a_named_folder_is_not_replaced_by_accident(run: Run, here: Path) -> None:
    words = ("dataset.size=small", "quant_pair=wint8_afp16", "model.path=model", "runner.output_dir=results")
    assert run(*words).returncode == 0
    refused = run(*words)
    assert refused.returncode == 2
    assert "results holds a finished run" in refused.stderr
    assert run(*words, "runner.overwrite=true").returncode == 0
    assert not (here / "results" / ".hydra").exists()


def test_reports_alone_take_the_pair_that_was_asked_for(run: Run, here: Path) -> None:
    (here / "results").mkdir()
    words = ("runner.report_only=true", "runner.output_dir=results")
    assert run(*words).stdout.splitlines() == ["reports of None", "results/layer-sensitivity-report.md"]
    assert "reports of wint8_afp16_autoquant_lm" in run(*words, "quant_pair=wint8_afp16").stdout
    (here / "results" / "wfp8_afp8_autoquant_lm_quant_manifest.json").write_text("{}")
    assert "reports of wfp8_afp8_autoquant_lm" in run(*words).stdout
    assert run("runner.report_only=true").returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quant_pair=wint9",), ("quant_pair: there is no option 'wint9'", "wint8_aint8")),
        (("-m", "quant_pair=wint8_afp16,wint8_afp1"), ("did you mean 'wint8_afp16'?",)),
        (("dataset.sise=small",), ("dataset.sise: unknown key (did you mean 'dataset.size'?)",)),
        (("qant_pair=wint8_afp16",), ("qant_pair: unknown key (did you mean 'quant_pair'?)",)),
        (("+extra=1", "model.path=model", "dataset.size=small"), ("extra: unknown key",)),
        (("dataset.size=small", "model.path=${model.nme}"), ("model", "nme")),
        (("dataset.size=[",), ("command line:",)),
        (("hydra/launcher=ray",), ("hydra-ray-launcher",)),
        (("hydra.job.chdir=true", "model.path=model", "dataset.size=small"), ("hydra.job.chdir",)),
        (("--experimental-rerun=x.pickle",), ("could run any code",)),
        (("model.path=nowhere", "dataset.size=large"), ("2 problems", "model.path", "dataset.captions_path")),
    ],
)
def test_bad_input_is_one_message(run: Run, here: Path, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert all(part in result.stderr for part in said), result.stderr
    assert result.stderr.count("qwen3_lm_sensitivity: ") == 1
    assert "Traceback" not in result.stderr
    assert manifests(here) == {}


def test_without_hydra_the_remedy_is_said(run: Run, here: Path) -> None:
    customize = here / "stand_in" / "sitecustomize.py"
    customize.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name in ('hydra', 'omegaconf') else find(name, *rest)\n"
    )
    result = run("model.path=model")
    assert result.returncode == 3
    assert "pip install 'fewbits[sensitivity]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_killed_worker_is_in_the_list(run: Run, here: Path) -> None:
    sweep = ("-m", "quant_pair=wint8_afp16,wint4_afp16", "dataset.size=small", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    result = run(*sweep, "model.path=model", STAND_IN_KILLED="wint4_afp16")
    assert result.returncode == 1
    assert "the launcher failed: TerminatedWorkerError" in result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(r"job 1: FAILED .*quant_pair=wint4_afp16.*\n +ended without a result", result.stdout)


def test_an_interrupt_ends_with_130(here: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "-m", "dataset.size=small,medium", "quant_pair=wint8_afp16", "model.path=model"]
    with subprocess.Popen(
        command, cwd=here, env=environment | {"STAND_IN_WAIT": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "scoring" in line:
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert "0 of 1 jobs ended well" in stdout
