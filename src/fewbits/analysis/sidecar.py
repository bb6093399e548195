"""llama-bench's JSON, read strictly into one sidecar block. Pure; whatever is wrong becomes a status and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fewbits.records.base import OpenRecord, Unavailable
from fewbits.records.sidecar import SidecarBlock, SidecarStatus

_GPU_BACKENDS = {"nvidia": {"CUDA", "Vulkan"}, "amd": {"ROCm", "HIP", "Vulkan"}}
"""Backend registries of ggml that can drive a profile's kind of GPU."""
_MEASURED = (
    "tool_version",
    "device",
    "threads",
    "prefill_tokens",
    "decode_tokens",
    "repetitions",
    "prefill_tokens_per_second",
    "prefill_stddev",
    "decode_tokens_per_second",
    "decode_stddev",
    "wall_seconds",
    "temperature_start_c",
    "temperature_end_c",
)
"""Every field of a block that may be `None` with a reason."""


@dataclass(frozen=True, slots=True)
class BenchEnd:
    """How one sidecar process ended, and what it wrote. `returncode` is `None` when it was killed."""

    returncode: int | None
    stdout: bytes
    stderr_tail: str
    timed_out: bool
    too_large: bool
    timeout_seconds: float
    output_limit_bytes: int


class _Test(OpenRecord, frozen=True, kw_only=True):
    """One test of llama-bench's output, as far as it is read. Source: llama.cpp, tools/llama-bench, `test::get_fields`."""

    model_filename: str | None = None
    n_prompt: int | None = None
    n_gen: int | None = None
    n_depth: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    backends: str | None = None
    devices: str | None = None
    cpu_info: str | None = None
    gpu_info: str | None = None
    avg_ts: float | None = None
    stddev_ts: float | None = None
    samples_ns: list[int] | None = None
    build_commit: str | None = None
    build_number: int | None = None


_REQUIRED = (
    "model_filename",
    "n_prompt",
    "n_gen",
    "n_threads",
    "n_gpu_layers",
    "backends",
    "gpu_info",
    "avg_ts",
    "stddev_ts",
)
_DECODER = msgspec.json.Decoder(list[_Test])


class _RefusedError(Exception):
    """The output cannot be used: the status, and one sentence."""

    def __init__(self, status: SidecarStatus, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


def judge_bench(ended: BenchEnd, *, profile: str, backend: str, model_path: str) -> SidecarBlock:
    """Turn an ended process into a block: numbers only where its status is `OK`, a sentence where it is not.

    `model_path` is the file that the tool was told to load, `backend` the profile's. `unavailable` is left to `explain`.
    """
    try:
        _refuse_ending(ended)
        prefill, decode = _two_tests(ended.stdout)
        for number, test in enumerate((prefill, decode), 1):
            _check_test(test, number, backend, model_path)
        if prefill.n_threads != decode.n_threads:
            raise _RefusedError(SidecarStatus.PARSE_ERROR, "the two tests ran with different numbers of threads")
    except _RefusedError as error:
        return SidecarBlock(status=error.status, detail=error.detail, profile=profile, backend=backend)
    repetitions = _repetitions((prefill, decode))
    spread = repetitions is None or repetitions > 1
    return SidecarBlock(
        status=SidecarStatus.OK,
        profile=profile,
        backend=backend,
        tool_version=_version(prefill),
        device=(prefill.cpu_info if backend == "cpu" else prefill.gpu_info) or None,
        threads=prefill.n_threads,
        prefill_tokens=prefill.n_prompt,
        decode_tokens=decode.n_gen,
        repetitions=repetitions,
        prefill_tokens_per_second=prefill.avg_ts,
        prefill_stddev=prefill.stddev_ts if spread else None,
        decode_tokens_per_second=decode.avg_ts,
        decode_stddev=decode.stddev_ts if spread else None,
    )


def explain(block: SidecarBlock) -> SidecarBlock:
    """Return the block with a reason for every number that it does not have."""
    ran = block.wall_seconds is not None
    default = Unavailable.NOT_REPORTED if block.status is SidecarStatus.OK else Unavailable.NOT_MEASURED
    special = {name: Unavailable.NO_SENSOR for name in ("temperature_start_c", "temperature_end_c") if ran}
    if block.repetitions == 1:
        special |= dict.fromkeys(("prefill_stddev", "decode_stddev"), Unavailable.TOO_FEW_SAMPLES)
    missing = [name for name in _MEASURED if getattr(block, name) is None]
    return msgspec.structs.replace(block, unavailable={name: str(special.get(name, default)) for name in sorted(missing)})


def unmeasured(status: SidecarStatus, detail: str, *, profile: str | None, backend: str | None = None) -> SidecarBlock:
    """Return the block of a variant that the tool never ran on."""
    return explain(SidecarBlock(status=status, detail=detail, profile=profile, backend=backend))


def _refuse_ending(ended: BenchEnd) -> None:
    if ended.timed_out:
        detail = f"it had not ended after {ended.timeout_seconds:g} s and was killed"
        raise _RefusedError(SidecarStatus.TIMEOUT, detail)
    if ended.too_large:
        detail = f"it wrote more than {ended.output_limit_bytes} bytes and was killed"
        raise _RefusedError(SidecarStatus.OUTPUT_TOO_LARGE, detail)
    if ended.returncode != 0:
        last = next(iter(reversed(ended.stderr_tail.strip().splitlines())), "it said nothing on stderr")
        code = ended.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        raise _RefusedError(SidecarStatus.TOOL_FAILED, f"it {how}: {last}")


def _two_tests(stdout: bytes) -> tuple[_Test, _Test]:
    """Return the prefill and the decode test: exactly one of each, and nothing else."""
    found: dict[str, _Test] = {}
    for number, test in enumerate(_decode(stdout), 1):
        for name in _REQUIRED:
            if getattr(test, name) is None:
                raise _RefusedError(SidecarStatus.REQUIRED_FIELD_MISSING, f"test {number} has no {name}")
        kind = _kind(test)
        if kind in found:
            raise _RefusedError(SidecarStatus.PARSE_ERROR, f"there are two {kind} tests; the profile must ask for one")
        found[kind] = test
    for kind, flags in (("prefill", "-p above 0"), ("decode", "-n above 0")):
        if kind not in found:
            detail = f"there is no {kind} test; the profile must ask for one ({flags})"
            raise _RefusedError(SidecarStatus.REQUIRED_FIELD_MISSING, detail)
    return found["prefill"], found["decode"]


def _decode(stdout: bytes) -> Sequence[_Test]:
    if not stdout.strip():
        raise _RefusedError(SidecarStatus.PARSE_ERROR, "it wrote nothing on stdout")
    try:
        return _DECODER.decode(stdout)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = f"stdout is not the JSON of llama-bench ({error}); the profile must ask for -o json"
        raise _RefusedError(SidecarStatus.PARSE_ERROR, detail) from error


def _kind(test: _Test) -> str:
    prompt, generated, depth = test.n_prompt or 0, test.n_gen or 0, test.n_depth or 0
    if depth == 0 and prompt > 0 and generated == 0:
        return "prefill"
    if depth == 0 and prompt == 0 and generated > 0:
        return "decode"
    detail = f"a test with n_prompt {prompt}, n_gen {generated} and n_depth {depth} is neither prefill nor decode"
    raise _RefusedError(SidecarStatus.PARSE_ERROR, detail)


def _check_test(test: _Test, number: int, backend: str, model_path: str) -> None:
    if not _same_file(test.model_filename or "", model_path):
        raise _RefusedError(SidecarStatus.PARSE_ERROR, f"test {number} was of another file than this variant's")
    if (test.avg_ts or 0) <= 0:
        raise _RefusedError(SidecarStatus.PARSE_ERROR, f"test {number} has a speed of {test.avg_ts} tokens per second")
    if (test.stddev_ts or 0) < 0:
        raise _RefusedError(SidecarStatus.PARSE_ERROR, f"test {number} has a standard deviation of {test.stddev_ts}")
    if (test.n_threads or 0) < 1:
        raise _RefusedError(SidecarStatus.PARSE_ERROR, f"test {number} has {test.n_threads} threads")
    if elsewhere := _elsewhere(test, backend):
        raise _RefusedError(SidecarStatus.WRONG_BACKEND, elsewhere)


def _elsewhere(test: _Test, backend: str) -> str:
    """Say what shows that a test did not run on the profile's kind of device; empty when nothing does.

    `backends` names what the build can use, `gpu_info` the GPUs that it sees: neither alone says that one was used.
    """
    no_devices = test.devices == "none"
    if backend == "cpu":
        if test.gpu_info and not no_devices:
            return f"the profile is for the CPU, but the tool may have used {test.gpu_info}: add -ngl 0 -dev none to the profile"
        return ""
    built = {name.strip() for name in (test.backends or "").split(",")}
    if not built & _GPU_BACKENDS[backend]:
        wanted = " or ".join(sorted(_GPU_BACKENDS[backend]))
        return f"the profile is for {backend}, but this build of the tool has {test.backends or 'no backend'}, not {wanted}"
    if not test.gpu_info:
        return f"the profile is for {backend}, but the tool sees no GPU"
    if test.n_gpu_layers == 0 or no_devices:
        return f"the profile is for {backend}, but no layer was put on a GPU: its -ngl is 0 or its -dev is none"
    return ""


def _same_file(reported: str, asked: str) -> bool:
    return reported == asked or reported == "".join(map(_mangled, asked))


def _mangled(character: str) -> str:
    r"""Return a character as llama-bench writes it where C's `char` is signed: each byte above 0x7f as `\uffff` and an `f`.

    Its `escape_json` takes such a byte for a control character and cuts `\uffffffc3` to seven characters.
    """
    if character.isascii():
        return character
    return "\ufffff" * len(character.encode("utf-8", "surrogateescape"))


def _repetitions(tests: Sequence[_Test]) -> int | None:
    """Return the number of repetitions that both tests made; `None` where they do not agree, or did not say."""
    counts = {len(test.samples_ns) if test.samples_ns else None for test in tests}
    return counts.pop() if len(counts) == 1 else None


def _version(test: _Test) -> str | None:
    if test.build_number is None or not test.build_commit:
        return None
    return f"build {test.build_number} (commit {test.build_commit})"
