"""Probing many GGUF files against one teacher: a child process that stays, loads each file, compares it and frees it.

A new process per file would start Python and open the teacher every time, and a search asks for hundreds of short looks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

import msgspec

from fewbits.core.engines import CYLLAMA, find_wheel
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.core.process import read_line, spawn, stop, tail_of
from fewbits.records.divergence import DivergenceReason, WindowDivergence
from fewbits.runtimes.llamacpp.divergence import ENGINE

_WORKER = "fewbits.runtimes.llamacpp.logits_worker"
_ATTEMPTS = 2
"""Looks at one file before it is given up: a child may die for a reason of its own (memory), a bad file kills it again."""
_LOG_TAIL_BYTES = 16 * 1024
_DYING_SECONDS = 2.0

T = TypeVar("T")


class _Ready(msgspec.Struct):
    windows: int


class _Probed(msgspec.Struct):
    windows: tuple[WindowDivergence, ...] = ()
    refused: DivergenceReason | None = None
    detail: str = ""


class GgufProber:
    """Compares GGUF files with a teacher (`LlamaCppMeter.read_teacher`), one after the other. For use with `with`.

    `threads` and `window_tokens` must be the teacher's; `timeout_seconds` bounds one comparison, loading included. The child
    is started on first use and again after a crash.
    """

    def __init__(self, teacher: Path, *, threads: int, window_tokens: int, timeout_seconds: float) -> None:
        self._options = {
            "job": "probe",
            "teacher": str(teacher),
            "threads": threads,
            "window_tokens": window_tokens,
            "flash": True,
        }
        self._timeout = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._windows: int | None = None

    def __enter__(self) -> GgufProber:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the child; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def windows(self) -> int:
        """Windows that the teacher holds. Starts the child; raises `PrerequisiteError`, `BackendError`."""
        if self._windows is None:
            self._windows = self._start(time.monotonic() + self._timeout)
        return self._windows

    def compare(self, model: Path, first_window: int, windows: int) -> tuple[WindowDivergence, ...]:
        """Compare a file with the teacher on windows `first_window`..`first_window + windows - 1`, in order.

        Raises `SpecError` for windows that the teacher does not hold, `PrerequisiteError` (no cyllama), `BackendError` with the
        engine's last lines: other tokens, no answer in time, or a child that died twice.
        """
        if first_window < 0 or windows < 1 or first_window + windows > self.windows:
            asked = f"windows {first_window}..{first_window + windows - 1} were asked for"
            raise SpecError.single("windows", f"{asked}, the text has {self.windows}", "ask for fewer, or bring a longer text")
        request = json.dumps({"model": str(model), "first": first_window, "windows": windows}).encode() + b"\n"
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._ask(request, windows)
            except EOFError as error:
                failure = self._died(f"died while reading {model.name}, {attempt} times in a row")
                if attempt == _ATTEMPTS:
                    raise failure from error
        raise AssertionError  # the loop returns or raises

    def close(self) -> None:
        """End the child. Safe to call twice; the next comparison starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            stop(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _ask(self, request: bytes, windows: int) -> tuple[WindowDivergence, ...]:
        """Send a request and read its answer. Raises `EOFError` when the child is gone."""
        deadline = time.monotonic() + self._timeout
        if self._process is None:
            self._start(deadline)
        process = self._running()
        try:
            process.stdin.write(request)  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError as error:
            raise self._gone() from error
        found = self._answer(deadline, _Probed)
        if found.refused is not None:
            raise BackendError(ENGINE, found.detail)
        if len(found.windows) != windows:
            raise self._died(f"compared {len(found.windows)} windows instead of {windows}")
        return found.windows

    def _start(self, deadline: float) -> int:
        """Start the child and return how many windows the teacher holds."""
        if find_wheel(ENGINE, CYLLAMA) is None:
            raise PrerequisiteError("no engine that shows logits", "Install it with: pip install 'fewbits[llamacpp]'")
        self.close()
        self._log = tempfile.TemporaryFile(prefix="fewbits-probe-")  # noqa: SIM115 - lives as long as the child
        words = [sys.executable, "-P", "-m", _WORKER, json.dumps(self._options)]
        self._process = spawn(words, log=self._log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            return self._answer(deadline, _Ready).windows
        except EOFError as error:
            raise self._died("could not read the teacher") from error

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EOFError
        return self._process

    def _answer(self, deadline: float, type_: type[T]) -> T:
        """Read one line of the child. Raises `EOFError` when it is gone, `BackendError` (too late, unreadable)."""
        try:
            line = read_line(self._running().stdout.fileno(), deadline)  # type: ignore[union-attr]
        except TimeoutError as error:
            raise self._died(f"was not done after {self._timeout:g} s") from error
        if not line:
            raise self._gone()
        try:
            return msgspec.json.decode(line, type=type_)
        except msgspec.DecodeError as error:
            raise self._died(f"its answer cannot be read: {error}") from error

    def _gone(self) -> EOFError:
        """Wait until the child has ended, so that its exit code can be told: its pipes close before it can be reaped."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING_SECONDS)
        return EOFError()

    def _died(self, message: str) -> BackendError:
        """Describe a failure with the child's exit code and last lines, and end the child."""
        code = self._process.poll() if self._process is not None else None
        tail = ""
        if self._log is not None:
            size = self._log.seek(0, 2)
            self._log.seek(max(0, size - _LOG_TAIL_BYTES))
            tail = tail_of(self._log.read().decode("utf-8", "replace"))
        self.close()
        return BackendError(ENGINE, message, returncode=code, tail=tail)
