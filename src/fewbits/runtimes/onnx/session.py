"""One detector, loaded in a child process of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewbits.core.errors import BackendError, IdentityError, ProtocolError, SpecError, TrialTimeoutError
from fewbits.core.process import read_line, spawn, stop, tail_of
from fewbits.records.base import Unavailable
from fewbits.records.plan import EffectiveControls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity
from fewbits.runtimes.placement import pinned, process_cores

ENGINE = "onnxruntime"
PROOF = "loaded_bytes"
"""The child hashed the very bytes that it made its session from."""
INTEGER_OPERATORS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QGemm",
    }
)
"""Convolutions and matrix products that compute with integers; others use floats, whatever their weights are stored as."""
_PRODUCTS = ("Conv", "MatMul", "Gemm")
"""What their operator types have in their names, fused ones included (`FusedConv`, `FusedMatMul`)."""
_WRITABLE_PROVIDERS = frozenset({"CPUExecutionProvider", "CUDAExecutionProvider"})
"""Providers whose executed graph can be written to a file; others compile parts of it."""
_DYING_SECONDS = 1.0
_LOG_TAIL_BYTES = 64 * 1024


class OnnxSession:
    """A loaded detector. The child dies with us; closing ends and reaps it."""

    def __init__(
        self, artifact: Artifact, options: dict[str, Any], cores: tuple[int, ...] | None, load_timeout_seconds: float
    ) -> None:
        self._artifact = artifact
        self._folder = Path(tempfile.mkdtemp(prefix="fewbits-onnx-"))
        self._log = self._folder / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._late = False
        optimised = self._folder / "optimised.onnx" if _WRITABLE_PROVIDERS.issuperset(options["providers"]) else None
        began = time.perf_counter()
        try:
            self._start(options | {"optimised": str(optimised) if optimised else None}, cores)
            self.description = _parsed(self._line(time.monotonic() + load_timeout_seconds))
        except TimeoutError as error:
            tail = self._log_tail()
            self.close()
            raise BackendError(ENGINE, f"the model was not loaded within {load_timeout_seconds:g} s", tail=tail) from error
        except BaseException:
            self.close()
            raise
        self._load_seconds = time.perf_counter() - began
        # read here, not in the child, whose memory is measured as the model's
        self.description["operators"] = executed_operators(optimised) if optimised else None

    def _start(self, options: dict[str, Any], cores: tuple[int, ...] | None) -> None:
        self._answers, writing = os.pipe()
        argv = [sys.executable, "-P", "-m", "fewbits.runtimes.onnx.worker", json.dumps(options)]
        try:
            with self._log.open("wb") as log, pinned(cores):
                self._process = spawn(argv, log=log.fileno(), stdout=writing, stdin=subprocess.PIPE)
        finally:
            os.close(writing)

    def _line(self, deadline: float) -> bytes:
        """Read one answer. Raises `TimeoutError`, `BackendError` when the child has ended."""
        line = read_line(self._answers, deadline)
        if not line:
            raise self._died(
                "the model could not be loaded" if not hasattr(self, "description") else "the engine died while answering"
            )
        return line

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds from spawning the child until its session was made."""
        return self._load_seconds

    @property
    def engine(self) -> str:
        """`onnxruntime`."""
        return ENGINE

    @property
    def engine_version(self) -> str:
        """ONNX Runtime's version and the providers that really run the graph."""
        return f"{self.description['version']} ({', '.join(self.description['providers'])})"

    @property
    def executed_products(self) -> tuple[int, int] | None:
        """Executed convolutions and matrix products: how many on integers, how many on floats; `None` where unknown."""
        operators: dict[str, int] | None = self.description["operators"]
        if operators is None:
            return None
        whole = sum(count for name, count in operators.items() if any(word in name for word in _PRODUCTS))
        integer = sum(count for name, count in operators.items() if name in INTEGER_OPERATORS)
        return integer, whole - integer

    @property
    def integer_share(self) -> float | None:
        """Share of the executed convolutions and matrix products that compute with integers, 0..1; `None` where unknown."""
        if self.executed_products is None:
            return None
        integer, floating = self.executed_products
        return integer / (integer + floating) if integer + floating else None

    def identity(self) -> ServedIdentity:
        """Prove that the child's session was made from the artifact's bytes. Raises `IdentityError`."""
        loaded = self.description["sha256"]
        if loaded != self._artifact.sha256:
            msg = f"the child loaded a file with sha256 {loaded}, not {self._artifact.sha256}"
            raise IdentityError(msg)
        return ServedIdentity(
            served_name=f"fewbits-{loaded[:12]}", proof=PROOF, artifact_sha256=loaded, quantization=self._artifact.scheme
        )

    def verify_reply(self, reply: RawReply) -> None:
        """Check that the reply names the loaded bytes. Raises `IdentityError`."""
        if reply.served_name != f"fewbits-{self.description['sha256'][:12]}":
            msg = f"{ENGINE} answered as {reply.served_name!r}"
            raise IdentityError(msg)

    def effective_controls(self) -> EffectiveControls:
        """Read back: threads from the session's options, cores from the OS; detectors have no other controls."""
        cores = process_cores(self._process.pid) if self._process is not None else None
        reasons = dict.fromkeys(("seed", "context_size", "temperature", "max_tokens"), Unavailable.NOT_SUPPORTED.value)
        if cores is None:
            reasons["affinity"] = Unavailable.NOT_SUPPORTED.value
        return EffectiveControls(threads=self.description["threads"], affinity=cores, unavailable=reasons)

    def process_ids(self) -> tuple[int, ...]:
        """The child that holds the weights; empty once it has ended."""
        return (self._process.pid,) if self._process is not None and self.is_alive() else ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Show one image; a request without an image runs the graph on plain grey, which is what a warm-up needs.

        An answer that missed its deadline is waited for and thrown away first. Raises `TrialTimeoutError`, `BackendError` (also
        for a missing image), `ProtocolError` (an output of another form, values out of range, an image that is damaged or not the
        one that was planned), `SpecError` for a name that leaves the image folder.
        """
        image = request.image
        if image is not None:
            require_image_name(image.file_name)
        message = {} if image is None else {"file": image.file_name, "sha256": image.sha256}
        deadline = time.monotonic() + timeout_seconds
        try:
            if self._late and self.is_alive():
                self._line(deadline)
            self._send(message)
            self._late = True
            line = self._line(deadline)
            self._late = False
        except TimeoutError as error:
            msg = f"{ENGINE} did not answer within {timeout_seconds:g} s"
            raise TrialTimeoutError(msg) from error
        answer = _parsed(line)
        if problem := answer.get("problem"):
            msg = f"{ENGINE}: {problem}"
            raise ProtocolError(msg)
        if failure := answer.get("failure"):
            raise BackendError(ENGINE, failure, tail=self._log_tail())
        return self._reply(answer)

    def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or not self.is_alive():
            raise self._died("the engine is not running")
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise self._died("the engine died") from error

    def _reply(self, answer: dict[str, Any]) -> RawReply:
        try:
            return RawReply(
                text=answer["text"],
                finish_reason="stop",
                served_name=f"fewbits-{self.description['sha256'][:12]}",
                wall_seconds=float(answer["wall_seconds"]),
                predicted_ms=float(answer["run_ms"]),
                has_tokens=False,
                raw_timings={name: answer[name] for name in ("run_ms", "decode_ms", "preprocess_ms")},
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{ENGINE}'s worker left out {error}"
            raise ProtocolError(msg) from error

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End and reap the child. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            stop(process)
            if process.stdin is not None:
                with suppress(OSError):  # what a dead child never read
                    process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1
        shutil.rmtree(self._folder, ignore_errors=True)

    def _died(self, message: str) -> BackendError:
        returncode = None
        if self._process is not None:
            try:
                returncode = self._process.wait(_DYING_SECONDS)
            except subprocess.TimeoutExpired:
                returncode = None
        return BackendError(ENGINE, message, returncode=returncode, tail=self._log_tail())

    def _log_tail(self) -> str:
        try:
            return tail_of(self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_BYTES:])
        except OSError:
            return ""


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        msg = f"{ENGINE}'s worker answered something that is not JSON: {line[:120]!r}"
        raise ProtocolError(msg) from error
    if not isinstance(message, dict):
        msg = f"{ENGINE}'s worker answered something that is no object: {line[:120]!r}"
        raise ProtocolError(msg)
    return message


def executed_operators(path: Path) -> dict[str, int] | None:
    """Count the operators of an executed graph by type, and remove its file; `None` where nothing here can read it."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        return None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, ValueError, DecodeError):
        return None
    finally:
        path.unlink(missing_ok=True)
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def require_image_name(name: str) -> None:
    """Raise `SpecError` for a name that would leave the image folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SpecError.single("image", f"{name!r} is not a name below the image folder")
