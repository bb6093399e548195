"""The child process that holds the weights: starting it on loopback, waiting until it is ready, its log, its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fewbits.core.engines import EngineTool
from fewbits.core.errors import BackendError, FewbitsError
from fewbits.core.process import read_line, run_command, spawn, stop, tail_of
from fewbits.runtimes.http_stream import Endpoint, ask_json, parse_base_url
from fewbits.runtimes.placement import pinned

LOOPBACK = "127.0.0.1"
_PORT_ATTEMPTS = 5
_POLL_SECONDS = 0.02
_HEALTH_TIMEOUT_SECONDS = 5.0
_DYING_SECONDS = 1.0
_HELP_TIMEOUT_SECONDS = 20.0
_PORT_TAKEN = re.compile(r"couldn't bind|address already in use", re.IGNORECASE)
_LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """Everything that a child is started with. Sizes are tokens; `cores` is `None` when the OS may choose."""

    model: Path
    alias: str
    threads: int
    context_size: int
    batch_size: int
    cores: tuple[int, ...] | None


class LlamaChild:
    """A started llama.cpp server process: `endpoint` answers, `load_seconds` is the time from spawn to the first `ok`."""

    def __init__(self, tool: EngineTool, options: LaunchOptions, load_timeout_seconds: float) -> None:
        self.name = "llama-server" if tool.kind == "binary" else "xllamacpp"
        self._folder = Path(tempfile.mkdtemp(prefix="fewbits-llamacpp-"))
        self._log = self._folder / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned = 0.0
        deadline = time.monotonic() + load_timeout_seconds
        try:
            if tool.kind == "binary":
                self.endpoint = self._start_program(tool.path, options, deadline)
            else:
                self.endpoint = self._start_worker(options, deadline)
            self._wait_until_healthy(self.endpoint, deadline)
            self.load_seconds = time.perf_counter() - self._spawned
        except TimeoutError as error:
            tail = self.log_tail()
            self.close()
            raise BackendError(self.name, f"the model was not loaded within {load_timeout_seconds:g} s", tail=tail) from error
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the server (0 after closing)."""
        return self._process.pid if self._process is not None else 0

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process is not None and self._process.poll() is None

    def ends_soon(self) -> bool:
        """Whether the process has ended, or does within a moment: its connections break before it can be reaped."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_DYING_SECONDS)
        return not self.is_alive()

    def log_text(self) -> str:
        """What the engine has logged so far; empty after closing."""
        try:
            return self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def log_tail(self) -> str:
        """The last lines of the engine's log."""
        return tail_of(self.log_text()[-_LOG_TAIL_BYTES:])

    def died(self, message: str) -> BackendError:
        """Describe a failure together with the exit code (when it ended) and the log's last lines."""
        returncode = self._process.poll() if self._process is not None else None
        return BackendError(self.name, message, returncode=returncode, tail=self.log_tail())

    def close(self) -> None:
        """End the process group, reap it, drop its log. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            stop(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_program(self, program: Path, options: LaunchOptions, deadline: float) -> Endpoint:
        """Start `llama-server` on a free port; another program may take the port in between, so try a few."""
        flags = _program_flags(program, options)
        for _attempt in range(_PORT_ATTEMPTS):
            endpoint = Endpoint("http", LOOPBACK, _free_port())
            argv: list[str | Path] = [program, *flags, "--host", LOOPBACK, "--port", str(endpoint.port)]
            self._spawn(argv, options, subprocess.DEVNULL)
            try:
                self._wait_until_healthy(endpoint, deadline)
            except BackendError:
                if not self.is_alive() and _PORT_TAKEN.search(self.log_text()):
                    continue
                raise
            return endpoint
        raise self.died(f"found no free port on {LOOPBACK} in {_PORT_ATTEMPTS} attempts")

    def _spawn(self, argv: Sequence[str | Path], options: LaunchOptions, stdout: int) -> None:
        with self._log.open("wb") as log, pinned(options.cores):
            self._spawned = time.perf_counter()
            self._process = spawn(argv, log=log.fileno(), stdout=stdout, env=_child_environment(os.environ))

    def _start_worker(self, options: LaunchOptions, deadline: float) -> Endpoint:
        """Start our own worker, which lets the OS choose the port and announces it when the model is loaded."""
        message = {
            "model": str(options.model),
            "alias": options.alias,
            "threads": options.threads,
            "context_size": options.context_size,
            "batch_size": options.batch_size,
        }
        argv = [sys.executable, "-P", "-m", "fewbits.runtimes.llamacpp.worker", json.dumps(message)]
        reading, writing = os.pipe()
        try:
            self._spawn(argv, options, writing)
        finally:
            os.close(writing)
        try:
            line = read_line(reading, deadline)
        finally:
            os.close(reading)
        if not line:
            self.ends_soon()
            raise self.died("the model could not be loaded")
        try:
            return parse_base_url(json.loads(line)["listening"], "worker")
        except (ValueError, KeyError, TypeError, FewbitsError) as error:
            raise self.died(f"the worker announced no address: {line[:120]!r}") from error

    def _wait_until_healthy(self, endpoint: Endpoint, deadline: float) -> None:
        """Poll `/health` until the model answers. Raises `TimeoutError` at the deadline, `BackendError` when the child died."""
        while True:
            if not self.is_alive():
                raise self.died("the model could not be loaded")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            timeout = min(_HEALTH_TIMEOUT_SECONDS, remaining)
            with suppress(FewbitsError):
                # 503 while loading, refused before it listens
                if ask_json(endpoint, "GET", "/health", tool=self.name, timeout_seconds=timeout).get("status") == "ok":
                    return
            time.sleep(min(_POLL_SECONDS, remaining))


def _program_flags(program: Path, options: LaunchOptions) -> list[str]:
    """The server's flags; those that only some builds know are passed where `--help` lists them."""
    flags = ["-m", str(options.model), "-a", options.alias, "-np", "1", "-c", str(options.context_size)]
    flags += ["-t", str(options.threads), "-tb", str(options.threads)]
    flags += ["-b", str(options.batch_size), "-ub", str(options.batch_size)]
    known = run_command([program, "--help"], timeout_seconds=_HELP_TIMEOUT_SECONDS).stdout
    for flag, value in (
        ("--no-webui", None),
        ("--no-context-shift", None),
        ("--no-cache-prompt", None),
        ("--cache-ram", "0"),
        ("--offline", None),
    ):
        if re.search(rf"(?<![\w-]){flag}(?![\w-])", known):
            flags += [flag] if value is None else [flag, value]
    return flags


def _child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without `LLAMA_ARG_*`: those would change controls behind the plan's back."""
    return {name: value for name, value in variables.items() if not name.startswith("LLAMA_ARG_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
