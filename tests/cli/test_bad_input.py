"""Every way to hold it wrong: one message that says where and what to do, the documented exit code, nothing written."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fewbits.cli.main import main

TASK: dict[str, Any] = {
    "id": "a",
    "bucket": "logic",
    "tier": 1,
    "prompt": "Say 1.",
    "checks": [{"kind": "exact", "accepted": ["1"]}],
}


class Inputs:
    """A folder of good inputs, of which a case spoils one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.bank = self.write("bank.json", {"name": "n", "version": "1", "tasks": [TASK]})
        self.script = self.write("script.json", {"schema_version": "fewbits.script.v1", "default": {"text": "1"}})

    def write(self, name: str, content: object) -> str:
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def bank_of(self, *tasks: dict[str, Any]) -> list[str]:
        return ["--task-bank", self.write("bad.json", {"name": "n", "version": "1", "tasks": list(tasks)})]

    def matrix(self, content: object) -> list[str]:
        return ["--matrix-config", self.write("matrix.json", content)]

    def words(self, changed: list[str]) -> list[str]:
        """A whole command line; flags that come twice: the later one wins, so a case's flags replace the good ones."""
        good = {"--model-id": "m", "--quant-tags": "Q8_0", "--runtime": "scripted", "--canary-runs": "0"}
        good |= {"--script": self.script, "--task-bank": self.bank, "--out-dir": str(self.out)}
        given = dict(zip(changed[::2], changed[1::2], strict=True))
        if given.get("--runtime", "scripted") != "scripted" or "--matrix-config" in given:
            del good["--script"]
        if "--matrix-config" in given:
            del good["--runtime"]
        return [word for pair in (good | given).items() for word in pair if pair[1] != "ABSENT"]


def gguf(path: Path, *, keep: float = 1.0) -> str:
    """A small true GGUF model file, cut off after a share of its bytes."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return str(path)


def llamacpp(model: str) -> list[str]:
    return ["--runtime", "llamacpp", "--model-id", model]


def in_folder(make: Callable[[Path], str]) -> Callable[[Inputs], list[str]]:
    return lambda inputs: llamacpp(make(inputs.folder))


def empty_file(folder: Path) -> str:
    (folder / "empty.gguf").touch()
    return str(folder / "empty.gguf")


def text_file(folder: Path) -> str:
    (folder / "text.gguf").write_text("<html>404</html>" * 50)
    return str(folder / "text.gguf")


def old_gguf(folder: Path) -> str:
    (folder / "old.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(64))
    return str(folder / "old.gguf")


def unknown_tag(inputs: Inputs) -> list[str]:
    return [*llamacpp(gguf(inputs.folder / "whole.gguf")), "--quant-tags", "Q4_KM"]


def folder_as_config(inputs: Inputs) -> list[str]:
    (inputs.folder / "folder.json").mkdir()
    return ["--matrix-config", str(inputs.folder / "folder.json")]


def below_a_file(inputs: Inputs) -> list[str]:
    return ["--out-dir", str(Path(inputs.bank) / "out")]


GOOD_MATRIX = '"models": ["m"], "quants": ["Q8_0"], "runtime": "scripted"'


@dataclass(frozen=True)
class Case:
    """What is changed, the exit code, and words that the message must hold (where, what to do)."""

    change: Callable[[Inputs], list[str]]
    code: int
    says: tuple[str, ...]
    name: str = field(kw_only=True)


CASES = [
    Case(unknown_tag, 2, ("Q4_KM", "Q4_K_M"), name="unknown quant tag"),
    Case(lambda _: ["--quant-tags", "Q8_0,Q8_0"], 2, ("--quant-tags", "Q8_0"), name="quant tag twice"),
    Case(in_folder(lambda folder: str(folder / "no.gguf")), 2, ("no.gguf",), name="model missing"),
    Case(in_folder(str), 2, ("folder",), name="model is a folder"),
    Case(in_folder(empty_file), 2, ("empty.gguf", "empty (0 bytes)"), name="model empty"),
    Case(in_folder(text_file), 2, ("text.gguf", "GGUF"), name="model not GGUF"),
    Case(in_folder(old_gguf), 2, ("old.gguf", "version"), name="model GGUF of another version"),
    Case(in_folder(lambda folder: gguf(folder / "cut.gguf", keep=0.9)), 2, ("cut.gguf",), name="model cut in its weights"),
    Case(in_folder(lambda folder: gguf(folder / "cut.gguf", keep=0.01)), 2, ("cut.gguf",), name="model cut in its header"),
    Case(lambda i: i.matrix(f'{{{GOOD_MATRIX}, "quantz": 1}}'), 2, ("quantz", "quants"), name="config unknown key"),
    Case(lambda i: i.matrix(f'{{{GOOD_MATRIX}, "seed": "x"}}'), 2, ("seed",), name="config ill-typed key"),
    Case(lambda i: i.matrix(f'{{{GOOD_MATRIX}, "temperature": NaN}}'), 2, ("temperature", "finite"), name="config NaN"),
    Case(lambda i: i.matrix(f'{{{GOOD_MATRIX}, "seed": 1, "seed": 2}}'), 2, ("seed", "twice"), name="config duplicate key"),
    Case(lambda i: i.matrix(f"{{{GOOD_MATRIX}"), 2, ("matrix.json:1:",), name="config broken JSON"),
    Case(lambda i: i.matrix("[1, 2]"), 2, ("matrix.json",), name="config no object"),
    Case(lambda i: i.matrix(b"\xff\xfe\x00"), 2, ("matrix.json",), name="config not UTF-8"),
    Case(lambda i: ["--matrix-config", str(i.folder / "no.json")], 2, ("no.json",), name="config missing"),
    Case(folder_as_config, 2, ("folder.json",), name="config is a folder"),
    Case(lambda i: i.bank_of(), 2, ("tasks",), name="bank empty"),
    Case(lambda i: i.bank_of(TASK, TASK), 2, ("tasks[1].id", "tasks[0]"), name="bank duplicate ids"),
    Case(lambda i: i.bank_of(TASK | {"checks": []}), 2, ("tasks[0].checks",), name="task without checks"),
    Case(lambda i: ["--task-bank", i.write("b.json", "{")], 2, ("b.json",), name="bank broken"),
    Case(lambda i: ["--task-bank", str(i.folder / "no.json")], 2, ("no.json",), name="bank missing"),
    Case(lambda _: ["--task-ids", "zzz"], 2, ("zzz",), name="task unknown"),
    Case(lambda _: ["--runs", "0"], 2, ("--runs", "0"), name="zero runs"),
    Case(lambda _: ["--runs", "-1"], 2, ("--runs", "-1"), name="negative runs"),
    Case(lambda _: ["--runs", "two"], 2, ("--runs", "two"), name="runs no number"),
    Case(lambda _: ["--threads", "9999"], 2, ("--threads", "9999"), name="too many threads"),
    Case(lambda _: ["--temperature", "nan"], 2, ("--temperature",), name="temperature NaN"),
    Case(below_a_file, 2, ("bank.json", "--out-dir"), name="out-dir below a file"),
    Case(
        lambda _: ["--out-dir", "/proc/fewbits/out"],
        2,
        ("cannot write /proc/fewbits", "Check the path"),
        name="out-dir read-only",
    ),
    Case(lambda _: ["--out-dir", "/dev/full"], 2, ("/dev/full", "--out-dir"), name="out-dir is a device"),
    Case(lambda _: ["--model-id", "ABSENT"], 2, ("--model-id",), name="no model"),
    Case(lambda _: ["--quant-tags", "ABSENT"], 2, ("--quant-tags",), name="no quants"),
    Case(lambda _: ["--runtime", "llamacp"], 2, ("--runtime", "llamacpp"), name="unknown runtime"),
    Case(lambda i: ["--script", i.write("s.json", "{}")], 2, ("s.json",), name="script without schema"),
    Case(lambda i: ["--script", str(i.folder / "no.json")], 2, ("no.json",), name="script missing"),
    Case(lambda _: ["--runtime", "openai"], 2, ("--base-url",), name="no address"),
    Case(
        lambda _: ["--hardware-sidecar-profile", "nope"],
        2,
        ("nope", "it has: amd, cpu, nvidia"),
        name="unknown sidecar profile",
    ),
    Case(lambda _: ["--cooldown-target-c", "50"], 2, ("does nothing without guard", "--guard"), name="guard limit without guard"),
    Case(lambda _: ["--cooldown-target-c", "nan"], 2, ("--cooldown-target-c", "nan"), name="cooldown target NaN"),
    Case(lambda _: ["--cooldown-target-c", "-5"], 2, ("--cooldown-target-c", "-5"), name="cooldown target negative"),
    Case(
        lambda i: i.matrix(f'{{{GOOD_MATRIX}, "baselines": false, "baseline_ref": "x"}}'),
        2,
        ("baseline_ref", "does nothing without baselines"),
        name="baseline reference without baselines",
    ),
    Case(lambda _: ["--runtime", "openai", "--base-url", "ftp://h"], 2, ("--base-url",), name="address of another protocol"),
]


def refused(words: list[str], code: int, says: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a sweep that must refuse; check the message and return it."""
    assert main(["sweep", *words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("fewbits sweep: ") == 1
    assert said.err.startswith("fewbits sweep: ")
    assert "Traceback" not in said.err
    for words_of_message in says:
        assert words_of_message in said.err
    return said.err


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.setenv("FEWBITS_CACHE", str(tmp_path / "cache"))
    return Inputs(tmp_path)


def files_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(case: Case, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    words = inputs.words(case.change(inputs))
    before = files_of(inputs.folder)
    error = refused(words, case.code, case.says, capsys)
    assert error.count("problem") <= 1 or "1 problem:" in error
    assert files_of(inputs.folder) == before


def test_the_good_inputs_are_good(inputs: Inputs) -> None:
    assert main(["sweep", *inputs.words([])]) == 0


def test_all_problems_come_at_once(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    words = inputs.words(["--runs", "0", "--threads", "9999", "--temperature", "nan", "--seed", "x"])
    refused(words, 2, ("4 problems:", "--runs", "--threads", "--temperature", "--seed"), capsys)


class TestServers:
    @pytest.fixture
    def serve(self) -> Iterator[Callable[[str, str], str]]:
        """Start a server that lists one model and answers under another name; returns its address."""
        servers: list[ThreadingHTTPServer] = []

        def start(listed: str, answering: str) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.reply("application/json", json.dumps({"object": "list", "data": [{"id": listed}]}).encode())

                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers["Content-Length"]))
                    choice = {"index": 0, "delta": {"content": "1"}, "finish_reason": "stop"}
                    usage = {"prompt_tokens": 3, "completion_tokens": 1}
                    row = {"model": answering, "choices": [choice], "usage": usage}
                    self.reply("text/event-stream", b"data: " + json.dumps(row).encode() + b"\n\ndata: [DONE]\n\n")

                def reply(self, kind: str, body: bytes) -> None:
                    self.send_response(200)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class has
                    """Keep stderr for what is tested."""

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start
        for server in servers:
            server.shutdown()
            server.server_close()

    @pytest.mark.parametrize("runtime", ["openai", "ollama"])
    def test_absent(self, runtime: str, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        words = inputs.words(["--runtime", runtime, "--base-url", f"http://127.0.0.1:{port}"])
        refused(words, 3, (f"server at http://127.0.0.1:{port}", "Start it", "--base-url"), capsys)
        assert unwritten(inputs)

    def test_has_not_the_model(
        self, serve: Callable[[str, str], str], inputs: Inputs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = inputs.words(["--runtime", "openai", "--base-url", serve("other", "other"), "--model-id", "mine"])
        refused(words, 3, ("no model 'mine'", "other"), capsys)
        assert unwritten(inputs)

    def test_answers_as_another_model(
        self, serve: Callable[[str, str], str], inputs: Inputs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        address = serve("mine", "impostor")
        words = inputs.words(["--runtime", "openai", "--base-url", address, "--model-id", "mine"])
        assert main(["sweep", *words]) == 2
        said = capsys.readouterr()
        assert "impostor" in said.err.splitlines()[-1]
        assert "Traceback" not in said.err
        journal = inputs.out / "trials.jsonl"
        assert not journal.exists() or journal.read_bytes() == b""
        assert not (inputs.out / "sweep_summary.json").exists()

    def test_the_same_server_honest_is_measured(self, serve: Callable[[str, str], str], inputs: Inputs) -> None:
        address = serve("mine", "mine")
        assert main(["sweep", *inputs.words(["--runtime", "openai", "--base-url", address, "--model-id", "mine"])]) == 0
        rows = [json.loads(line) for line in (inputs.out / "trials.jsonl").read_text().splitlines()]
        assert {row["phase"]: row["adherence_score"] for row in rows} == {"matrix": 1.0, "determinism": 1.0}


def unwritten(inputs: Inputs) -> bool:
    """Whether neither a plan nor a journal was begun."""
    return not any((inputs.out / name).exists() for name in ("plan.json", "trials.jsonl", "canary.jsonl", "manifests"))
