"""Running the sidecar's tool on one file: found like any other tool, bounded in time and output, never an exception."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fewbits.analysis.sidecar import BenchEnd, explain, judge_bench, unmeasured
from fewbits.core.engines import LLAMA_CPP, find_tool
from fewbits.core.errors import PrerequisiteError
from fewbits.core.files import sha256_file
from fewbits.core.process import BoundedResult, run_bounded
from fewbits.probes.environment import EnvironmentProbe
from fewbits.records.sidecar import SidecarBlock, SidecarProfile, SidecarStatus

OUTPUT_LIMIT_BYTES = 4 * 1024 * 1024
"""llama-bench writes about 3 KB; whatever writes more than this is something else."""
STDOUT_HEAD_BYTES = 16 * 1024
STDERR_TAIL_BYTES = 4 * 1024


@dataclass(frozen=True, slots=True)
class SidecarJob:
    """One call of the tool: which profile, on which file, with how many threads, for how long at most."""

    profile_name: str
    profile: SidecarProfile
    model: Path
    threads: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class SidecarOutcome:
    """What one call gave: the block, and the evidence for it, with the model's path replaced by `{model}`."""

    block: SidecarBlock
    returncode: int | None = None
    stdout_head: str = ""
    stderr_tail: str = ""
    tool_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class _Program:
    path: Path
    version: str
    sha256: str


def command_of(profile: SidecarProfile, threads: int) -> tuple[str, ...]:
    """Return a profile's command with the threads filled in and `{model}` still in place."""
    return tuple(word.replace("{threads}", str(threads)) for word in profile.argv)


def measure(job: SidecarJob, environ: Mapping[str, str] | None = None) -> SidecarOutcome:
    """Run the tool once. Every ending is a block with a status; `environ` is where programs are looked up and what they get."""
    variables = dict(os.environ if environ is None else environ)
    name, backend = job.profile_name, job.profile.backend
    try:
        program = _find_program(job.profile.argv[0], variables)
    except PrerequisiteError as error:
        return SidecarOutcome(unmeasured(SidecarStatus.TOOL_MISSING, str(error), profile=name, backend=backend))
    model = str(job.model.absolute())
    words = [word.replace("{model}", model) for word in command_of(job.profile, job.threads)[1:]]
    before = _temperature(backend)
    try:
        result = run_bounded(
            [program.path, *words], timeout_seconds=job.timeout_seconds, output_limit_bytes=OUTPUT_LIMIT_BYTES, env=variables
        )
    except (OSError, ValueError) as error:
        detail = f"it could not be started: {error}"
        block = unmeasured(SidecarStatus.TOOL_FAILED, detail, profile=name, backend=backend)
        return SidecarOutcome(block, tool_sha256=program.sha256)
    return _outcome(job, program, result, (before, _temperature(backend)))


def _outcome(
    job: SidecarJob, program: _Program, result: BoundedResult, temperatures: tuple[float | None, float | None]
) -> SidecarOutcome:
    model = str(job.model.absolute())
    stderr_tail = _text(result.stderr[-STDERR_TAIL_BYTES:], model)
    ended = BenchEnd(
        returncode=result.returncode,
        stdout=result.stdout,
        stderr_tail=stderr_tail,
        timed_out=result.timed_out,
        too_large=result.too_large,
        timeout_seconds=job.timeout_seconds,
        output_limit_bytes=OUTPUT_LIMIT_BYTES,
    )
    judged = judge_bench(ended, profile=job.profile_name, backend=job.profile.backend, model_path=model)
    block = msgspec.structs.replace(
        judged,
        tool_version=program.version or judged.tool_version,
        wall_seconds=round(result.wall_seconds, 6),
        temperature_start_c=temperatures[0],
        temperature_end_c=temperatures[1],
    )
    return SidecarOutcome(
        explain(block),
        returncode=result.returncode,
        stdout_head=_text(result.stdout[:STDOUT_HEAD_BYTES], model),
        stderr_tail=stderr_tail,
        tool_sha256=program.sha256,
    )


def _find_program(name: str, variables: Mapping[str, str]) -> _Program:
    """Find a profile's program. Raises `PrerequisiteError` when this machine has none that can be read and run."""
    try:
        if name in LLAMA_CPP.tools:
            tool = find_tool(name, variables)
            if tool is None or tool.kind != "binary":
                remedy = "`fewbits engine build` compiles it; then the same command measures only what is missing"
                what = f"{name} is in no folder that tools are looked up in"
                raise PrerequisiteError(what, remedy)
            return _Program(tool.path, tool.version, tool.sha256)
        found = shutil.which(name, path=variables.get("PATH", ""))
        if found is None:
            raise PrerequisiteError(f"{name} is not on PATH", "Install it, or name another program in the profile")
        return _Program(Path(found).absolute(), "", sha256_file(Path(found)))
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{name} cannot be read: {error}", "Check its permissions") from error


def _temperature(backend: str) -> float | None:
    """Hottest sensor of the profile's kind of device, degrees Celsius; `None` where this machine shows none."""
    try:
        probe = EnvironmentProbe()
        try:
            sample = probe.sample()
        finally:
            probe.close()
    except (OSError, ValueError):
        return None  # a sensor that cannot be read is no sensor
    return {"cpu": sample.temperature_c, "nvidia": sample.gpu_temperature_c}.get(backend)


def _text(data: bytes, model: str) -> str:
    return data.decode("utf-8", "replace").replace(model, "{model}")
