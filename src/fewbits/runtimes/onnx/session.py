"""One detector, loaded in a child process of our own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fewbits.core.errors import IdentityError, ProtocolError
from fewbits.core.files import require_name_below
from fewbits.records.base import Unavailable
from fewbits.records.plan import EffectiveControls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.trial import RawReply
from fewbits.records.variant import Artifact, ServedIdentity
from fewbits.runtimes.placement import process_cores
from fewbits.runtimes.worker_process import WorkerProcess

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
OPTIMISED_FILE = "optimised.onnx"
"""Where the child writes the graph that it executes, in its folder."""


class OnnxSession:
    """A loaded detector. The child dies with us; closing ends and reaps it."""

    def __init__(
        self, artifact: Artifact, options: dict[str, Any], cores: tuple[int, ...] | None, load_timeout_seconds: float
    ) -> None:
        self._artifact = artifact
        writable = _WRITABLE_PROVIDERS.issuperset(options["providers"])
        self._worker = WorkerProcess(
            ENGINE,
            "fewbits.runtimes.onnx.worker",
            options | {"optimised": OPTIMISED_FILE if writable else None},
            cores=cores,
            load_timeout_seconds=load_timeout_seconds,
        )
        # read here, not in the child, whose memory is measured as the model's
        operators = executed_operators(self._worker.folder / OPTIMISED_FILE) if writable else None
        self.description = self._worker.description | {"operators": operators}

    @property
    def init_latency_seconds(self) -> float | None:
        """Seconds from spawning the child until its session was made."""
        return self._worker.load_seconds

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
        process_id = self._worker.process_id
        cores = process_cores(process_id) if process_id is not None else None
        reasons = dict.fromkeys(("seed", "context_size", "temperature", "max_tokens"), Unavailable.NOT_SUPPORTED.value)
        if cores is None:
            reasons["affinity"] = Unavailable.NOT_SUPPORTED.value
        return EffectiveControls(threads=self.description["threads"], affinity=cores, unavailable=reasons)

    def process_ids(self) -> tuple[int, ...]:
        """The child that holds the weights; empty once it has ended."""
        process_id = self._worker.process_id
        return (process_id,) if process_id is not None and self.is_alive() else ()

    def generate(self, request: GenerateRequest, timeout_seconds: float) -> RawReply:
        """Show one image; a request without an image runs the graph on plain grey, which is what a warm-up needs.

        Raises `TrialTimeoutError`, `BackendError` (also
        for a missing image), `ProtocolError` (an output of another form, values out of range, an image that is damaged or not the
        one that was planned), `SpecError` for a name that leaves the image folder.
        """
        image = request.image
        if image is not None:
            require_name_below(image.file_name, "image")
        message = {} if image is None else {"file": image.file_name, "sha256": image.sha256}
        return self._reply(self._worker.ask(message, timeout_seconds))

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
        return self._worker.is_alive()

    def close(self) -> None:
        """End and reap the child. Safe to call twice."""
        self._worker.close()


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
