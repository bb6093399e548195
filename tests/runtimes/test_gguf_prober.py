"""The persistent prober, with a stand-in for its child; the real one at the end, on the packaged model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.quantizers.llamacpp.gguf_file import read_gguf
from fewbits.records.divergence import DivergencePolicy
from fewbits.records.plan import Controls
from fewbits.records.variant import Variant
from fewbits.runtimes.base import DivergenceJob
from fewbits.runtimes.llamacpp import logits_worker, probe
from fewbits.runtimes.llamacpp.divergence import LlamaCppMeter
from fewbits.runtimes.llamacpp.probe import GgufProber
from fewbits.workloads.text.evaluation import open_evaluation_text

# Answers as the file's name says; counts how often it was started in `starts`.
STAND_IN = """
import json, os, sys, time
options = json.loads(sys.argv[1])
home = os.path.dirname(options["teacher"])
with open(os.path.join(home, "starts"), "a") as log:
    log.write(json.dumps(options) + "\\n")
if options["teacher"].endswith("bad"):
    sys.exit("no teacher: BadZipFile")
print(json.dumps({"windows": 8}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    name = os.path.basename(request["model"])
    marker = os.path.join(home, name + ".seen")
    if name == "crash" or (name == "once" and not os.path.exists(marker)):
        open(marker, "w").close()
        print("GGML_ASSERT failed", file=sys.stderr)
        os.abort()
    if name == "slow":
        time.sleep(60)
    if name == "noise":
        print("not json", flush=True)
        continue
    if name == "tokens":
        print(json.dumps({"refused": "VOCABULARY_DIFFERS", "detail": "other tokens"}), flush=True)
        continue
    count = request["windows"] - (name == "few")
    rows = [{"kl_nats": [request["first"] + n + 0.5], "same_top": 1, "reference_nll_nats": 1.0, "variant_nll_nats": 2.0}
            for n in range(count)]
    print(json.dumps({"windows": rows, "audit": None}), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stand_in_worker.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "_WORKER", "stand_in_worker")
    monkeypatch.setattr(probe, "find_wheel", lambda *_: object())
    return tmp_path


@pytest.fixture
def prober(home: Path) -> Iterator[GgufProber]:
    with GgufProber(home / "teacher", threads=3, window_tokens=64, timeout_seconds=20) as prober:
        yield prober


def starts(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "starts").read_text().splitlines()]


def test_one_child_answers_every_request(home: Path, prober: GgufProber) -> None:
    assert prober.pid == 0
    assert prober.windows == 8
    first = prober.compare(home / "a", 0, 2)
    later = prober.compare(home / "b", 5, 3)
    assert [row.kl_nats for row in (*first, *later)] == [(0.5,), (1.5,), (5.5,), (6.5,), (7.5,)]
    asked = starts(home)
    assert len(asked) == 1
    assert (asked[0]["job"], asked[0]["threads"], asked[0]["window_tokens"]) == ("probe", 3, 64)
    pid = prober.pid
    prober.close()
    assert not psutil.pid_exists(pid)


def test_a_crash_is_tried_once_more(home: Path, prober: GgufProber) -> None:
    assert prober.compare(home / "once", 1, 1)[0].kl_nats == (1.5,)
    assert len(starts(home)) == 2
    with pytest.raises(BackendError, match=r"(?s)died while reading crash, 2 times.*exit code -6.*GGML_ASSERT failed"):
        prober.compare(home / "crash", 0, 1)
    assert len(starts(home)) == 3
    assert prober.compare(home / "good", 0, 1)[0].kl_nats == (0.5,)


@pytest.mark.parametrize(
    ("name", "message"),
    [("noise", "cannot be read"), ("tokens", "other tokens"), ("few", "compared 1 windows instead of 2")],
)
def test_bad_answers(home: Path, prober: GgufProber, name: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        prober.compare(home / name, 0, 2)
    assert prober.compare(home / "good", 0, 1)


def test_a_slow_model_is_ended(home: Path) -> None:
    with GgufProber(home / "teacher", threads=1, window_tokens=64, timeout_seconds=1) as prober:
        assert prober.windows == 8
        pid = prober.pid
        with pytest.raises(BackendError, match="not done after 1 s"):
            prober.compare(home / "slow", 0, 1)
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 0), (7, 2), (0, 9)])
def test_windows_that_are_not_there(home: Path, prober: GgufProber, first: int, count: int) -> None:
    with pytest.raises(SpecError, match="the text has 8"):
        prober.compare(home / "a", first, count)


def test_a_teacher_that_cannot_be_read(home: Path) -> None:
    prober = GgufProber(home / "bad", threads=1, window_tokens=64, timeout_seconds=20)
    with prober, pytest.raises(BackendError, match=r"(?s)could not read the teacher.*BadZipFile"):
        prober.compare(home / "a", 0, 1)


def test_without_the_wheel(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_wheel", lambda *_: None)
    with pytest.raises(PrerequisiteError, match=r"fewbits\[llamacpp\]"):
        GgufProber(home / "t", threads=1, window_tokens=64, timeout_seconds=5).compare(home / "a", 0, 1)


class FakeModel:
    """The same logits for every path but for noise that the path's name asks for; remembers what was closed."""

    closed: list[str] = []  # noqa: RUF012 - reset by the test
    n_vocab = 60

    def __init__(self, path: str, threads: int, window_tokens: int, *, flash: bool) -> None:
        self._path = path

    def close(self) -> None:
        self.closed.append(self._path)

    def vocabulary_digest(self) -> str:
        return "other" if self._path == "tokens" else "a"

    def windows(self, text: str, tokens_each: int, wanted: int) -> npt.NDArray[np.int32]:
        return np.random.default_rng(0).integers(0, 60, (wanted, tokens_each)).astype(np.int32)

    def logits(self, window: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.float32]]:
        random = np.random.default_rng([len(self._path), int(window[1])])
        for _ in range(logits_worker.scored_positions(len(window))):
            yield random.normal(0, 3, 60).astype(np.float32)


def test_the_worker_gives_the_rows_of_compare_and_frees_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeModel.closed = []
    monkeypatch.setattr(logits_worker, "Model", FakeModel)
    (tmp_path / "text").write_bytes(b"text")
    teacher = str(tmp_path / "teacher.npz")
    model: Any = FakeModel("teacher", 1, 33, flash=True)
    options = {"text": str(tmp_path / "text"), "output": teacher, "window_tokens": 33, "windows": 5, "top_k": 7}
    logits_worker.teach(model, options)
    requests = [{"model": name, "first": 2, "windows": 3} for name in ("other", "tokens", "another")]
    out = io.StringIO()
    asked = {"teacher": teacher, "threads": 1, "window_tokens": 33, "flash": True}
    logits_worker.probe(asked, [json.dumps(row) for row in requests], out)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert answers[0] == {"windows": 5}
    assert answers[2] == {"refused": "VOCABULARY_DIFFERS", "detail": "the variant's tokens are not the reference's"}
    assert FakeModel.closed == ["other", "tokens", "another"]
    for name, answer in (("other", answers[1]), ("another", answers[3])):
        compared: Any = FakeModel(name, 1, 33, flash=True)
        whole = logits_worker.compare(compared, {"teacher": teacher, "windows": 5})
        assert answer["windows"] == json.loads(json.dumps(whole["windows"][2:]))


@pytest.mark.real
@pytest.mark.xdist_group("engine")
class TestReal:
    def test_same_numbers_as_compare_a_bad_file_and_memory(self, packaged_model: Variant, tmp_path: Path) -> None:
        text = open_evaluation_text("python-topics")
        assert text is not None
        policy = DivergencePolicy(windows=3, window_tokens=64, top_k=256)
        job = DivergenceJob(text[1], text[0], policy, Controls(threads=2), load_timeout_seconds=60, timeout_seconds=120)
        teacher = tmp_path / "teacher.npz"
        path = packaged_model.path
        assert path is not None
        LlamaCppMeter().read_teacher(packaged_model, job, teacher)
        other = tmp_path / "other.gguf"
        self.graft(path, other)
        expected = LlamaCppMeter().compare(Variant(packaged_model.artifact, other), teacher, job).windows
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(path.read_bytes()[:5_000_000])
        with GgufProber(teacher, threads=2, window_tokens=64, timeout_seconds=60) as prober:
            assert prober.compare(other, 0, 3) == expected
            assert prober.compare(other, 1, 1) == expected[1:2]
            with pytest.raises(BackendError, match=r"died while reading broken\.gguf, 2 times"):
                prober.compare(broken, 0, 1)
            assert prober.compare(path, 2, 1)[0].kl_nats == (0.0,) * 31
            child = psutil.Process(prober.pid)
            before = child.memory_info().rss
            for _ in range(10):
                prober.compare(other, 0, 1)
            # ten models that were not freed would add a gigabyte; which pages of a mapped file stay is up to the system
            assert child.memory_info().rss < before + 250e6

    def graft(self, source: Path, output: Path) -> None:
        """Another model of the same tokens: the blocks of one tensor have changed places."""
        file = read_gguf(source)
        tensor = next(row for row in file.tensors if row.name == "blk.20.ffn_down.weight")
        data = bytearray(source.read_bytes())
        start = file.header.data_start + tensor.offset
        block = tensor.kind.bytes
        moved = data[start : start + tensor.bytes]
        data[start : start + tensor.bytes] = moved[block:] + moved[:block]
        output.write_bytes(data)
