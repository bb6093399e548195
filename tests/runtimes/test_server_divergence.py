"""Divergence from what servers report: the shapes of their answers, how many requests, and every way of having no answer."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewbits.core.errors import BackendError, IdentityError, ProtocolError, StoreError
from fewbits.records.divergence import DivergenceMethod, DivergencePolicy, DivergenceReason, EvaluationText
from fewbits.records.plan import Controls
from fewbits.records.variant import Variant
from fewbits.runtimes.base import DivergenceJob, DivergenceUnavailableError, ReportsLogProbabilities
from fewbits.runtimes.llamacpp.runtime import LlamaCppRuntime
from fewbits.runtimes.ollama.runtime import OllamaRuntime
from fewbits.runtimes.openai.completions import parse_completion
from fewbits.runtimes.openai.runtime import OpenAIRuntime
from fewbits.runtimes.registry import create_divergence_meter
from fewbits.runtimes.scripted.runtime import ScriptedRuntime
from fewbits.runtimes.server_divergence import ServerMeter, ServerTeacher, prefixes

Serve = Callable[[Callable[[str, str, dict[str, Any]], Any]], Any]
MakeVariant = Callable[..., Variant]
WORDS = " ".join(f"word{number}" for number in range(2000))


def job_of(text: str = WORDS, **policy: Any) -> DivergenceJob:
    evaluation = EvaluationText(name="words", digest="d" * 64, bytes=len(text))
    defaults: dict[str, Any] = {"text": "words", "windows": 3, "window_tokens": 64}
    settings = DivergencePolicy(**defaults | policy)
    return DivergenceJob(text, evaluation, settings, Controls(threads=1), load_timeout_seconds=5, timeout_seconds=5)


def distribution(model: str, prompt: str, count: int) -> dict[str, float]:
    """The most likely of 50 tokens: drawn from the prompt, blurred by the model's name (`noise-0` is the reference)."""
    rng = np.random.default_rng(zlib.crc32(prompt.encode()))
    logits = rng.normal(0, 3, 50) + float(model.rpartition("-")[2]) * rng.normal(0, 1, 50)
    logits -= np.log(np.exp(logits).sum())
    return {f" t{token}": float(logits[token]) for token in np.argsort(-logits)[:count]}


def llama_shape(tokens: dict[str, float]) -> dict[str, Any]:
    rows = [
        {"id": zlib.crc32(token.encode()), "token": token, "bytes": None, "logprob": value} for token, value in tokens.items()
    ]
    return {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": rows}]}


def legacy_shape(tokens: dict[str, float]) -> dict[str, Any]:
    return {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": [tokens], "text_offset": [0]}


def openai_server(serve: Serve, wire: Any, shape: Callable[[dict[str, float]], Any] = llama_shape, *, limit: int = 1000) -> Any:
    rows = [{"id": f"noise-{level}", "owned_by": "llamacpp" if shape is llama_shape else "vllm"} for level in (0, 0.1, 1)]

    def route(_method: str, where: str, body: dict[str, Any]) -> Any:
        if where == "/v1/models":
            return wire.as_json({"data": rows})
        assert where == "/v1/completions"
        if body["logprobs"] > limit:
            return wire.as_json({"error": "more log-probabilities than allowed"}, "400 Bad Request")
        tokens = distribution(body["model"], body["prompt"], body["logprobs"])
        return wire.as_json({"model": body["model"], "choices": [{"text": "x", "logprobs": shape(tokens)}]})

    return serve(route)


def ollama_server(serve: Serve, wire: Any, *, log_probabilities: bool = True) -> Any:
    models = {
        name: {"name": name, "digest": digest * 64, "size": 1, "details": {"quantization_level": level}}
        for name, digest, level in (("tiny:f16-0", "a", "F16"), ("tiny:q8_0-1", "b", "Q8_0"))
    }

    def route(_method: str, where: str, body: dict[str, Any]) -> Any:
        if where == "/api/generate":
            assert body["raw"]
            assert body["options"]["num_predict"] == 1
            tokens = distribution(body["model"], body["prompt"], body["top_logprobs"])
            rows = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in tokens.items()]
            reported = {"logprobs": [{"token": "x", "logprob": -0.1, "top_logprobs": rows}]} if log_probabilities else {}
            return wire.as_json({"model": body["model"], "response": "x", "done": True} | reported)
        return {
            "/api/version": lambda: wire.as_json({"version": "0.12.11"}),
            "/api/tags": lambda: wire.as_json({"models": list(models.values())}),
            "/api/ps": lambda: wire.as_json({"models": []}),
            "/api/chat": lambda: wire.as_json({"model": body["model"], "message": {"content": ""}, "done": True}),
        }[where]()

    return serve(route)


def openai_meter(server: Any) -> ServerMeter:
    meter = create_divergence_meter("openai", base_url=f"{server.url}/v1")
    assert isinstance(meter, ServerMeter)
    return meter


class TestPrefixes:
    def test_each_window_gives_eight_beginnings_that_end_before_a_word(self) -> None:
        job = job_of(windows=4, window_tokens=100)
        windows = prefixes(job)
        assert [len(window) for window in windows] == [8] * 4
        for number, window in enumerate(windows):
            start = number * 300
            assert window == sorted(set(window), key=len)
            for prefix in window:
                assert WORDS[start:].startswith(prefix)
                assert WORDS[start + len(prefix)].isspace()
                assert not prefix[-1].isspace()
                assert 150 <= len(prefix) < 300

    def test_requests_are_bounded(self) -> None:
        windows = prefixes(job_of("a b c d e f g h i j " * 50_000, windows=10_000, window_tokens=64))
        assert len(windows) == 32
        assert sum(map(len, windows)) <= 256

    def test_text_without_spaces_still_gives_a_position(self) -> None:
        assert prefixes(job_of("x" * 1000, windows=2)) == [["x" * 192], ["x" * 192]]

    def test_a_short_text_is_told(self) -> None:
        with pytest.raises(DivergenceUnavailableError, match="383 characters; 2 windows need 384") as caught:
            prefixes(job_of(WORDS[:383]))
        assert caught.value.reason is DivergenceReason.TEXT_TOO_SHORT
        assert len(prefixes(job_of(WORDS[:400]))) == 2


@pytest.mark.parametrize("shape", [llama_shape, legacy_shape])
class TestOpenAI:
    def test_more_noise_diverges_more(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, tmp_path: Path, shape: Callable[[dict[str, float]], Any]
    ) -> None:
        meter, job = openai_meter(openai_server(serve, wire, shape)), job_of()
        teacher = tmp_path / "teacher"
        meter.read_teacher(make_variant("noise-0"), job, teacher)
        means = []
        for model in ("noise-0", "noise-0.1", "noise-1"):
            found = meter.compare(make_variant(model), teacher, job)
            assert [len(window.kl_nats) for window in found.windows] == [8] * 3
            assert {(window.reference_nll_nats, window.variant_nll_nats) for window in found.windows} == {(None, None)}
            means.append(np.mean([value for window in found.windows for value in window.kl_nats]))
        assert means[0] == 0.0
        assert 0 < means[1] < means[2] / 5
        floor = meter.compare_with_itself(make_variant("noise-0"), teacher, job)
        assert len(floor.windows) == 2
        assert sum(window.same_top for window in floor.windows) == 16
        instrument = meter.instrument(job)
        assert instrument.method is DivergenceMethod.SERVER_TOP_LOGPROBS
        assert (instrument.threads, instrument.top_k) == (None, 20)
        assert instrument.engine.startswith("openai:")

    def test_a_server_that_allows_five_is_asked_for_five(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, tmp_path: Path, shape: Callable[[dict[str, float]], Any]
    ) -> None:
        server = openai_server(serve, wire, shape, limit=5)
        meter, job = openai_meter(server), job_of()
        meter.read_teacher(make_variant("noise-0"), job, tmp_path / "teacher")
        asked = [body["logprobs"] for _, where, body in server.requests if where == "/v1/completions"]
        assert asked == [20] + [5] * 24
        assert meter.instrument(job).top_k == 5


def test_the_request_is_for_one_greedy_token(serve: Serve, wire: Any, make_variant: MakeVariant, tmp_path: Path) -> None:
    server = openai_server(serve, wire)
    openai_meter(server).read_teacher(make_variant("noise-0"), job_of(), tmp_path / "teacher")
    body = next(body for _, where, body in server.requests if where == "/v1/completions")
    assert {key: body[key] for key in ("max_tokens", "temperature", "logprobs", "cache_prompt")} == {
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 20,
        "cache_prompt": False,
    }


@pytest.mark.parametrize(
    ("answer", "status", "error", "message"),
    [
        ({"model": "noise-0", "choices": [{"text": "x"}]}, "200 OK", DivergenceUnavailableError, "without log-probabilities"),
        ({"model": "noise-0", "choices": []}, "200 OK", DivergenceUnavailableError, "without log-probabilities"),
        ({"error": "no such route"}, "404 Not Found", DivergenceUnavailableError, "no such route"),
        ({"error": "unknown field logprobs"}, "400 Bad Request", BackendError, "unknown field logprobs"),
        ({"error": "out of memory"}, "500 Internal Server Error", BackendError, "out of memory"),
        ({"model": "noise-0", "choices": 5}, "200 OK", ProtocolError, "POST /completions"),
        ({"model": "other", "choices": []}, "200 OK", IdentityError, "comes from 'other'"),
        ({"choices": []}, "200 OK", IdentityError, "names no model"),
    ],
)
def test_every_way_of_not_answering(
    serve: Serve,
    wire: Any,
    make_variant: MakeVariant,
    tmp_path: Path,
    answer: dict[str, Any],
    status: str,
    error: type[Exception],
    message: str,
) -> None:
    def route(_method: str, where: str, body: dict[str, Any]) -> Any:
        return wire.as_json({"data": [{"id": "noise-0"}]}) if where == "/v1/models" else wire.as_json(answer, status)

    meter = openai_meter(serve(route))
    with pytest.raises(error, match=message) as caught:
        meter.read_teacher(make_variant("noise-0"), job_of(), tmp_path / "teacher")
    if isinstance(caught.value, DivergenceUnavailableError):
        assert caught.value.reason is DivergenceReason.NO_LOG_PROBABILITIES
    assert not (tmp_path / "teacher").exists()


class TestOllama:
    def test_tokens_are_known_by_their_bytes(self, serve: Serve, wire: Any, make_variant: MakeVariant, tmp_path: Path) -> None:
        meter = create_divergence_meter("ollama", base_url=ollama_server(serve, wire).url)
        assert meter is not None
        job, teacher = job_of(), tmp_path / "teacher"
        reference = make_variant("tiny", scheme="F16", digest="a" * 64)
        meter.read_teacher(reference, job, teacher)
        first = json.loads(teacher.read_bytes())["windows"][0][0]
        assert len(first) == 20
        assert all(re.fullmatch(r"bytes (?:[0-9a-f]{2})+", key) for key in first)
        found = meter.compare(make_variant("tiny", scheme="Q8_0", digest="b" * 64), teacher, job)
        assert all(value > 0 for window in found.windows for value in window.kl_nats)
        assert (meter.instrument(job).engine, meter.instrument(job).engine_version) == ("ollama", "0.12.11")
        assert meter.teacher_key(reference, job) != meter.teacher_key(make_variant("tiny", digest="c" * 64), job)

    def test_an_older_server_is_told_by_its_answer(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, tmp_path: Path
    ) -> None:
        server = ollama_server(serve, wire, log_probabilities=False)
        meter = ServerMeter(OllamaRuntime(server.url))
        with pytest.raises(DivergenceUnavailableError, match="without log-probabilities") as caught:
            meter.read_teacher(make_variant("tiny", scheme="F16", digest="a" * 64), job_of(), tmp_path / "teacher")
        assert caught.value.reason is DivergenceReason.NO_LOG_PROBABILITIES


def test_a_name_proves_no_weights_so_nothing_is_kept(serve: Serve, wire: Any, make_variant: MakeVariant) -> None:
    assert openai_meter(openai_server(serve, wire)).teacher_key(make_variant("noise-0"), job_of()) is None


def test_a_teacher_of_other_positions_is_refused(serve: Serve, wire: Any, make_variant: MakeVariant, tmp_path: Path) -> None:
    meter, job = openai_meter(openai_server(serve, wire)), job_of()
    teacher = tmp_path / "teacher"
    teacher.write_bytes(b'{"schema_version": "fewbits.server-teacher.v1", "windows": [[{"id 1": -0.5}]]}')
    with pytest.raises(StoreError, match="other positions"):
        meter.compare(make_variant("noise-0"), teacher, job)


def test_a_session_that_reports_nothing(make_variant: MakeVariant, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"schema_version": "fewbits.script.v1", "default": {"text": "x"}}')
    with pytest.raises(DivergenceUnavailableError, match="scripted reports none"):
        ServerMeter(ScriptedRuntime(script)).read_teacher(make_variant(), job_of(), tmp_path / "teacher")


def test_no_answer_is_no_token() -> None:
    empty: list[Any] = [None, {}, {"content": []}, {"content": [{"top_logprobs": []}]}]
    empty += [{"top_logprobs": [None]}, {"top_logprobs": []}]
    for reported in empty:
        assert parse_completion({"choices": [{"logprobs": reported}]}, "t").first_position() is None


@pytest.mark.real
@pytest.mark.xdist_group("engine")
class TestRealServer:
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, packaged_model: Variant) -> Iterator[tuple[ServerMeter, Variant]]:
        controls = Controls(seed=7, threads=2, context_size=512, batch_size=128)
        engine = LlamaCppRuntime().open(packaged_model, controls, 120)
        runtime = OpenAIRuntime(engine.endpoint.with_prefix("/v1").url)
        artifact = runtime.artifact_for(engine.identity().served_name, packaged_model.artifact.scheme)
        yield ServerMeter(runtime), Variant(artifact=artifact, path=None)
        engine.close()

    def test_llama_cpp_reports_what_is_needed(self, server: tuple[ServerMeter, Variant], tmp_path: Path) -> None:
        meter, variant = server
        job = job_of("The quick brown fox jumps over the lazy dog. " * 40, windows=2, window_tokens=32)
        meter.read_teacher(variant, job, tmp_path / "teacher")
        kept = json.loads((tmp_path / "teacher").read_bytes())
        assert kept["schema_version"] == ServerTeacher.__struct_defaults__[0]
        assert [len(window) for window in kept["windows"]] == [8, 8]
        for window in kept["windows"]:
            for position in window:
                assert len(position) == 20
                assert all(key.startswith("id ") for key in position)
                assert 0.1 < sum(math.exp(value) for value in position.values()) <= 1 + 1e-6
        found = meter.compare(variant, tmp_path / "teacher", job)
        assert {value for window in found.windows for value in window.kl_nats} == {0.0}
        assert sum(window.same_top for window in found.windows) == 16

    def test_sessions_show_that_they_can(self, server: tuple[ServerMeter, Variant]) -> None:
        meter, variant = server
        session = meter._runtime.open(variant, Controls(), 10)
        assert isinstance(session, ReportsLogProbabilities)
        assert session.top_log_probabilities("The capital of France is", 3, 30)
