"""llama-bench's JSON read strictly: numbers only where everything fits, else a status and a sentence, never a zero."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.sidecar import BenchEnd, explain, judge_bench, unmeasured
from fewbits.records.sidecar import SidecarBlock, SidecarStatus

MODEL = "/models/m.gguf"
NUMBERS = (
    "threads",
    "prefill_tokens",
    "decode_tokens",
    "repetitions",
    "prefill_tokens_per_second",
    "prefill_stddev",
    "decode_tokens_per_second",
    "decode_stddev",
)

# Fields and their order as llama-bench (build 11434) writes them; the values are ours.
COMMON: dict[str, Any] = {
    "build_commit": "0a1b2c3",
    "build_number": 11434,
    "cpu_info": "Some CPU",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": MODEL,
    "model_type": "llama 256M Q4_1",
    "n_threads": 4,
    "n_gpu_layers": 0,
    "devices": "none",
    "cpu_strict": False,
}


def prefill(**changes: Any) -> dict[str, Any]:
    numbers = {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 359.4, "stddev_ts": 3.85, "samples_ns": [1, 2, 3]}
    return COMMON | numbers | changes


def decode(**changes: Any) -> dict[str, Any]:
    numbers = {"n_prompt": 0, "n_gen": 128, "n_depth": 0, "avg_ts": 103.1, "stddev_ts": 0.5, "samples_ns": [1, 2, 3]}
    return COMMON | numbers | changes


def judge(stdout: bytes | list[dict[str, Any]], *, backend: str = "cpu", model: str = MODEL, **changes: Any) -> SidecarBlock:
    data = stdout if isinstance(stdout, bytes) else json.dumps(stdout).encode()
    ended = BenchEnd(
        returncode=0,
        stdout=data,
        stderr_tail="",
        timed_out=False,
        too_large=False,
        timeout_seconds=5.0,
        output_limit_bytes=4096,
    )
    ended = dataclasses.replace(ended, **changes)
    return explain(judge_bench(ended, profile="p", backend=backend, model_path=model))


def assert_no_numbers(block: SidecarBlock) -> None:
    for name in NUMBERS:
        assert getattr(block, name) is None
        assert block.unavailable[name] == "NOT_MEASURED"
    assert block.detail


class TestGood:
    def test_both_tests_become_one_block(self) -> None:
        block = judge([prefill(), decode()])
        assert block.status is SidecarStatus.OK
        assert block.detail == ""
        assert (block.profile, block.backend, block.threads, block.repetitions) == ("p", "cpu", 4, 3)
        assert (block.prefill_tokens, block.prefill_tokens_per_second, block.prefill_stddev) == (512, 359.4, 3.85)
        assert (block.decode_tokens, block.decode_tokens_per_second, block.decode_stddev) == (128, 103.1, 0.5)
        assert (block.tool_version, block.device) == ("build 11434 (commit 0a1b2c3)", "Some CPU")
        assert set(block.unavailable) == {"wall_seconds", "temperature_start_c", "temperature_end_c"}

    def test_order_does_not_matter(self) -> None:
        assert judge([decode(), prefill()]) == judge([prefill(), decode()])

    def test_one_repetition_has_no_spread(self) -> None:
        once = {"samples_ns": [7], "stddev_ts": 0.0}
        block = judge([prefill(**once), decode(**once)])
        assert block.status is SidecarStatus.OK
        assert (block.prefill_stddev, block.decode_stddev) == (None, None)
        assert block.unavailable["prefill_stddev"] == block.unavailable["decode_stddev"] == "TOO_FEW_SAMPLES"

    def test_a_spread_of_zero_over_several_repetitions_is_zero(self) -> None:
        block = judge([prefill(stddev_ts=0.0), decode()])
        assert block.prefill_stddev == 0.0

    @pytest.mark.parametrize("samples", [None, []])
    def test_unknown_repetitions_are_null(self, samples: list[int] | None) -> None:
        block = judge([prefill(samples_ns=samples), decode(samples_ns=samples)])
        assert (block.status, block.repetitions) == (SidecarStatus.OK, None)
        assert block.unavailable["repetitions"] == "NOT_REPORTED"

    def test_no_build_is_no_version(self) -> None:
        block = judge([prefill(build_number=None), decode()])
        assert block.tool_version is None
        assert block.unavailable["tool_version"] == "NOT_REPORTED"

    def test_an_older_build_without_devices_and_depth(self) -> None:
        old = {"devices", "n_depth", "samples_ns"}
        tests = [{name: value for name, value in test.items() if name not in old} for test in (prefill(), decode())]
        assert judge(tests).status is SidecarStatus.OK

    def test_a_path_that_is_not_ascii_is_known_in_either_spelling(self) -> None:
        model = "/models/ü/mö.gguf"
        as_it_is = judge([test | {"model_filename": model} for test in (prefill(), decode())], model=model)
        # read from the real tool: every byte above 0x7f is written as \uffff and an f
        mangled = "/models/\ufffff\ufffff/m\ufffff\ufffff.gguf"
        as_written = judge([test | {"model_filename": mangled} for test in (prefill(), decode())], model=model)
        assert as_it_is.status is as_written.status is SidecarStatus.OK


class TestEndings:
    def test_a_timeout(self) -> None:
        block = judge([prefill(), decode()], timed_out=True, returncode=None)
        assert block.status is SidecarStatus.TIMEOUT
        assert "after 5 s" in block.detail
        assert_no_numbers(block)

    def test_too_much_output(self) -> None:
        block = judge([prefill(), decode()], too_large=True, returncode=None)
        assert block.status is SidecarStatus.OUTPUT_TOO_LARGE
        assert "4096 bytes" in block.detail
        assert_no_numbers(block)

    def test_good_json_does_not_excuse_an_exit_code(self) -> None:
        block = judge([prefill(), decode()], returncode=1, stderr_tail="loading\nerror: failed to load model\n")
        assert block.status is SidecarStatus.TOOL_FAILED
        assert block.detail == "it ended with exit code 1: error: failed to load model"
        assert_no_numbers(block)

    def test_a_signal_is_named(self) -> None:
        assert "killed by signal 11: it said nothing" in judge(b"", returncode=-11).detail


class TestGarbage:
    @pytest.mark.parametrize(
        "stdout",
        [
            b"",
            b"  \n",
            b"| model | size | t/s |",
            b"[",
            b"[\n",
            b"{}",
            b"null",
            b"[1, 2]",
            b"\x00\xff\xfe",
            b"[" * 100_000,
            b'[{"avg_ts": NaN}]',
            b'[{"avg_ts": 1e999}]',
        ],
        ids=lambda data: repr(data[:16]),
    )
    def test_is_a_parse_error(self, stdout: bytes) -> None:
        block = judge(stdout)
        assert block.status is SidecarStatus.PARSE_ERROR
        assert_no_numbers(block)

    @pytest.mark.parametrize("name", ["model_filename", "n_prompt", "n_threads", "backends", "gpu_info", "avg_ts", "stddev_ts"])
    @pytest.mark.parametrize("null", [True, False])
    def test_a_missing_field_is_named(self, name: str, null: bool) -> None:
        broken = decode() | {name: None} if null else {key: value for key, value in decode().items() if key != name}
        block = judge([prefill(), broken])
        assert (block.status, block.detail) == (SidecarStatus.REQUIRED_FIELD_MISSING, f"test 2 has no {name}")
        assert_no_numbers(block)

    @pytest.mark.parametrize("tests", [[], [prefill()], [decode()]], ids=["none", "prefill", "decode"])
    def test_a_missing_test_is_named(self, tests: list[dict[str, Any]]) -> None:
        block = judge(tests)
        assert block.status is SidecarStatus.REQUIRED_FIELD_MISSING
        assert "the profile must ask for one" in block.detail

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"avg_ts": "359.4"}, "avg_ts"),
            ({"avg_ts": True}, "avg_ts"),
            ({"avg_ts": 0.0}, "a speed of 0.0"),
            ({"avg_ts": -3.0}, "a speed of -3.0"),
            ({"stddev_ts": -0.1}, "standard deviation of -0.1"),
            ({"n_threads": 0}, "0 threads"),
            ({"n_prompt": 512.5}, "n_prompt"),
            ({"n_prompt": -512}, "neither prefill nor decode"),
            ({"n_gen": 128}, "neither prefill nor decode"),
            ({"n_depth": 4096}, "neither prefill nor decode"),
            ({"model_filename": "/models/other.gguf"}, "another file"),
            ({"model_filename": "m.gguf"}, "another file"),
            ({"n_threads": 8}, "different numbers of threads"),
        ],
        ids=str,
    )
    def test_a_number_that_cannot_be_is_a_parse_error(self, changes: dict[str, Any], words: str) -> None:
        block = judge([prefill(**changes), decode()])
        assert block.status is SidecarStatus.PARSE_ERROR
        assert words in block.detail
        assert_no_numbers(block)

    def test_two_of_a_kind_are_not_averaged(self) -> None:
        block = judge([prefill(), prefill(n_threads=2), decode()])
        assert (block.status, block.detail) == (
            SidecarStatus.PARSE_ERROR,
            "there are two prefill tests; the profile must ask for one",
        )

    @given(st.binary(max_size=300))
    def test_no_bytes_whatever_raise(self, stdout: bytes) -> None:
        block = judge(stdout)
        assert block.status is not SidecarStatus.OK
        assert_no_numbers(block)

    @given(
        st.sampled_from(sorted(prefill())),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)),
    )
    def test_whatever_a_field_holds_numbers_are_positive_or_null(self, name: str, value: object) -> None:
        block = judge([prefill(**{name: value}), decode()])
        assert (block.status is SidecarStatus.OK) == (block.prefill_tokens_per_second is not None)
        for speed in (block.prefill_tokens_per_second, block.decode_tokens_per_second):
            assert speed is None or (math.isfinite(speed) and speed > 0)


GPU = {"backends": "CUDA", "gpu_info": "Some GPU", "n_gpu_layers": 99, "devices": "auto"}


class TestBackend:
    """A build without a GPU backend takes `-ngl 99` without a word and measures the CPU."""

    def gpu(self, backend: str, **changes: Any) -> SidecarBlock:
        return judge([test | GPU | changes for test in (prefill(), decode())], backend=backend)

    @pytest.mark.parametrize(
        ("backend", "built"), [("nvidia", "CUDA"), ("nvidia", "Vulkan"), ("amd", "ROCm"), ("amd", "Vulkan,BLAS")]
    )
    def test_a_gpu_run_names_the_gpu(self, backend: str, built: str) -> None:
        block = self.gpu(backend, backends=built)
        assert (block.status, block.device, block.backend) == (SidecarStatus.OK, "Some GPU", backend)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"backends": "CPU", "gpu_info": ""}, "this build of the tool has CPU, not CUDA or Vulkan"),
            ({"backends": "ROCm"}, "has ROCm, not CUDA or Vulkan"),
            ({"backends": ""}, "has no backend"),
            ({"gpu_info": ""}, "sees no GPU"),
            ({"n_gpu_layers": 0}, "no layer was put on a GPU"),
            ({"devices": "none"}, "no layer was put on a GPU"),
        ],
        ids=str,
    )
    def test_a_gpu_profile_that_ran_elsewhere(self, changes: dict[str, Any], words: str) -> None:
        block = self.gpu("nvidia", **changes)
        assert block.status is SidecarStatus.WRONG_BACKEND
        assert words in block.detail
        assert_no_numbers(block)

    def test_a_cpu_profile_with_a_gpu_build_must_forbid_the_gpu(self) -> None:
        assert self.gpu("cpu").status is SidecarStatus.WRONG_BACKEND
        assert self.gpu("cpu", n_gpu_layers=0).status is SidecarStatus.WRONG_BACKEND  # large batches would still go there
        forbidden = self.gpu("cpu", devices="none")
        assert (forbidden.status, forbidden.device) == (SidecarStatus.OK, "Some CPU")


def test_a_variant_that_was_never_measured_says_why_everywhere() -> None:
    block = unmeasured(SidecarStatus.NOT_APPLICABLE, "a server holds it", profile="cpu", backend="cpu")
    assert set(block.unavailable.values()) == {"NOT_MEASURED"}
    assert {"wall_seconds", "temperature_start_c", *NUMBERS} <= set(block.unavailable)
    assert explain(block) == block
