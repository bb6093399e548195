"""Running model code in a sandbox: namespaces, a read-only root, resource limits and a system call filter.

The code is hostile by assumption. It runs in a process of its own that sees no network, no home, no checkout, no other
process and an empty environment, may write only to a private 16 MiB /tmp, and is ended at its limits. What it was
expected to return is never given to it: it hands back plain JSON, and this side compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from fewbits.core.errors import BackendError, PrerequisiteError
from fewbits.core.process import kill_group
from fewbits.core.units import KIB, MIB
from fewbits.records.task import PythonExamplesCheck, PythonTestCheck, ReasoningGymCheck, Task
from fewbits.workloads.text.sandbox_filter import seccomp_program

WEAK_SANDBOX_VARIABLE = "FEWBITS_ALLOW_WEAK_SANDBOX"
_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_STARTUP_SECONDS = 20.0
_NONCE_BYTES = 32


class Strength(StrEnum):
    """How well this machine can contain model code."""

    NAMESPACES = "namespaces"
    """Own user, process, network, mount and IPC namespaces, a read-only root, a system call filter, resource limits."""
    RLIMITS = "rlimits"
    """Resource limits, and a system call filter where the architecture has one; files of the user stay readable."""
    UNAVAILABLE = "unavailable"
    """Not a POSIX machine."""


class JobStatus(StrEnum):
    """How one call of model code ended."""

    RETURNED = "returned"
    RAISED = "raised"
    TIMEOUT = "timeout"
    DIED = "died"
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use: wall seconds per call and for all calls, CPU seconds, bytes of address space, file, reply."""

    example_seconds: float = 3.0
    total_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 512 * MIB
    file_bytes: int = 1 * MIB
    open_files: int = 64
    reply_bytes: int = 256 * KIB


@dataclass(frozen=True, slots=True)
class CallJob:
    """Execute `code` as a module, then call `function` in it with JSON arguments."""

    code: str
    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TestJob:
    """Execute `code` as a module, then `test` in the same namespace."""

    __test__ = False  # not a test class, whatever pytest makes of the name
    code: str
    test: str


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended; `value` is the JSON value returned (`None` also for anything but `RETURNED`), `detail` says why not."""

    status: JobStatus
    value: Any = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ExtraImports:
    """What trusted scorers need beyond the standard library: folders shown read-only and searched, modules loaded once."""

    paths: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


@cache
def sandbox_strength() -> Strength:
    """Find out, by running one trivial job, how well this machine contains model code. Asked once per process."""
    if os.name != "posix":
        return Strength.UNAVAILABLE
    if sys.platform == "linux" and seccomp_program() is not None:
        try:
            probe = _run([CallJob("def f():\n    return 1\n", "f")], Limits(), ExtraImports(), Strength.NAMESPACES)
        except (BackendError, OSError):
            return Strength.RLIMITS
        if probe[0].value == 1:
            return Strength.NAMESPACES
    return Strength.RLIMITS


def needs_sandbox(task: Task) -> bool:
    """Whether scoring the task runs code that the model wrote, or a scorer that may evaluate it."""
    return any(isinstance(check, PythonExamplesCheck | PythonTestCheck | ReasoningGymCheck) for check in task.checks)


def require_sandbox(tasks: Sequence[Task]) -> Strength | None:
    """Make sure, before a sweep, that the tasks' Python checks can run here; `None` when no task has any.

    Raises `PrerequisiteError` where this machine has no namespaces, unless FEWBITS_ALLOW_WEAK_SANDBOX=1 accepts the
    weaker walls.
    """
    if not any(needs_sandbox(task) for task in tasks):
        return None
    return _usable_strength()


def _usable_strength() -> Strength:
    strength = sandbox_strength()
    if strength is Strength.NAMESPACES:
        return strength
    if strength is Strength.RLIMITS and os.environ.get(WEAK_SANDBOX_VARIABLE) == "1":
        return strength
    what = "model code cannot be contained on this machine: unprivileged user namespaces are not available"
    remedy = (
        "Allow them (Linux: user.max_user_namespaces > 0, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0), "
        "select tasks without Python checks, or, inside a throw-away machine, accept resource limits only with "
        f"{WEAK_SANDBOX_VARIABLE}=1."
    )
    raise PrerequisiteError(what, remedy)


def run_jobs(
    jobs: Sequence[CallJob | TestJob], limits: Limits | None = None, extra: ExtraImports | None = None
) -> tuple[JobOutcome, ...]:
    """Run jobs in one sandbox, each in a fresh process, and return their outcomes in order.

    Whatever a job does (crash, hang, exit, exhaust memory) is its own outcome; the others still run, as long as
    `total_seconds` lasts. Raises `PrerequisiteError` where the machine has no usable sandbox, and `BackendError` when the
    sandbox itself cannot be set up.
    """
    return _run(jobs, limits or Limits(), extra or ExtraImports(), _usable_strength())


def _run(jobs: Sequence[CallJob | TestJob], limits: Limits, extra: ExtraImports, strength: Strength) -> tuple[JobOutcome, ...]:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    # the real path: a mount point must not be reached through a link
    with tempfile.TemporaryDirectory(prefix="fewbits-sandbox-", ignore_cleanup_errors=True) as folder:
        root = os.path.realpath(folder)
        request = {
            "jobs": [asdict(job) for job in jobs],
            "limits": asdict(limits),
            "namespaces": strength is Strength.NAMESPACES,
            "filter": seccomp_program() if sys.platform == "linux" else None,
            "root": root,
            "visible": [*_visible_folders(), *extra.paths],
            "import_paths": list(extra.paths),
            "preload": list(extra.preload),
        }
        lines = _converse(nonce + json.dumps(request).encode("ascii"), nonce, len(jobs), limits, root)
    return _outcomes(lines, len(jobs))


def _visible_folders() -> list[str]:
    """Return what the interpreter needs to import the standard library, shallow paths first; links stay links."""
    base = os.path.realpath(sys.base_prefix)
    wanted = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store"]
    wanted += [f"{base}/lib", f"{base}/lib64", str(Path(os.__file__).resolve().parent)]
    present = sorted({path for path in wanted if Path(path).is_dir()}, key=lambda path: (path.count("/"), path))
    shown: list[str] = []
    for path in present:
        if not any(path.startswith(f"{parent}/") for parent in shown if not Path(parent).is_symlink()):
            shown.append(path)
    return shown


def _converse(message: bytes, nonce: bytes, jobs: int, limits: Limits, cwd: str) -> list[bytes]:
    """Start the runner, send the request, and collect the result lines that carry the nonce, up to the deadline."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", str(_RUNNER), str(write_end), str(os.getpid())],
            cwd=cwd,
            # -I would also ignore the fixed hash seed, without which sets print in another order in every run
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": "/tmp"},  # noqa: S108
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write_end,),
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    try:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a runner that died says so by its missing reply
                process.stdin.write(message)
                process.stdin.close()
        size_limit = (jobs + 1) * (limits.reply_bytes + KIB)
        deadline = time.monotonic() + _STARTUP_SECONDS + limits.total_seconds
        data = _read_bounded(read_end, size_limit, deadline)
    finally:
        os.close(read_end)
        kill_group(process)
        process.wait()
    # every line starts with the nonce, which may itself hold a newline byte; one cut off at the deadline lacks its end
    return [part for part in data.split(nonce)[1:] if part.endswith(b"\n")]


def _read_bounded(descriptor: int, size_limit: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size_limit:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            break
        chunk = os.read(descriptor, 65536)
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _outcomes(lines: Sequence[bytes], jobs: int) -> tuple[JobOutcome, ...]:
    messages = [json.loads(line) for line in lines]
    setup = next((message for message in messages if "setup" in message), None)
    if setup is None or setup["setup"] != "ok":
        raise BackendError("sandbox", setup["detail"] if setup else "the sandbox ended before it was set up")
    outcomes = {
        message["index"]: JobOutcome(JobStatus(message["status"]), message.get("value"), str(message.get("detail", "")))
        for message in messages
        if "index" in message
    }
    lost = JobOutcome(JobStatus.DIED, detail="the sandbox ended before this example")
    return tuple(outcomes.get(index, lost) for index in range(jobs))
