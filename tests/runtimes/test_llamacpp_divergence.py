"""The logits worker and its caller, without an engine; the real one at the end, on the packaged model."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from fewbits.core.engines import EngineTool
from fewbits.core.errors import BackendError, FewbitsError
from fewbits.core.process import CommandResult
from fewbits.records.divergence import DivergenceMethod, DivergencePolicy, DivergenceReason
from fewbits.records.plan import Controls
from fewbits.records.variant import Variant
from fewbits.runtimes.base import DivergenceJob, DivergenceMeter, DivergenceUnavailableError, floor_windows
from fewbits.runtimes.llamacpp import divergence, logits_worker
from fewbits.runtimes.llamacpp.divergence import LlamaCppMeter
from fewbits.runtimes.llamacpp.logits_worker import Model, RefusedError, audited, compare, scored_positions, teach
from fewbits.runtimes.registry import create_divergence_meter
from fewbits.workloads.text.evaluation import open_evaluation_text

VOCABULARY, WINDOW, WINDOWS, TOP_K = 60, 33, 5, 7
POSITIONS = 16


class FakeModel:
    """Logits drawn from a seed; the same windows for every model."""

    n_vocab = VOCABULARY

    def __init__(self, seed: int, *, noise: float = 0.0, tokens: str = "a") -> None:
        self._seed, self._noise, self._tokens = seed, noise, tokens

    def vocabulary_digest(self) -> str:
        return self._tokens

    def windows(self, text: str, tokens_each: int, wanted: int) -> npt.NDArray[np.int32]:
        return np.random.default_rng(0).integers(0, VOCABULARY, (wanted, tokens_each)).astype(np.int32)

    def logits(self, window: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.float32]]:
        rng, other = np.random.default_rng([self._seed, int(window[1])]), np.random.default_rng(9)
        for _ in range(scored_positions(len(window))):
            values = rng.normal(0, 3, VOCABULARY) + self._noise * other.normal(0, 1, VOCABULARY)
            yield values.astype(np.float32)


def fake(seed: int, **changes: Any) -> Any:
    return FakeModel(seed, **changes)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    (tmp_path / "text").write_bytes(b"text")
    output = tmp_path / "teacher.npz"
    options = {"text": str(tmp_path / "text"), "output": str(output), "window_tokens": WINDOW, "windows": WINDOWS}
    assert teach(fake(1), options | {"top_k": TOP_K}) == {"windows": WINDOWS}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher.npz", "text"]
    return output


def compared(model: Any, teacher: Path, windows: int = WINDOWS) -> dict[str, Any]:
    answer = compare(model, {"teacher": str(teacher), "windows": windows})
    return dict(json.loads(json.dumps(answer)))


def all_logits(seed: int, noise: float = 0.0) -> list[npt.NDArray[np.float64]]:
    windows = FakeModel(seed).windows("", WINDOW, WINDOWS)
    return [np.array(list(FakeModel(seed, noise=noise).logits(window)), dtype=np.float64) for window in windows]


class TestWorker:
    def test_the_teacher_is_the_same_file_every_time_and_needs_no_pickle(self, teacher: Path, tmp_path: Path) -> None:
        again = tmp_path / "again.npz"
        options = {"text": str(tmp_path / "text"), "output": str(again), "window_tokens": WINDOW, "windows": WINDOWS}
        teach(fake(1), options | {"top_k": TOP_K})
        assert again.read_bytes() == teacher.read_bytes()
        with np.load(teacher, allow_pickle=False) as arrays:
            assert arrays["0/ids"].shape == arrays["0/logits"].shape == (POSITIONS, TOP_K)
            assert arrays["windows"].shape == (WINDOWS, WINDOW)
            audits = [arrays[f"{number}/audit"].shape for number in range(WINDOWS)]
        assert sum(rows for rows, _ in audits) == logits_worker.AUDIT_POSITIONS
        assert {columns for _, columns in audits} == {VOCABULARY}

    def test_the_same_model_does_not_diverge(self, teacher: Path) -> None:
        answer = compared(fake(1), teacher)
        assert {value for window in answer["windows"] for value in window["kl_nats"]} == {0.0}
        assert [window["same_top"] for window in answer["windows"]] == [POSITIONS] * WINDOWS
        assert all(window["reference_nll_nats"] == window["variant_nll_nats"] for window in answer["windows"])
        assert answer["audit"] == {"positions": 32, "compact_nats": 0.0, "exact_nats": 0.0}

    def test_another_model_diverges_by_what_the_formulas_say(self, teacher: Path) -> None:
        answer = compared(fake(1, noise=0.5), teacher)
        windows = FakeModel(1).windows("", WINDOW, WINDOWS)
        exact, nll, tops = [], [], []
        for p, q, window in zip(all_logits(1), all_logits(1, noise=0.5), windows, strict=True):
            log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
            exact.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
            nll.append(-log_q[np.arange(POSITIONS), window[WINDOW // 2 + 1 :]].sum())
            tops.append(int((p.argmax(axis=1) == q.argmax(axis=1)).sum()))
        found = np.array([window["kl_nats"] for window in answer["windows"]])
        assert (found <= np.array(exact) + 1e-9).all()
        assert found.mean() > 0.5 * np.mean(exact)
        assert [window["same_top"] for window in answer["windows"]] == tops
        assert [window["variant_nll_nats"] for window in answer["windows"]] == pytest.approx(nll, rel=1e-5)
        chosen = [(number, position) for number, row in audited(WINDOWS, POSITIONS).items() for position in row]
        assert answer["audit"]["exact_nats"] == pytest.approx(np.mean([exact[n][p] for n, p in chosen]), rel=1e-5)
        assert answer["audit"]["compact_nats"] == pytest.approx(np.mean([found[n][p] for n, p in chosen]), rel=1e-5)

    def test_fewer_windows_are_the_first_ones(self, teacher: Path) -> None:
        whole, part = compared(fake(2), teacher), compared(fake(2), teacher, windows=2)
        assert part["windows"] == whole["windows"][:2]
        assert 0 < part["audit"]["positions"] < 32

    def test_other_tokens_are_refused(self, teacher: Path) -> None:
        with pytest.raises(RefusedError, match="not the reference's") as caught:
            compared(fake(1, tokens="b"), teacher)
        assert caught.value.reason in set(DivergenceReason)

    def test_another_schema_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "old.npz"
        np.savez(path, schema=np.array("fewbits.teacher.v0"))
        with pytest.raises(ValueError, match=r"fewbits\.teacher\.v1"):
            compared(fake(1), path)

    @pytest.mark.parametrize(("windows", "positions"), [(1, 3), (2, 16), (16, 127), (1000, 4000)])
    def test_audited_positions_are_spread_over_all(self, windows: int, positions: int) -> None:
        found = audited(windows, positions)
        chosen = [number * positions + position for number, row in found.items() for position in row]
        assert len(chosen) == min(32, windows * positions)
        assert chosen == sorted(set(chosen))
        assert (chosen[0], chosen[-1]) == (0, windows * positions - 1)
        assert max(found) < windows
        assert max(np.diff(chosen)) <= math.ceil(windows * positions / 31) + 1

    @pytest.mark.parametrize(("tokens", "first", "count"), [(256, 128, 127), (33, 16, 16), (32, 16, 15)])
    def test_scored_positions_are_llama_perplexity_s(self, tokens: int, first: int, count: int) -> None:
        assert logits_worker.first_scored(tokens) == first
        assert scored_positions(tokens) == count


class TestWindows:
    def model(self, count: int, *, add_bos: bool) -> Model:
        model = object.__new__(Model)
        model._vocabulary = SimpleNamespace(
            tokenize=lambda text, add_special, parse_special: list(range(100, 100 + count)),
            get_add_bos=lambda: add_bos,
            token_bos=lambda: 1,
        )
        return model

    def test_the_first_windows_of_the_text(self) -> None:
        cut = self.model(1000, add_bos=False).windows("x", 32, 4)
        assert cut.shape == (4, 32)
        assert cut.ravel().tolist() == list(range(100, 228))

    def test_a_beginning_of_text_token_replaces_the_first_of_each_window(self) -> None:
        cut = self.model(1000, add_bos=True).windows("x", 32, 4)
        assert cut[:, 0].tolist() == [1] * 4
        assert cut[:, 1].tolist() == [101, 133, 165, 197]

    def test_a_short_text_gives_what_it_has_but_at_least_two_windows(self) -> None:
        assert len(self.model(100, add_bos=False).windows("x", 32, 16)) == 3
        with pytest.raises(RefusedError, match="has 63 tokens; 2 windows of 32 need 64"):
            self.model(63, add_bos=False).windows("x", 32, 16)


@pytest.fixture
def job(tmp_path: Path) -> DivergenceJob:
    path = tmp_path / "words.txt"
    path.write_text("some words")
    return job_of(str(path), DivergencePolicy(text=str(path), windows=12, window_tokens=64, top_k=9))


def job_of(text: str, policy: DivergencePolicy) -> DivergenceJob:
    opened = open_evaluation_text(text)
    assert opened is not None
    return DivergenceJob(opened[1], opened[0], policy, Controls(threads=2), load_timeout_seconds=60, timeout_seconds=120)


@pytest.fixture
def tool(tmp_path: Path) -> EngineTool:
    return EngineTool(name="cyllama", kind="wheel", path=tmp_path, version="cyllama 1.2", sha256="f" * 64)


class TestMeter:
    @pytest.fixture
    def answers(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
        """Replace the child by its answer; returns the list of what it was asked."""

        def answer(
            stdout: str = "", *, returncode: int | None = 0, stderr: str = "", timed_out: bool = False
        ) -> list[dict[str, Any]]:
            asked: list[dict[str, Any]] = []

            def run(argv: list[str], *, timeout_seconds: float) -> CommandResult:
                asked.append(json.loads(argv[-1]) | {"argv": argv, "timeout": timeout_seconds})
                return CommandResult(tuple(argv), returncode, stdout, stderr, timed_out)

            monkeypatch.setattr(divergence, "run_command", run)
            return asked

        return answer

    def test_the_worker_is_asked_for_what_the_plan_says(
        self, answers: Any, job: DivergenceJob, tool: EngineTool, file_variant: Variant, tmp_path: Path
    ) -> None:
        meter: DivergenceMeter = LlamaCppMeter(tool)
        asked = answers('{"windows": 12}')
        meter.read_teacher(file_variant, job, tmp_path / "out")
        window = {"kl_nats": [0.1], "same_top": 1, "reference_nll_nats": 2.0, "variant_nll_nats": 2.5}
        answers(json.dumps({"windows": [window] * 3, "audit": None}))
        comparison = meter.compare(file_variant, tmp_path / "out", job)
        floor_asked = answers(json.dumps({"windows": [window] * 3, "audit": None}))
        floor = meter.compare_with_itself(file_variant, tmp_path / "out", job)
        taught = asked[0]
        assert (taught["job"], taught["threads"], taught["windows"], taught["window_tokens"]) == ("teacher", 2, 12, 64)
        assert (taught["top_k"], taught["flash"], taught["timeout"]) == (9, True, 120)
        assert taught["argv"][1:4] == ["-P", "-m", "fewbits.runtimes.llamacpp.logits_worker"]
        assert comparison.detail == "the text has only 3 of the 12 windows asked for"
        assert (floor_asked[0]["threads"], floor_asked[0]["windows"], floor_asked[0]["flash"]) == (1, 3, False)
        assert (floor.threads, comparison.threads) == (1, 2)
        assert "1 instead of 2 threads" in floor.detail

    def test_the_key_covers_everything_that_the_file_depends_on(
        self, job: DivergenceJob, tool: EngineTool, file_variant: Variant
    ) -> None:
        def key(job: DivergenceJob = job, tool: EngineTool = tool, variant: Variant = file_variant) -> str | None:
            return LlamaCppMeter(tool).teacher_key(variant, job)

        def with_job(**changes: Any) -> DivergenceJob:
            names = ("text", "evaluation", "policy", "controls", "load_timeout_seconds", "timeout_seconds")
            return DivergenceJob(**{name: getattr(job, name) for name in names} | changes)

        other = msgspec.structs.replace(file_variant.artifact, sha256="0" * 64)
        keys = [
            key(),
            key(tool=EngineTool("cyllama", "wheel", tool.path, "cyllama 1.3", tool.sha256)),
            key(tool=EngineTool("cyllama", "wheel", tool.path, tool.version, "0" * 64)),
            key(variant=Variant(other, file_variant.path)),
            key(with_job(controls=Controls(threads=1))),
            key(with_job(evaluation=msgspec.structs.replace(job.evaluation, digest="0" * 64))),
            *(
                key(with_job(policy=msgspec.structs.replace(job.policy, **{name: 50})))
                for name in ("windows", "window_tokens", "top_k")
            ),
        ]
        assert len(set(keys)) == len(keys)
        assert key(with_job(timeout_seconds=1.0)) == keys[0]
        nameless = msgspec.structs.replace(file_variant.artifact, sha256=None)
        assert key(variant=Variant(nameless, file_variant.path)) is None

    def test_the_instrument_says_its_version_and_digest(self, job: DivergenceJob, tool: EngineTool) -> None:
        found = LlamaCppMeter(tool).instrument(job)
        assert (found.engine, found.engine_version) == ("cyllama", "cyllama 1.2 (sha256 ffffffffffff)")
        assert (found.method, found.threads, found.top_k) == (DivergenceMethod.FULL_LOGITS, 2, 9)

    def test_without_the_wheel_there_is_no_engine(
        self, monkeypatch: pytest.MonkeyPatch, job: DivergenceJob, file_variant: Variant, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(divergence, "find_wheel", lambda *_: None)
        meter = create_divergence_meter("llamacpp")
        assert meter is not None
        assert meter.instrument(job).engine_version == ""
        assert meter.teacher_key(file_variant, job) is None
        with pytest.raises(DivergenceUnavailableError, match=r"fewbits\[llamacpp\]") as caught:
            meter.read_teacher(file_variant, job, tmp_path / "out")
        assert caught.value.reason is DivergenceReason.NO_ENGINE

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            ({"returncode": -6, "stderr": "GGML_ASSERT failed"}, BackendError, r"(?s)exit code -6.*GGML_ASSERT failed"),
            ({"returncode": None, "timed_out": True, "stderr": "slow"}, BackendError, r"(?s)not done after 120 s.*slow"),
            ({"stdout": "not json"}, BackendError, "cannot be read"),
            ({"stdout": '{"windows": "many"}'}, BackendError, "cannot be read"),
            ({"stdout": '{"refused": "TEXT_TOO_SHORT", "detail": "9 tokens"}'}, DivergenceUnavailableError, "9 tokens"),
        ],
    )
    def test_failures_come_with_the_engine_s_words(
        self,
        answers: Any,
        job: DivergenceJob,
        tool: EngineTool,
        file_variant: Variant,
        tmp_path: Path,
        answer: dict[str, Any],
        error: type[FewbitsError],
        message: str,
    ) -> None:
        answers(**answer)
        with pytest.raises(error, match=message):
            LlamaCppMeter(tool).compare(file_variant, tmp_path / "teacher", job)

    def test_a_runtime_without_probabilities_has_no_meter(self) -> None:
        assert create_divergence_meter("scripted") is None

    @pytest.mark.parametrize(("windows", "floor"), [(2, 2), (8, 2), (16, 4), (1000, 250)])
    def test_the_floor_is_measured_on_a_quarter(self, windows: int, floor: int) -> None:
        assert floor_windows(windows) == floor


@pytest.mark.real
@pytest.mark.xdist_group("engine")
class TestReal:
    """SmolLM2 at several precisions: few, short windows."""

    @pytest.fixture(scope="class")
    @classmethod
    def ladder(cls, packaged_model: Variant) -> dict[str, Variant]:
        from fewbits.core.engines import cache_root
        from fewbits.quantizers.registry import create_quantizer
        from fewbits.store.artifacts import ArtifactCache

        quantizer = create_quantizer("llamacpp", ArtifactCache(cache_root()), threads=2)
        source = quantizer.resolve(packaged_model.artifact.model_id)
        return {tag: quantizer.ensure(source, tag, lambda _: None) for tag in ("F16", "Q8_0", "Q2_K")}

    @pytest.fixture(scope="class")
    @classmethod
    def real_job(cls) -> DivergenceJob:
        return job_of("python-topics", DivergencePolicy(windows=4, window_tokens=128, top_k=2048))

    @pytest.fixture(scope="class")
    @classmethod
    def real_teacher(cls, ladder: dict[str, Variant], real_job: DivergenceJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("teacher") / "teacher.npz"
        LlamaCppMeter().read_teacher(ladder["F16"], real_job, path)
        return path

    def test_fewer_bits_diverge_more_and_the_floor_lies_below(
        self, ladder: dict[str, Variant], real_job: DivergenceJob, real_teacher: Path
    ) -> None:
        meter = LlamaCppMeter()
        means, agreement = {}, {}
        for tag in ("F16", "Q8_0", "Q2_K"):
            found = meter.compare(ladder[tag], real_teacher, real_job)
            values = [value for window in found.windows for value in window.kl_nats]
            assert len(values) == 4 * 63
            means[tag] = float(np.mean(values))
            agreement[tag] = sum(window.same_top for window in found.windows) / len(values)
            assert found.audit is not None
            assert found.audit.compact_nats <= found.audit.exact_nats + 1e-9
        floor = meter.compare_with_itself(ladder["F16"], real_teacher, real_job)
        floor_mean = float(np.mean([value for window in floor.windows for value in window.kl_nats]))
        assert means["F16"] == 0.0
        assert 0 <= floor_mean < means["Q8_0"] / 100
        assert 10 * means["Q8_0"] < means["Q2_K"]
        assert agreement["F16"] == 1.0 > agreement["Q8_0"] > agreement["Q2_K"] > 0.4

    def test_other_tokens_are_told_apart_by_the_whole_vocabulary(
        self, ladder: dict[str, Variant], real_job: DivergenceJob, real_teacher: Path, tmp_path: Path
    ) -> None:
        changed = tmp_path / "teacher.npz"
        with zipfile.ZipFile(real_teacher) as source, zipfile.ZipFile(changed, "w") as target:
            for name in source.namelist():
                if name != "vocabulary.npy":
                    target.writestr(name, source.read(name))
            with target.open("vocabulary.npy", "w") as stream:
                np.lib.format.write_array(stream, np.array("0" * 64))
        with pytest.raises(DivergenceUnavailableError) as caught:
            LlamaCppMeter().compare(ladder["Q8_0"], changed, real_job)
        assert caught.value.reason is DivergenceReason.VOCABULARY_DIFFERS

    def test_a_short_text_and_a_broken_file(self, ladder: dict[str, Variant], tmp_path: Path) -> None:
        text = tmp_path / "short.txt"
        text.write_text("Only a few words.")
        job = job_of(str(text), DivergencePolicy(text=str(text), windows=2, window_tokens=32))
        with pytest.raises(DivergenceUnavailableError, match="tokens; 2 windows of 32 need 64"):
            LlamaCppMeter().read_teacher(ladder["Q2_K"], job, tmp_path / "out")
        broken = tmp_path / "broken.gguf"
        path = ladder["Q2_K"].path
        assert path is not None
        broken.write_bytes(path.read_bytes()[:5_000_000])
        with pytest.raises(BackendError, match="exit code"):
            LlamaCppMeter().read_teacher(Variant(ladder["Q2_K"].artifact, broken), job, tmp_path / "out")
        assert not (tmp_path / "out").exists()
