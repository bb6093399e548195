"""What is particular to servers that hold the model already: OpenAI-compatible ones and Ollama."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fewbits.core.errors import BackendError, IdentityError, PrerequisiteError, ProtocolError
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import Variant
from fewbits.runtimes.ollama.catalogue import Details, Model, find_model
from fewbits.runtimes.ollama.runtime import OllamaRuntime
from fewbits.runtimes.openai.runtime import OpenAIRuntime, reported_quantization
from fewbits.runtimes.registry import create_runtime

Serve = Callable[[Callable[[str, str, dict[str, Any]], Any]], Any]
MakeVariant = Callable[..., Variant]


def openai_route(wire: Any, rows: list[dict[str, Any]], chat: Callable[[dict[str, Any]], Any]) -> Any:
    return lambda _m, where, body: wire.as_json({"data": rows}) if where == "/v1/models" else chat(body)


class TestOpenAI:
    def test_a_server_that_cannot_stream(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls, request_5: GenerateRequest
    ) -> None:
        answer = {"model": "tiny", "choices": [{"message": {"content": "5"}, "finish_reason": "stop"}]}
        server = serve(openai_route(wire, [{"id": "tiny"}], lambda _: wire.as_json(answer)))
        session = OpenAIRuntime(f"{server.url}/v1").open(make_variant(), controls, 5)
        reply = session.generate(request_5, 5)
        session.verify_reply(reply)
        assert (reply.text, reply.streamed, reply.first_output_seconds, reply.predicted_ms) == ("5", False, None, None)

    def test_llama_cpp_behind_it_is_told_not_to_cache(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls, request_5: GenerateRequest
    ) -> None:
        for owner, expected in (("llamacpp", False), ("somebody", None)):
            server = serve(openai_route(wire, [{"id": "tiny", "owned_by": owner}], lambda _: wire.openai_chat("ok", "tiny")))
            session = OpenAIRuntime(f"{server.url}/v1").open(make_variant(), controls, 5)
            session.generate(request_5, 5)
            assert session.engine == f"openai:{owner}"
            assert server.requests[-1][2].get("cache_prompt") is expected

    def test_an_alias_may_answer(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls, request_5: GenerateRequest
    ) -> None:
        rows = [{"id": "tiny-2024", "aliases": ["tiny"]}]
        server = serve(openai_route(wire, rows, lambda _: wire.openai_chat("ok", "tiny-2024")))
        session = OpenAIRuntime(f"{server.url}/v1").open(make_variant(), controls, 5)
        session.verify_reply(session.generate(request_5, 5))

    def test_a_reply_without_a_name_proves_nothing(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls, request_5: GenerateRequest
    ) -> None:
        answer = {"choices": [{"message": {"content": "5"}, "finish_reason": "stop"}]}
        server = serve(openai_route(wire, [{"id": "tiny"}], lambda _: wire.as_json(answer)))
        session = OpenAIRuntime(f"{server.url}/v1").open(make_variant(), controls, 5)
        with pytest.raises(IdentityError, match="names no model"):
            session.verify_reply(session.generate(request_5, 5))

    def test_the_key_comes_from_the_environment_and_goes_only_into_the_header(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEWBITS_API_KEY", "sk-1234567\n")
        server = serve(openai_route(wire, [{"id": "tiny"}], lambda _: wire.openai_chat("error", "tiny")))
        session = create_runtime("openai", base_url=f"{server.url}/v1").open(make_variant(), controls, 5)
        assert "Authorization: Bearer sk-1234567\r\n" in server.heads[0]
        with pytest.raises(BackendError) as caught:
            session.generate(GenerateRequest(prompt="p", seed=1, temperature=0, max_tokens=1), 5)
        assert "sk-1234567" not in str(caught.value) + repr(session)

    def test_absent_server_and_absent_model_say_what_to_do(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls
    ) -> None:
        server = serve(openai_route(wire, [{"id": "a"}, {"id": "b"}], lambda _: []))
        runtime = OpenAIRuntime(f"{server.url}/v1")
        with pytest.raises(PrerequisiteError, match=r"no model 'tiny'.*offers: a, b"):
            runtime.open(make_variant(), controls, 5)
        server.close()
        with pytest.raises(PrerequisiteError, match=r"no server at .*Start it with"):
            runtime.open(make_variant(), controls, 5)

    def test_a_listing_that_is_none(self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls) -> None:
        server = serve(lambda *_: wire.as_json({"models": 3}))
        with pytest.raises(ProtocolError, match="`data` list"):
            OpenAIRuntime(f"{server.url}/v1").open(make_variant(), controls, 5)

    def test_a_reported_quantization_must_match(self, serve: Serve, wire: Any) -> None:
        rows = [{"id": "tiny", "meta": {"ftype": "Q4_K - Medium", "n_params": 7, "size": 3}}]
        runtime = OpenAIRuntime(f"{serve(openai_route(wire, rows, lambda _: [])).url}/v1")
        artifact = runtime.artifact_for("tiny", "Q4_K_M")
        assert (artifact.bytes, artifact.weights, artifact.bits_per_weight, artifact.sha256) == (None, None, None, None)
        assert artifact.parameters == {"reported_weights": 7, "reported_bytes": 3}
        with pytest.raises(IdentityError, match="as Q4_K_M, not Q8_0"):
            runtime.artifact_for("tiny", "Q8_0")

    @pytest.mark.parametrize(
        ("ftype", "expected"),
        [
            ("Q4_K - Medium", "Q4_K_M"),
            ("Q3_K - Large", "Q3_K_L"),
            ("Q2_K - Medium", "Q2_K"),
            ("Q8_0", "Q8_0"),
            ("all F32", "F32"),
            ("IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
            ("unknown, may not work", None),
            ("Q4_0 (guessed)", None),
            ("", None),
            (None, None),
        ],
    )
    def test_spellings_of_quantization(self, ftype: str | None, expected: str | None) -> None:
        assert reported_quantization({"meta": {"ftype": ftype}}) == expected


def pulled(name: str, level: str | None, digest: str | None = None) -> Model:
    return Model(name=name, digest=digest or name, details=Details(quantization_level=level))


class TestOllamaNames:
    MODELS = (
        pulled("qwen2.5-coder:7b", "Q4_K_M", "d1"),
        pulled("qwen2.5-coder:7b-instruct-q4_K_M", "Q4_K_M", "d1"),
        pulled("qwen2.5-coder:7b-instruct-q8_0", "Q8_0", "d2"),
        pulled("qwen2.5-coder:7b2-q8_0", "Q8_0", "d3"),
        pulled("tiny:latest", "F16"),
        pulled("liar:q8_0", "Q4_0"),
    )

    @pytest.mark.parametrize(
        ("model_id", "scheme", "expected"),
        [
            ("qwen2.5-coder:7b", "Q8_0", "qwen2.5-coder:7b-instruct-q8_0"),
            ("qwen2.5-coder:7b", "Q4_K_M", "qwen2.5-coder:7b"),
            ("qwen2.5-coder", "Q4_K_M", "qwen2.5-coder:7b"),
            ("tiny", "F16", "tiny:latest"),
            ("qwen2.5-coder:7b-instruct-q8_0", "q8_0", "qwen2.5-coder:7b-instruct-q8_0"),
        ],
    )
    def test_found(self, model_id: str, scheme: str, expected: str) -> None:
        assert find_model(self.MODELS, model_id, scheme).name == expected
        assert find_model(self.MODELS[::-1], model_id, scheme).name == expected

    def test_absent_names_the_pull_and_what_is_there(self) -> None:
        with pytest.raises(PrerequisiteError, match=r"pulled: .*7b \(Q4_K_M\).*ollama pull qwen2.5-coder:7b-q5_k_m"):
            find_model(self.MODELS, "qwen2.5-coder:7b", "Q5_K_M")

    def test_ambiguous_is_never_guessed(self) -> None:
        with pytest.raises(PrerequisiteError, match="several"):
            find_model(self.MODELS, "qwen2.5-coder", "Q8_0")

    def test_a_tag_that_lies_is_an_identity_error(self) -> None:
        with pytest.raises(IdentityError, match="Q4_0"):
            find_model(self.MODELS, "liar:q8_0", "Q8_0")


class TestOllama:
    ENTRY: dict[str, Any] = {  # noqa: RUF012
        "name": "tiny:1b-q8_0",
        "digest": "d" * 64,
        "size": 1000,
        "details": {"quantization_level": "Q8_0", "family": "llama", "parameter_size": "1B"},
    }

    def start(self, serve: Serve, wire: Any, running: list[Any], entries: list[Any]) -> Any:
        def route(method: str, where: str, body: dict[str, Any]) -> Any:
            if where == "/api/chat" and not body["messages"]:
                return wire.as_json({"model": body["model"], "message": {"content": ""}, "done": True})
            return {
                "/api/version": lambda: wire.as_json({"version": "0.9.9"}),
                "/api/tags": lambda: wire.as_json({"models": entries}),
                "/api/ps": lambda: wire.as_json({"models": running}),
                "/api/chat": lambda: wire.ollama_chat("ok", "tiny:1b-q8_0"),
            }[where]()

        return serve(route)

    def test_artifact_and_identity_carry_the_digest(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls
    ) -> None:
        server = self.start(serve, wire, [self.ENTRY | {"context_length": 256}], [self.ENTRY])
        runtime = OllamaRuntime(server.url)
        artifact = runtime.artifact_for("tiny:1b", "Q8_0")
        assert artifact.server_digest == "d" * 64
        assert (artifact.bytes, artifact.bits_per_weight) == (None, None)
        assert artifact.parameters["reported_bytes"] == 1000
        session = runtime.open(Variant(artifact=artifact, path=None), controls, 5)
        identity = session.identity()
        assert (identity.proof, identity.server_digest, identity.quantization) == ("server_digest", "d" * 64, "Q8_0")
        assert session.effective_controls().context_size == 256
        # it was loaded before we came
        assert session.init_latency_seconds is None
        assert session.engine_version == "0.9.9"

    def test_loading_and_asking_use_the_same_options(
        self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls, request_5: GenerateRequest
    ) -> None:
        server = self.start(serve, wire, [], [self.ENTRY])
        session = OllamaRuntime(server.url).open(make_variant(model_id="tiny:1b"), controls, 5)
        assert (session.init_latency_seconds or 0) > 0
        reply = session.generate(request_5, 5)
        load, chat = [body["options"] for _, where, body in server.requests if where == "/api/chat"]
        assert load == {"num_ctx": 512, "num_batch": 128, "num_thread": 1}
        assert chat.items() >= (load | {"seed": 7, "temperature": 0, "num_predict": 16, "repeat_penalty": 1.0}).items()
        assert (reply.prompt_ms, reply.predicted_ms) == (8.5, 4.25)
        assert reply.cached_prompt_tokens is None

    @pytest.mark.parametrize(
        "changed",
        [
            {"digest": "e" * 64},
            {"details": {"quantization_level": "Q4_0"}},
            {"details": {}},
            {"name": "another"},
        ],
    )
    def test_a_model_that_changes_under_us_stops(
        self, serve: Serve, wire: Any, controls: Controls, changed: dict[str, Any]
    ) -> None:
        entries = [dict(self.ENTRY)]
        runtime = OllamaRuntime(self.start(serve, wire, [], entries).url)
        artifact = runtime.artifact_for("tiny:1b", "Q8_0")
        session = runtime.open(Variant(artifact=artifact, path=None), controls, 5)
        session.identity()
        entries[0] = self.ENTRY | changed
        with pytest.raises(IdentityError):
            session.identity()

    def test_absent_server(self, serve: Serve, wire: Any, make_variant: MakeVariant, controls: Controls) -> None:
        server = self.start(serve, wire, [], [])
        server.close()
        with pytest.raises(PrerequisiteError, match=r"ollama serve"):
            OllamaRuntime(server.url).open(make_variant(), controls, 5)
