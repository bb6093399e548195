"""Bad input gets one clear message, a documented exit code, and nothing half-written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fewbits.cli.main import main

TASK = {
    "id": "a",
    "bucket": "logic",
    "tier": 1,
    "prompt": "Say a.",
    "checks": [{"kind": "exact", "accepted": ["a"]}],
    "reference_answer": "a",
    "wrong_answers": ["b"],
}
MATRIX = {"models": ["toy"], "quants": ["Q8_0"], "runtime": "scripted", "script": "script.json", "task_bank": "bank.json"}
SCRIPT = {"schema_version": "fewbits.script.v1", "rules": [], "default": {"text": "a"}}


def bank(*tasks: dict[str, Any]) -> str:
    return json.dumps({"schema_version": "fewbits.task_bank.v1", "name": "tiny", "version": "1", "tasks": list(tasks)})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bank.json").write_text(bank(TASK))
    (tmp_path / "script.json").write_text(json.dumps(SCRIPT))
    (tmp_path / "text.gguf").write_text("<html>not a model</html>")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "file").touch()
    return tmp_path


def refused(words: list[str], code: int, *said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *words]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.count("fewbits sweep:") == 1
    for words_said in said:
        assert words_said in printed.err
    assert not (Path("run") / "plan.json").exists()
    assert not (Path("run") / "trials.jsonl").exists()


FLAGS = [
    (["--model-id", "cut.gguf", "--quant-tags", "Q9_X"], 2, ["Q9_X", "did you mean"]),
    (["--model-id", "missing.gguf", "--quant-tags", "Q8_0"], 2, ["missing.gguf"]),
    (["--model-id", "text.gguf", "--quant-tags", "Q8_0"], 2, ["text.gguf", "not"]),
    (["--model-id", "empty.gguf", "--quant-tags", "Q8_0"], 2, ["empty.gguf", "empty"]),
    (["--model-id", "cut.gguf", "--quant-tags", "Q8_0"], 2, ["cut.gguf", "truncated or corrupt"]),
    (["--model-id", "folder.gguf", "--quant-tags", "Q8_0"], 2, ["folder.gguf"]),
    (["--model-id", "m", "--quant-tags", "Q8_0", "--runs", "0"], 2, ["--runs", "0"]),
    (["--model-id", "m", "--quant-tags", "Q8_0", "--runs", "-1"], 2, ["--runs", "-1"]),
    (["--model-id", "m", "--quant-tags", "Q8_0", "--threads", "9999"], 2, ["--threads", "9999"]),
    (["--quant-tags", "Q8_0"], 2, ["--model-id"]),
    (["--matrix-config", "nothing.json"], 2, ["nothing.json"]),
    (["--model-id", "m", "--quant-tags", "Q8_0", "--runtime", "lammacpp"], 2, ["lammacpp", "llamacpp"]),
    (["--model-id", "m", "--quant-tags", "Q8_0", "--task-bank", "none.json"], 2, ["none.json"]),
    (["--model-id", "m", "--quant-tags", "Q8_0", "--runtime", "openai", "--base-url", "http://127.0.0.1:9/v1"], 3, ["no server"]),
]


@pytest.mark.parametrize(("words", "code", "said"), FLAGS, ids=[" ".join(words) for words, _, _ in FLAGS])
def test_bad_flags(words: list[str], code: int, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if "--task-bank" not in words:
        words = [*words, "--task-bank", "bank.json"]
    refused([*words, "--out-dir", "run"], code, *said, capsys=capsys)


FILES = {
    "unknown key": ({**MATRIX, "latency_celing": 3}, ["latency_celing", "latency_ceiling"]),
    "ill-typed": ({**MATRIX, "runs_per_quant": "three"}, ["runs_per_quant", "three"]),
    "duplicate quants": ({**MATRIX, "quants": ["Q8_0", "q8_0"]}, ["quants"]),
    "empty models": ({**MATRIX, "models": []}, ["models"]),
    "all at once": ({**MATRIX, "seed": -1, "bogus": 1, "adherence_threshold": 7}, ["seed", "bogus", "adherence_threshold"]),
}


@pytest.mark.parametrize(("document", "said"), FILES.values(), ids=FILES.keys())
def test_bad_matrix(document: dict[str, Any], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("matrix.json").write_text(json.dumps(document))
    refused(["--matrix-config", "matrix.json", "--out-dir", "run"], 2, *said, capsys=capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"models": ["m"], "models": ["n"]}', "models"),
        ('{"models": ["m"', "matrix.json"),
        ('{"latency_ceiling": NaN}', "latency_ceiling: nan"),
        ("[1]", "matrix.json"),
        ("", "matrix.json"),
    ],
)
def test_matrix_that_is_not_strict_json(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("matrix.json").write_text(text)
    refused(["--matrix-config", "matrix.json", "--out-dir", "run"], 2, said, capsys=capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bank(), "tasks"),
        (bank(TASK, TASK), "used twice"),
        (bank({**TASK, "checks": []}), "checks"),
        (bank({**TASK, "tire": 1}), "tire"),
        ("{", "bank.json"),
    ],
    ids=["empty", "duplicate ids", "no checks", "unknown key", "broken"],
)
def test_bad_banks(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bank.json").write_text(text)
    Path("matrix.json").write_text(json.dumps(MATRIX))
    refused(["--matrix-config", "matrix.json", "--out-dir", "run"], 2, said, capsys=capsys)


@pytest.mark.parametrize("out_dir", ["file/run", "/proc/run"])
def test_unwritable_folders(out_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("matrix.json").write_text(json.dumps(MATRIX))
    refused(["--matrix-config", "matrix.json", "--out-dir", out_dir], 2, "cannot write", out_dir, capsys=capsys)


@pytest.fixture
def server_of_another_model() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"object":"list","data":[{"id":"another-model","object":"model"}]}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_server_that_holds_another_model(server_of_another_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model-id", "mine", "--quant-tags", "Q8_0", "--runtime", "openai", "--base-url", server_of_another_model]
    code = main(["sweep", *words, "--task-bank", "bank.json", "--out-dir", "run"])
    printed = capsys.readouterr().err
    assert code in {2, 3}
    assert "mine" in printed
    assert "another-model" in printed
    assert not Path("run/plan.json").exists()
