from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.codec import text_digest
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import Variant
from fewbits.runtimes import placement
from fewbits.runtimes.capabilities import CAPABILITIES
from fewbits.runtimes.extraction.runtime import ExtractionOptions
from fewbits.runtimes.llamacpp.session import threads_from_log
from fewbits.runtimes.onnx.runtime import DetectorOptions
from fewbits.runtimes.registry import capabilities_of, create_runtime, default_ollama_url
from fewbits.runtimes.scripted.runtime import ScriptedRuntime

MakeVariant = Callable[..., Variant]


def ask(prompt: str) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, seed=1, temperature=0, max_tokens=8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write_script(value: dict[str, Any]) -> Path:
        path = tmp_path / "script.json"
        path.write_text(json.dumps({"schema_version": "fewbits.script.v1"} | value))
        return path

    return write_script


class TestScript:
    def test_first_fitting_rule_and_replies_in_turn(self, write: Any, make_variant: MakeVariant, controls: Controls) -> None:
        script = write(
            {
                "rules": [
                    {"prompt_contains": "sum", "schemes": ["Q2_K"], "replies": [{"text": "wrong"}]},
                    {"prompt_contains": "sum", "replies": [{"text": "a"}, {"text": "b"}]},
                    {"prompt_sha256": text_digest("exactly"), "replies": [{"text": "digest"}]},
                ],
                "default": {"text": "else"},
            }
        )
        runtime = ScriptedRuntime(script)
        session = runtime.open(make_variant(scheme="Q8_0"), controls, 5)
        prompts = ["the sum", "a sum", "sum", "exactly", "exactly not"]
        assert [session.generate(ask(p), 1).text for p in prompts] == ["a", "b", "a", "digest", "else"]
        assert runtime.open(make_variant(scheme="Q2_K"), controls, 5).generate(ask("sum"), 1).text == "wrong"

    def test_a_crash_can_be_followed_by_an_answer_after_the_restart(
        self, write: Any, make_variant: MakeVariant, controls: Controls
    ) -> None:
        rules = [{"prompt_contains": "p", "replies": [{"failure": "crash"}, {"text": "back"}]}]
        runtime = ScriptedRuntime(write({"rules": rules}))
        session = runtime.open(make_variant(), controls, 5)
        with pytest.raises(BackendError):
            session.generate(ask("p"), 1)
        assert not session.is_alive()
        assert runtime.open(make_variant(), controls, 5).generate(ask("p"), 1).text == "back"

    def test_declared_times_are_not_waited_for_and_measured_ones_are(
        self, write: Any, make_variant: MakeVariant, controls: Controls
    ) -> None:
        declared = {"text": "x", "wall_seconds": 20, "first_output_seconds": 4, "predicted_ms": 0}
        rules = [
            {"prompt_contains": "declared", "replies": [declared]},
            {"prompt_contains": "measured", "replies": [{"text": "x", "delay_seconds": 0.03}]},
        ]
        session = ScriptedRuntime(write({"rules": rules})).open(make_variant(), controls, 5)
        reply = session.generate(ask("declared"), 60)
        assert (reply.wall_seconds, reply.first_output_seconds, reply.predicted_ms, reply.prompt_ms) == (20, 4, 0, None)
        assert 0.03 <= session.generate(ask("measured"), 60).wall_seconds < 1

    def test_version_is_the_scripts_digest(self, write: Any, make_variant: MakeVariant, controls: Controls) -> None:
        versions = set()
        for text in ("a", "b"):
            session = ScriptedRuntime(write({"default": {"text": text}})).open(make_variant(), controls, 5)
            assert session.engine == "scripted"
            versions.add(session.engine_version)
        assert len(versions) == 2
        assert all(version.startswith("script:") and len(version) == 19 for version in versions)

    def test_artifacts_are_what_the_script_declares(self, write: Any) -> None:
        runtime = ScriptedRuntime(write({"default": {}, "variants": {"Q8_0": {"bytes": 10, "bits_per_weight": 8.5}, "Q4_0": {}}}))
        artifact = runtime.artifact_for("m", "Q8_0")
        assert (artifact.bytes, artifact.weights, artifact.bits_per_weight) == (10, None, 8.5)
        assert runtime.artifact_for("m", "Q4_0").bytes is None
        with pytest.raises(PrerequisiteError, match="declares Q4_0, Q8_0"):
            runtime.artifact_for("m", "Q2_K")

    def test_load_failure(self, write: Any, make_variant: MakeVariant, controls: Controls) -> None:
        with pytest.raises(BackendError, match="no memory left"):
            ScriptedRuntime(write({"default": {}, "load_failure": "no memory left"})).open(make_variant(), controls, 5)
        with pytest.raises(BackendError, match="within 5 s"):
            ScriptedRuntime(write({"default": {}, "init_latency_seconds": 6})).open(make_variant(), controls, 5)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({}, "neither a rule nor a default"),
            ({"schema_version": "v0", "default": {}}, "schema_version"),
            ({"default": {"txt": "x"}}, "txt"),
            ({"default": {"output_tokens": -1}}, "default.output_tokens"),
            ({"default": {"failure": "explode"}}, "explode"),
            ({"default": {"text": "x", "failure": "crash"}}, "has no text"),
            ({"default": {"wall_seconds": 1, "delay_seconds": 1}}, "exclude each other"),
            ({"default": {"first_output_seconds": 1}}, "needs wall_seconds"),
            ({"default": {"wall_seconds": 1, "first_output_seconds": 2}}, "later than"),
            ({"rules": [{"prompt_contains": "a", "replies": []}]}, r"rules\[0\]|length"),
            ({"rules": [{"replies": [{}]}]}, r"rules\[0\]: exactly one"),
            ({"rules": [{"prompt_contains": "a", "prompt_sha256": "0" * 64, "replies": [{}]}]}, "exactly one"),
        ],
    )
    def test_bad_scripts(self, write: Any, value: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message) as caught:
            ScriptedRuntime(write(value))
        assert "script.json" in str(caught.value)

    def test_missing_and_broken_files(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="cannot read"):
            ScriptedRuntime(tmp_path / "absent.json")
        broken = tmp_path / "broken.json"
        broken.write_bytes(b'{"a": ')
        with pytest.raises(SpecError, match=r"broken\.json"):
            ScriptedRuntime(broken)

    def test_a_prompt_that_nothing_fits(self, write: Any, make_variant: MakeVariant, controls: Controls) -> None:
        rules = [{"prompt_contains": "a", "replies": [{}]}]
        session = ScriptedRuntime(write({"rules": rules})).open(make_variant(), controls, 5)
        with pytest.raises(SpecError, match="no rule fits the prompt 'zzz'"):
            session.generate(ask("zzz"), 1)


class TestRegistry:
    def test_unknown_names_get_the_nearest(self) -> None:
        with pytest.raises(SpecError, match="did you mean llamacpp"):
            capabilities_of("llama.cpp")
        with pytest.raises(SpecError, match="known: extraction, llamacpp, ollama, onnx, openai, scripted"):
            create_runtime("zzzz")

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("llamacpp", {"base_url": "http://h"}),
            ("openai", {}),
            ("openai", {"base_url": "http://h", "script": "x"}),
            ("scripted", {}),
            ("ollama", {"script": "x"}),
        ],
    )
    def test_options_that_would_do_nothing_are_refused(self, name: str, options: dict[str, Any]) -> None:
        with pytest.raises(SpecError, match=r"--base-url|--script"):
            create_runtime(name, **options)

    def test_every_runtime_answers_to_its_row(self, write: Any) -> None:
        options: dict[str, dict[str, Any]] = {
            "onnx": {"detector": DetectorOptions(image_folder=Path("images"), category_ids=(1,))},
            "extraction": {"extraction": ExtractionOptions(page_folder=Path("pages"))},
            "openai": {"base_url": "http://127.0.0.1:1/v1"},
            "scripted": {"script": write({"default": {}})},
        }
        for name, row in CAPABILITIES.items():
            assert create_runtime(name, **options.get(name, {})).capabilities == row
            assert row.name == name

    def test_the_table_imports_no_backend(self) -> None:
        code = (
            "import sys, fewbits.runtimes.registry;"
            "print([m for m in sys.modules if m.startswith('fewbits.runtimes.') and m.count('.') > 2 or m == 'xllamacpp'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == "[]"

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            (None, "http://127.0.0.1:11434"),
            ("", "http://127.0.0.1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("0.0.0.0:9000", "http://127.0.0.1:9000"),
            ("gpu-box", "http://gpu-box:11434"),
            ("https://gpu-box:443/", "https://gpu-box:443"),
        ],
    )
    def test_where_ollama_listens(self, host: str | None, expected: str) -> None:
        assert default_ollama_url(host) == expected


class TestPlacement:
    def test_policies(self) -> None:
        allowed = placement.allowed_cores()
        assert allowed is not None
        assert placement.resolve_cores("none", 1) is None
        assert placement.resolve_cores("auto", 1) == allowed[:1]
        first = allowed[0]
        assert placement.resolve_cores(f"cores:{first},{first}-{first}", 1) == (first,)

    @pytest.mark.parametrize(
        "policy", ["cores:", "cores:a", "cores:1-", "cores:2-1", "cores:-1", "cores:0-9999999", "all", "cores:4000"]
    )
    def test_bad_policies(self, policy: str) -> None:
        with pytest.raises(SpecError, match="--affinity-policy"):
            placement.resolve_cores(policy, 1)

    @given(st.sets(st.integers(0, 40), min_size=1))
    def test_a_list_and_its_ranges_are_the_same_cores(self, cores: set[int]) -> None:
        listed = ",".join(map(str, sorted(cores)))
        ranged = ",".join(f"{core}-{core}" for core in cores)
        assert placement._parse_core_list(listed) == placement._parse_core_list(ranged) == cores

    def test_threads_beyond_the_machine(self) -> None:
        with pytest.raises(SpecError, match="--threads"):
            placement.resolve_threads((os.cpu_count() or 1) + 1)
        assert 1 <= placement.resolve_threads(None) <= (os.cpu_count() or 1)

    def test_a_child_inherits_the_pin_and_we_get_ours_back(self) -> None:
        before = os.sched_getaffinity(0)
        core = min(before)
        with placement.pinned((core,)):
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            assert placement.process_cores(child.pid) == (core,)
            assert os.sched_getaffinity(0) == before
        finally:
            child.communicate(b"\n", timeout=20)
        assert placement.process_cores(child.pid) is None


def test_threads_are_read_from_either_log_style() -> None:
    assert threads_from_log("0.00 I cmn init: llama threadpool init, n_threads = 2") == 2
    assert threads_from_log("system_info: n_threads = 8 (n_threads_batch = 8) / 16 | CPU") == 8
    assert threads_from_log("nothing about it") is None
