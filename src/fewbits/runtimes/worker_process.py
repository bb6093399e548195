"""A child process of our own that answers one JSON object per line: the parent's side (`worker_loop` is the child's)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewbits.core.errors import BackendError, ProtocolError, TrialTimeoutError
from fewbits.core.process import read_line, spawn, stop, tail_of
from fewbits.runtimes.placement import pinned

_DYING_SECONDS = 1.0
_LOG_TAIL_BYTES = 64 * 1024


class WorkerProcess:
    """A started child. `description` is its first answer; `folder` a private folder that goes when it is closed."""

    def __init__(
        self, engine: str, module: str, options: dict[str, Any], *, cores: tuple[int, ...] | None, load_timeout_seconds: float
    ) -> None:
        """Start `python -m module` with the options as JSON, plus `folder`, and wait for its description.

        `engine` is its name in messages. Raises `BackendError` when it ends or is not ready in time, `ProtocolError`.
        """
        self._engine = engine
        self.folder = Path(tempfile.mkdtemp(prefix="fewbits-worker-"))
        self._log = self.folder / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._late = False
        self.description: dict[str, Any] = {}
        began = time.perf_counter()
        try:
            self._start(module, options | {"folder": str(self.folder)}, cores)
            self.description = self._parsed(self._line(time.monotonic() + load_timeout_seconds))
        except TimeoutError as error:
            tail = self._log_tail()
            self.close()
            raise BackendError(engine, f"the model was not loaded within {load_timeout_seconds:g} s", tail=tail) from error
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - began

    def _start(self, module: str, options: dict[str, Any], cores: tuple[int, ...] | None) -> None:
        self._answers, writing = os.pipe()
        argv = [sys.executable, "-P", "-m", module, json.dumps(options)]
        try:
            with self._log.open("wb") as log, pinned(cores):
                self._process = spawn(argv, log=log.fileno(), stdout=writing, stdin=subprocess.PIPE)
        finally:
            os.close(writing)

    @property
    def process_id(self) -> int | None:
        """The child's; `None` once it was closed."""
        return self._process.pid if self._process is not None else None

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._process is not None and self._process.poll() is None

    def ask(self, message: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Send one request and wait for its answer; an answer that missed its deadline is waited for and thrown away first.

        Raises `TrialTimeoutError`, `ProtocolError` for an answer with a `problem` (what was asked cannot be answered), and
        `BackendError` for one with a `failure` and for a child that ended.
        """
        deadline = time.monotonic() + timeout_seconds
        try:
            if self._late and self.is_alive():
                self._line(deadline)
            self._send(message)
            self._late = True
            line = self._line(deadline)
            self._late = False
        except TimeoutError as error:
            msg = f"{self._engine} did not answer within {timeout_seconds:g} s"
            raise TrialTimeoutError(msg) from error
        answer = self._parsed(line)
        if problem := answer.get("problem"):
            msg = f"{self._engine}: {problem}"
            raise ProtocolError(msg)
        if failure := answer.get("failure"):
            raise BackendError(self._engine, failure, tail=self._log_tail())
        return answer

    def _line(self, deadline: float) -> bytes:
        """Read one answer. Raises `TimeoutError`, `BackendError` when the child has ended."""
        line = read_line(self._answers, deadline)
        if not line:
            raise self._died("the engine died while answering" if self.description else "the model could not be loaded")
        return line

    def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or not self.is_alive():
            raise self._died("the engine is not running")
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise self._died("the engine died") from error

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError as error:
            msg = f"{self._engine}'s worker answered something that is not JSON: {line[:120]!r}"
            raise ProtocolError(msg) from error
        if not isinstance(message, dict):
            msg = f"{self._engine}'s worker answered something that is no object: {line[:120]!r}"
            raise ProtocolError(msg)
        return message

    def close(self) -> None:
        """End and reap the child, remove its folder. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            stop(process)
            if process.stdin is not None:
                with suppress(OSError):  # what a dead child never read
                    process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
        shutil.rmtree(self.folder, ignore_errors=True)

    def _died(self, message: str) -> BackendError:
        returncode = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                returncode = self._process.wait(_DYING_SECONDS)
        return BackendError(self._engine, message, returncode=returncode, tail=self._log_tail())

    def _log_tail(self) -> str:
        try:
            return tail_of(self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_BYTES:])
        except OSError:
            return ""
