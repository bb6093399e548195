"""Child processes: deadlines, captured tails, no shell, and children that die with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TAIL_LINES = 30
STDERR_KEPT_BYTES = 64 * 1024
"""What `run_bounded` keeps of stderr: its end."""
_READ_BYTES = 64 * 1024
_LOOK_SECONDS = 0.1
_REAP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended: `returncode` is `None` when it was killed at its deadline (`timed_out`)."""

    argv: tuple[str, ...]
    returncode: int | None
    stdout: str
    stderr: str
    timed_out: bool

    @property
    def ok(self) -> bool:
        """True when the command ended by itself with exit code 0."""
        return self.returncode == 0 and not self.timed_out

    @property
    def tail(self) -> str:
        """The last lines of stderr, or of stdout when stderr is empty."""
        return tail_of(self.stderr or self.stdout)


def tail_of(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last `lines` lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG). For use between fork and exec.

    libc is loaded at import, not here: dlopen between fork and exec can deadlock.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_command(
    argv: Sequence[str | Path],
    *,
    timeout_seconds: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> CommandResult:
    """Run a command to its end or its deadline; kills its whole process group at the deadline. Raises `FileNotFoundError`."""
    words = tuple(str(word) for word in argv)
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=dict(env) if env is not None else None,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only a prctl system call
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            kill_group(process)
            stdout, stderr = process.communicate()
            return CommandResult(words, None, stdout, stderr, timed_out=True)
        except BaseException:
            kill_group(process)
            raise
    return CommandResult(words, process.returncode, stdout, stderr, timed_out=False)


@dataclass(frozen=True, slots=True)
class BoundedResult:
    """How a command with bounded output ended.

    `returncode` is `None` when it was killed: at its deadline (`timed_out`) or because it wrote too much (`too_large`).
    `stdout` is its beginning (at most the limit), `stderr` its end (at most `STDERR_KEPT_BYTES`).
    """

    argv: tuple[str, ...]
    returncode: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    too_large: bool
    wall_seconds: float


def run_bounded(
    argv: Sequence[str | Path], *, timeout_seconds: float, output_limit_bytes: int, env: Mapping[str, str] | None = None
) -> BoundedResult:
    """Run a command that is not trusted to end or to be brief; kills its group when either stream grows past the limit.

    Always returns soon after the deadline: neither a child that keeps the pipes open nor one that cannot be killed is waited
    for. Raises `OSError` when the command cannot be started, `ValueError` for arguments that no program can be given.
    """
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    process = subprocess.Popen(
        words,
        env=dict(env) if env is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only a prctl system call
    )
    reader = _BoundedReader(process, output_limit_bytes)
    try:
        timed_out = reader.read_until(started + timeout_seconds)
        killed = timed_out or reader.too_large
        wall_seconds = time.monotonic() - started
        return BoundedResult(
            words,
            None if killed else process.returncode,
            bytes(reader.stdout),
            bytes(reader.stderr),
            timed_out=timed_out,
            too_large=reader.too_large,
            wall_seconds=wall_seconds,
        )
    finally:
        reader.close()


class _BoundedReader:
    """Reads a child's two pipes into bounded memory."""

    def __init__(self, process: subprocess.Popen[bytes], limit_bytes: int) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.too_large = False
        self._process = process
        self._limit = limit_bytes
        self._stderr_bytes = 0
        self._selector = selectors.DefaultSelector()
        for pipe, take in ((process.stdout, self._take_stdout), (process.stderr, self._take_stderr)):
            if pipe is not None:
                self._selector.register(pipe, selectors.EVENT_READ, take)

    def read_until(self, deadline: float) -> bool:
        """Read until the command has ended or wrote too much. Returns whether the deadline came first."""
        while self._selector.get_map() and not self.too_large:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return True
            ready = self._selector.select(min(remaining, _LOOK_SECONDS))
            for key, _ in ready:
                chunk = os.read(key.fd, _READ_BYTES)
                if chunk:
                    key.data(chunk)
                else:
                    self._selector.unregister(key.fileobj)
            if not ready and self._process.poll() is not None:
                return False  # whoever still holds a pipe is not the command
        if self.too_large:
            return False
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return True
        return False

    def _take_stdout(self, chunk: bytes) -> None:
        self.stdout += chunk[: self._limit - len(self.stdout) + 1]
        if len(self.stdout) > self._limit:
            self.too_large = True
            del self.stdout[self._limit :]

    def _take_stderr(self, chunk: bytes) -> None:
        self._stderr_bytes += len(chunk)
        self.too_large = self.too_large or self._stderr_bytes > self._limit
        self.stderr += chunk
        del self.stderr[:-STDERR_KEPT_BYTES]

    def close(self) -> None:
        """Kill what is left of the group, reap the command and close the pipes."""
        if self._process.returncode is None or self._selector.get_map():
            kill_group(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_SECONDS)
        self._selector.close()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def spawn(
    argv: Sequence[str | Path],
    *,
    log: IO[bytes] | int,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a long-lived child in its own process group, its output going to `log`; it dies with this process."""
    return subprocess.Popen(
        [str(word) for word in argv],
        env=dict(env) if env is not None else None,
        stdin=stdin,
        stdout=stdout if stdout is not None else log,
        stderr=log,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only a prctl system call
    )


def kill_group(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill a child's whole process group; quiet when it is already gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes], *, grace_seconds: float = 5.0) -> None:
    """End a child politely, then by force, and reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            kill_group(process)
    process.wait()


def read_line(descriptor: int, deadline: float) -> bytes:
    """Read one line; empty when the writer closed first. Raises `TimeoutError` at the deadline."""
    data = b""
    while b"\n" not in data:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
            raise TimeoutError
        piece = os.read(descriptor, 4096)
        if not piece:
            return b""
        data += piece
    return data
