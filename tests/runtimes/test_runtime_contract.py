"""One contract for every runtime: a new backend adds one subclass here."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fewbits.core.errors import BackendError, FewbitsError, IdentityError, ProtocolError, SpecError, TrialTimeoutError
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, Variant
from fewbits.runtimes.base import RuntimeSession
from fewbits.runtimes.http_stream import parse_base_url
from fewbits.runtimes.llamacpp.child import LaunchOptions
from fewbits.runtimes.llamacpp.runtime import LlamaCppRuntime
from fewbits.runtimes.llamacpp.session import LlamaCppSession
from fewbits.runtimes.ollama.runtime import OllamaRuntime
from fewbits.runtimes.openai.runtime import OpenAIRuntime
from fewbits.runtimes.scripted.runtime import ScriptedRuntime

Serve = Callable[[Callable[[str, str, dict[str, Any]], Any]], Any]
Open = Callable[[str], RuntimeSession]


class RuntimeContract:
    """What the sweep relies on. Subclasses provide `open_session(behaviour)`; a behaviour they cannot show is skipped."""

    @pytest.fixture
    def open_session(self) -> Open:
        raise NotImplementedError

    def test_identity_names_what_is_served(self, open_session: Open) -> None:
        identity = open_session("ok").identity()
        assert identity.served_name
        assert identity.proof in {"weights_inode", "model_path", "server_digest", "reported_name"}

    def test_generate_reports_text_counts_and_both_clocks(self, open_session: Open, request_5: GenerateRequest) -> None:
        session = open_session("ok")
        reply = session.generate(request_5, 30)
        session.verify_reply(reply)
        assert reply.text
        assert (reply.prompt_tokens or 0) > 0
        assert (reply.output_tokens or 0) > 0
        assert (reply.prompt_ms or 0) > 0
        assert (reply.predicted_ms or 0) > 0
        assert reply.wall_seconds > 0
        if reply.streamed:
            assert reply.first_output_seconds is not None
            assert 0 < reply.first_output_seconds <= reply.wall_seconds
        else:
            assert reply.first_output_seconds is None
        assert json.loads(json.dumps(reply.raw_usage)) == reply.raw_usage

    def test_a_hang_ends_at_the_timeout(self, open_session: Open, request_5: GenerateRequest) -> None:
        session = open_session("hang")
        started = time.monotonic()
        with pytest.raises(TrialTimeoutError, match=r"within 0\.2 s"):
            session.generate(request_5, 0.2)
        assert time.monotonic() - started < 1.5

    def test_a_dripping_server_ends_at_the_timeout(self, open_session: Open, request_5: GenerateRequest) -> None:
        session = open_session("drip")
        started = time.monotonic()
        with pytest.raises(TrialTimeoutError):
            session.generate(request_5, 0.3)
        assert 0.25 < time.monotonic() - started < 1.5

    def test_a_dead_engine_is_a_backend_error_and_not_alive(self, open_session: Open, request_5: GenerateRequest) -> None:
        session = open_session("dead")
        with pytest.raises(BackendError):
            session.generate(request_5, 5)
        assert not session.is_alive()

    def test_another_model_is_an_identity_error(self, open_session: Open, request_5: GenerateRequest) -> None:
        session = open_session("wrong_model")
        with pytest.raises(IdentityError, match="some-other-model"):
            session.verify_reply(session.generate(request_5, 10))

    def test_missing_counts_and_times_stay_missing(self, open_session: Open, request_5: GenerateRequest) -> None:
        reply = open_session("no_usage_no_timings").generate(request_5, 10)
        assert reply.text
        assert (reply.prompt_tokens, reply.output_tokens, reply.prompt_ms, reply.predicted_ms) == (None, None, None, None)
        assert reply.cached_prompt_tokens is None
        assert reply.raw_usage is None
        assert reply.raw_timings is None

    def test_missing_times_leave_the_counts(self, open_session: Open, request_5: GenerateRequest) -> None:
        reply = open_session("no_timings").generate(request_5, 10)
        assert (reply.prompt_tokens, reply.output_tokens) == (12, 3)
        assert (reply.prompt_ms, reply.predicted_ms) == (None, None)

    def test_zero_tokens_are_zero_not_missing(self, open_session: Open, request_5: GenerateRequest) -> None:
        reply = open_session("zero_tokens").generate(request_5, 10)
        assert reply.text == ""
        assert reply.output_tokens == 0
        assert reply.first_output_seconds is None

    def test_garbage_is_a_protocol_error(self, open_session: Open, request_5: GenerateRequest) -> None:
        with pytest.raises(ProtocolError):
            open_session("garbage").generate(request_5, 10)

    def test_a_huge_reply_is_refused(self, open_session: Open, request_5: GenerateRequest) -> None:
        with pytest.raises(ProtocolError, match="longer than"):
            open_session("huge").generate(request_5, 30)

    def test_a_refusal_carries_what_the_server_said(self, open_session: Open, request_5: GenerateRequest) -> None:
        with pytest.raises(BackendError, match="out of memory"):
            open_session("error").generate(request_5, 10)

    def test_a_cut_stream_is_a_backend_error(self, open_session: Open, request_5: GenerateRequest) -> None:
        with pytest.raises(BackendError):
            open_session("cut").generate(request_5, 10)

    def test_closing_twice_is_fine(self, open_session: Open) -> None:
        session = open_session("ok")
        session.close()
        session.close()

    def test_every_missing_control_has_a_reason(self, open_session: Open) -> None:
        effective = open_session("ok").effective_controls()
        for name in ("seed", "threads", "affinity", "context_size", "temperature", "max_tokens"):
            assert (getattr(effective, name) is None) == (name in effective.unavailable), name


class FakeChild:
    """Stands where the engine's process stands, so that llama.cpp's client meets the same broken servers as the others."""

    name = "llama-server"
    load_seconds = 0.5

    def __init__(self, url: str, alive: bool) -> None:
        self.endpoint = parse_base_url(url)
        self.pid = os.getpid()
        self._alive = alive

    def is_alive(self) -> bool:
        return self._alive

    def ends_soon(self) -> bool:
        return not self._alive

    def log_text(self) -> str:
        return "llama threadpool init, n_threads = 3\n"

    def log_tail(self) -> str:
        return "the last words"

    def died(self, message: str) -> BackendError:
        return BackendError(self.name, message, returncode=-9, tail=self.log_tail())

    def close(self) -> None:
        self._alive = False


class TestLlamaCppClient(RuntimeContract):
    """llama.cpp's client against a server that behaves as told; identity is proved on a file that this process maps."""

    @pytest.fixture
    def open_session(self, serve: Serve, wire: Any, file_variant: Variant) -> Iterator[Open]:
        assert file_variant.path is not None
        path = file_variant.path
        alias = "fewbits-tiny"

        def open_(behaviour: str) -> RuntimeSession:
            def route(method: str, where: str, body: dict[str, Any]) -> Any:
                meta = {"n_params": 1000}
                return {
                    "/props": lambda: wire.as_json({"model_ftype": "Q8_0", "default_generation_settings": {"n_ctx": 512}}),
                    "/v1/models": lambda: wire.as_json({"data": [{"id": alias, "meta": meta}]}),
                    "/slots": lambda: wire.as_json([{"id": 0}]),
                    "/v1/chat/completions": lambda: wire.openai_chat(behaviour, alias),
                }[where]()

            server = serve(route)
            if behaviour == "dead":
                server.close()
            options = LaunchOptions(model=path, alias=alias, threads=3, context_size=512, batch_size=64, cores=None)
            child: Any = FakeChild(server.url, alive=behaviour != "dead")
            return LlamaCppSession(child, file_variant.artifact, options, "1")

        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ):
            yield open_

    def test_death_is_told_with_exit_code_and_last_words(self, open_session: Open, request_5: GenerateRequest) -> None:
        with pytest.raises(BackendError, match=r"(?s)exit code -9.*the last words"):
            open_session("dead").generate(request_5, 5)

    def test_controls_come_from_engine_and_os(self, open_session: Open) -> None:
        effective = open_session("ok").effective_controls()
        assert (effective.threads, effective.context_size) == (3, 512)
        assert effective.affinity == tuple(sorted(os.sched_getaffinity(0)))


class TestOpenAI(RuntimeContract):
    @pytest.fixture
    def open_session(self, serve: Serve, wire: Any, make_variant: Callable[..., Variant], controls: Controls) -> Open:
        def open_(behaviour: str) -> RuntimeSession:
            def route(method: str, where: str, body: dict[str, Any]) -> Any:
                if where == "/v1/models":
                    return wire.as_json({"object": "list", "data": [{"id": "other"}, {"id": "tiny", "object": "model"}]})
                assert where == "/v1/chat/completions"
                return wire.openai_chat(behaviour, "tiny")

            server = serve(route)
            session = OpenAIRuntime(f"{server.url}/v1").open(make_variant(), controls, 5)
            if behaviour == "dead":
                server.close()
            return session

        return open_


class TestOllama(RuntimeContract):
    @pytest.fixture
    def open_session(self, serve: Serve, wire: Any, make_variant: Callable[..., Variant], controls: Controls) -> Open:
        entry = {"name": "tiny:1b-q8_0", "digest": "d" * 64, "size": 1000, "details": {"quantization_level": "Q8_0"}}

        def open_(behaviour: str) -> RuntimeSession:
            def route(method: str, where: str, body: dict[str, Any]) -> Any:
                if where == "/api/chat" and not body["messages"]:
                    return wire.as_json({"model": body["model"], "message": {"content": ""}, "done": True, "done_reason": "load"})
                return {
                    "/api/version": lambda: wire.as_json({"version": "0.9.9"}),
                    "/api/tags": lambda: wire.as_json({"models": [entry]}),
                    "/api/ps": lambda: wire.as_json({"models": []}),
                    "/api/chat": lambda: wire.ollama_chat(behaviour, "tiny:1b-q8_0"),
                }[where]()

            server = serve(route)
            session = OllamaRuntime(server.url).open(make_variant(model_id="tiny:1b"), controls, 5)
            if behaviour == "dead":
                server.close()
            return session

        return open_


class TestScripted(RuntimeContract):
    @pytest.fixture
    def open_session(self, tmp_path: Path, make_variant: Callable[..., Variant], controls: Controls) -> Open:
        counts = {"prompt_tokens": 12, "output_tokens": 3}
        times = {"prompt_ms": 8.5, "predicted_ms": 4.25, "wall_seconds": 0.02, "first_output_seconds": 0.01}
        replies: dict[str, dict[str, Any]] = {
            "ok": {"text": "5", **counts, **times},
            "hang": {"failure": "hang"},
            "dead": {"failure": "crash"},
            "wrong_model": {"text": "5", "served_name": "some-other-model"},
            "no_usage_no_timings": {"text": "5"},
            "no_timings": {"text": "5", **counts},
            "zero_tokens": {"failure": "empty"},
            "garbage": {"failure": "garbage"},
        }

        def open_(behaviour: str) -> RuntimeSession:
            if behaviour not in replies:
                pytest.skip("a script has no wire that could do this")
            path = tmp_path / "script.json"
            path.write_text(json.dumps({"schema_version": "fewbits.script.v1", "default": replies[behaviour]}))
            return ScriptedRuntime(path).open(make_variant(), controls, 5)

        return open_


class RealContract:
    """The part of the contract that a real engine can show, and what only a real one can."""

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, packaged_model: Variant) -> Iterator[RuntimeSession]:
        raise NotImplementedError

    def ask(self, session: RuntimeSession, request: GenerateRequest) -> RawReply:
        reply = session.generate(request, 60)
        session.verify_reply(reply)
        return reply

    def test_identity(self, session: RuntimeSession, packaged_model: Variant) -> None:
        identity = session.identity()
        assert identity.quantization == packaged_model.artifact.scheme

    def test_generate_is_whole_and_repeatable(self, session: RuntimeSession, request_5: GenerateRequest) -> None:
        first, second = (self.ask(session, request_5) for _ in range(2))
        assert first.text
        assert first.text == second.text
        assert first.cached_prompt_tokens == second.cached_prompt_tokens == 0
        assert first.prompt_tokens is not None
        assert first.prompt_tokens > 10
        assert first.output_tokens is not None
        assert 0 < first.output_tokens <= 16
        assert first.prompt_ms is not None
        assert first.predicted_ms is not None
        assert first.streamed
        assert first.first_output_seconds is not None
        # the engine's own clock cannot have run longer than ours
        assert (first.prompt_ms + first.predicted_ms) / 1000 <= first.wall_seconds

    def test_length_limit_is_told(self, session: RuntimeSession) -> None:
        request = GenerateRequest(prompt="Write a long story about a dog.", seed=1, temperature=0.7, max_tokens=4)
        reply = self.ask(session, request)
        assert reply.finish_reason == "length"
        assert reply.output_tokens == 4

    def test_json_schema_is_enforced(self, session: RuntimeSession) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
        request = GenerateRequest(prompt="Say hello.", seed=1, temperature=0, max_tokens=48, json_schema=schema)
        reply = self.ask(session, request)
        assert reply.text.lstrip().startswith("{")
        if reply.finish_reason == "stop":
            assert isinstance(json.loads(reply.text)["n"], int)

    def test_timeout_then_answer(self, session: RuntimeSession, request_5: GenerateRequest) -> None:
        long = GenerateRequest(prompt="Count up from one, for ever.", seed=1, temperature=0.9, max_tokens=400)
        with pytest.raises(TrialTimeoutError):
            session.generate(long, 0.05)
        assert session.is_alive()
        assert self.ask(session, request_5).text

    def test_too_long_a_prompt_is_refused_with_the_reason(self, session: RuntimeSession) -> None:
        request = GenerateRequest(prompt="word " * 2000, seed=1, temperature=0, max_tokens=4)
        with pytest.raises(BackendError, match="context size"):
            session.generate(request, 30)


REAL_CONTROLS = Controls(seed=7, threads=1, context_size=512, batch_size=128, affinity_policy="auto")


@pytest.mark.real
@pytest.mark.xdist_group("engine")
class TestRealLlamaCpp(RealContract):
    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, packaged_model: Variant) -> Iterator[RuntimeSession]:
        opened = LlamaCppRuntime().open(packaged_model, REAL_CONTROLS, 120)
        yield opened
        opened.close()
        opened.close()
        assert opened.process_ids() == ()

    def test_proof_is_the_inode(self, session: RuntimeSession, packaged_model: Variant) -> None:
        identity = session.identity()
        assert identity.proof == "weights_inode"
        assert identity.artifact_sha256 == packaged_model.artifact.sha256
        assert "as in the file" in identity.detail

    def test_another_files_variant_is_refused(self, session: RuntimeSession, packaged_model: Variant, tmp_path: Path) -> None:
        from fewbits.runtimes.llamacpp.identity import prove

        assert packaged_model.path is not None
        twin = tmp_path / "twin.gguf"
        twin.write_bytes(packaged_model.path.read_bytes())
        report = {"model_path": str(packaged_model.path)}
        with pytest.raises(IdentityError, match="not"):
            prove(session.process_ids()[0], twin, packaged_model.artifact, "x", report)

    def test_controls_are_read_back(self, session: RuntimeSession, request_5: GenerateRequest) -> None:
        session.generate(request_5, 60)
        effective = session.effective_controls()
        assert effective.threads == 1
        assert effective.context_size == 512
        assert effective.affinity == tuple(sorted(os.sched_getaffinity(0)))[:1]
        assert (effective.seed, effective.temperature, effective.max_tokens) == (7, 0.0, 16)
        assert effective.unavailable == {}

    def test_listens_on_loopback_only(self, session: RuntimeSession) -> None:
        process = psutil.Process(session.process_ids()[0])
        listening = [row.laddr.ip for row in process.net_connections("inet") if row.status == psutil.CONN_LISTEN]
        assert listening
        assert set(listening) == {"127.0.0.1"}

    def test_init_latency_and_version(self, session: RuntimeSession) -> None:
        assert 0 < (session.init_latency_seconds or 0) < 120
        assert "sha256" in session.engine_version


@pytest.mark.real
@pytest.mark.xdist_group("engine")
class TestRealOpenAI(RealContract):
    """The OpenAI client against a real llama.cpp server."""

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, packaged_model: Variant) -> Iterator[RuntimeSession]:
        engine = LlamaCppRuntime().open(packaged_model, REAL_CONTROLS, 120)
        runtime = OpenAIRuntime(engine.endpoint.with_prefix("/v1").url)
        name = engine.identity().served_name
        artifact = runtime.artifact_for(name, packaged_model.artifact.scheme)
        assert artifact.parameters["reported_weights"] == packaged_model.artifact.weights
        yield runtime.open(Variant(artifact=artifact, path=None), REAL_CONTROLS, 10)
        engine.close()

    def test_another_scheme_is_refused(self, session: RuntimeSession, packaged_model: Variant) -> None:
        wrong = Artifact(model_id="x", scheme="Q8_0", sha256=None, bytes=None, weights=None, bits_per_weight=None)
        from fewbits.runtimes.openai.runtime import require_scheme

        with pytest.raises(IdentityError, match="not Q8_0"):
            require_scheme("x", wrong.scheme, session.identity().quantization)

    def test_context_is_read_back(self, session: RuntimeSession) -> None:
        assert session.effective_controls().context_size == 512
        assert session.process_ids() == ()


@pytest.mark.real
@pytest.mark.xdist_group("engine")
def test_a_killed_engine_is_told_with_its_exit_code(packaged_model: Variant, request_5: GenerateRequest) -> None:
    session = LlamaCppRuntime().open(packaged_model, REAL_CONTROLS, 120)
    try:
        os.kill(session.process_ids()[0], 9)
        with pytest.raises(BackendError, match="exit code -9"):
            session.generate(request_5, 10)
        assert not session.is_alive()
        with pytest.raises(BackendError, match="not running"):
            session.effective_controls()
    finally:
        session.close()


@pytest.mark.real
@pytest.mark.xdist_group("engine")
def test_a_truncated_model_fails_with_the_engines_words(packaged_model: Variant, tmp_path: Path) -> None:
    assert packaged_model.path is not None
    broken = tmp_path / "broken.gguf"
    with packaged_model.path.open("rb") as source:
        broken.write_bytes(source.read(20_000_000))
    with pytest.raises(BackendError, match=r"(?s)could not be loaded.*corrupted or incomplete"):
        LlamaCppRuntime().open(Variant(artifact=packaged_model.artifact, path=broken), REAL_CONTROLS, 60)


@pytest.mark.real
@pytest.mark.xdist_group("engine")
def test_a_load_that_takes_too_long_is_a_backend_error(packaged_model: Variant) -> None:
    with pytest.raises(BackendError, match=r"not loaded within 0\.01 s"):
        LlamaCppRuntime().open(packaged_model, REAL_CONTROLS, 0.01)
    assert [p for p in psutil.Process().children(recursive=True) if "llamacpp" in " ".join(p.cmdline())] == []


def test_opening_without_a_file_is_a_spec_error(make_variant: Callable[..., Variant], controls: Controls) -> None:
    with pytest.raises(SpecError, match="no GGUF file"):
        LlamaCppRuntime().open(make_variant(), controls, 1)
    assert issubclass(SpecError, FewbitsError)
