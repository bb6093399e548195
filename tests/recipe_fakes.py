"""A recipe's surroundings without an engine: a tiny float model, and a meter whose truth is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fewbits.api.recipe_bench import RecipeTools
from fewbits.api.recipe_request import RecipeRequest
from fewbits.core.errors import BackendError
from fewbits.core.files import sha256_file
from fewbits.quantizers.llamacpp.gguf_file import read_gguf
from fewbits.quantizers.llamacpp.grains import GrainCache
from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
from fewbits.quantizers.llamacpp.recipe_build import build_recipe
from fewbits.quantizers.llamacpp.tensor_types import is_quantizable
from fewbits.records.divergence import DivergenceMethod, WindowDivergence
from fewbits.records.recipe import TaskComparison
from fewbits.records.summary import VerdictCode
from fewbits.records.variant import Artifact, ModelSource, Variant
from fewbits.runtimes.base import Comparison, DivergenceJob, Instrument
from fewbits.store.artifacts import ArtifactCache
from fewbits.store.blobs import BlobCache
from fewbits.store.recipes import RecipeShelf
from fewbits.sweep.progress import SilentObserver, SweepObserver

LOSS = {"F32": 0.0, "F16": 0.0, "Q8_0": 0.001, "Q5_1": 0.02, "Q5_0": 0.035, "Q4_1": 0.06, "Q4_0": 0.1, "IQ4_NL": 0.08}
"""Divergence of a tensor at a type, times its sensitivity."""
SENSITIVE = {"attn_v": 30.0, "ffn_down": 3.0, "token_embd": 0.2}
"""Kind -> sensitivity; 1 for others. The stock file spends its bits on the embedding."""
STOCK_TYPES = {"token_embd.weight": "Q8_0"}
STOCK_BASE = {"Q4_K_M": "Q4_0", "Q5_K_M": "Q5_0", "Q8_0": "Q8_0", "Q2_K": "Q4_0"}


def make_model(path: Path, *, layers: int = 2, width: int = 64, tokens: int = 256) -> Path:
    """Write a tiny float model: enough for headers and tensors, too odd to run."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * 0.05).astype(np.float16))

    matrix("token_embd.weight", tokens, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        for kind, rows in (("attn_q", width), ("attn_k", width // 2), ("attn_v", width // 2), ("attn_output", width)):
            matrix(f"blk.{layer}.{kind}.weight", rows, width)
        for kind, rows, columns in (("ffn_up", 2 * width, width), ("ffn_down", width, 2 * width)):
            matrix(f"blk.{layer}.{kind}.weight", rows, columns)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass
class Truth:
    """Divergence as it really is: additive over tensors, times the window's difficulty and noise of its own."""

    sensitive: Mapping[str, float] = field(default_factory=lambda: dict(SENSITIVE))
    held_out: Mapping[str, float] | None = None
    """Sensitivities on the held-out text; `None`: the same."""
    noise: float = 0.02
    held_out_noise: float = 0.02
    probes: int = 0
    compared: int = 0
    die_at_probe: int | None = None
    fail_type: str | None = None

    def windows(self, path: Path, text: str, first: int, count: int) -> tuple[WindowDivergence, ...]:
        held_out = "held-out" in text and self.held_out is not None
        sensitive = self.held_out if held_out and self.held_out is not None else self.sensitive
        total = 0.0
        for tensor in read_gguf(path).tensors:
            kind = next((name for name in sensitive if f"{name}." in tensor.name), "")
            total += LOSS.get(tensor.kind.name, 0.1) * sensitive.get(kind, 1.0) * 0.01
        return tuple(self._window(total, path, text, number) for number in range(first, first + count))

    def _window(self, total: float, path: Path, text: str, number: int) -> WindowDivergence:
        difficulty = np.random.default_rng([number, len(text)]).lognormal(0, 0.3)
        own = int(hashlib.sha256(path.read_bytes()).hexdigest()[:8], 16)
        value = (
            total
            * difficulty
            * np.random.default_rng([number, own]).lognormal(0, self.held_out_noise if "held-out" in text else self.noise)
        )
        return WindowDivergence(
            kl_nats=(float(value),) * 4, same_top=3, reference_nll_nats=10.0, variant_nll_nats=10.0 + float(value)
        )


class FakeMeter:
    """Reads the truth."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def instrument(self, job: DivergenceJob) -> Instrument:
        return Instrument(DivergenceMethod.FULL_LOGITS, "fake", "1.0", 1, job.policy.top_k)

    def teacher_key(self, reference: Variant, job: DivergenceJob) -> str | None:
        key = f"{reference.artifact.sha256} {job.evaluation.digest} {job.policy.windows} {job.policy.window_tokens}"
        return hashlib.sha256(key.encode()).hexdigest()

    def read_teacher(self, reference: Variant, job: DivergenceJob, output: Path) -> None:
        output.write_text(job.evaluation.name)

    def compare(self, variant: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        self.truth.compared += 1
        assert variant.path is not None
        return Comparison(self.truth.windows(variant.path, teacher.read_text(), 0, job.policy.windows), None, 1)

    def compare_with_itself(self, reference: Variant, teacher: Path, job: DivergenceJob) -> Comparison:
        return Comparison((), None, 1)


@dataclass
class FakeProber:
    truth: Truth
    text: str

    def compare(self, model: Path, first_window: int, windows: int) -> tuple[WindowDivergence, ...]:
        self.truth.probes += 1
        if self.truth.die_at_probe == self.truth.probes:
            raise KeyboardInterrupt
        if self.truth.fail_type in {tensor.kind.name for tensor in read_gguf(model).tensors}:
            raise BackendError("fake", "the engine cannot do this type")
        return self.truth.windows(model, self.text, first_window, windows)


class FakeQuantizer:
    """Finds models as the real one does; makes stock files of its own mix."""

    def __init__(self, folder: Path) -> None:
        self._real = LlamaCppQuantizer(ArtifactCache(folder / "cache"))
        self._folder = folder

    def locate(self, model_id: str) -> ModelSource:
        return self._real.locate(model_id)

    def resolve(self, model_id: str, progress: Callable[[str], None] | None = None) -> ModelSource:
        return self._real.resolve(model_id, progress)

    def check(self, source: ModelSource, scheme: str) -> None:
        self._real.check(source, scheme)

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        return self._real.estimate_bytes(source, scheme)

    def ensure(self, source: ModelSource, scheme: str, progress: Callable[[str], None]) -> Variant:
        file = read_gguf(Path(str(source.path)))
        path = self._folder / f"stock-{scheme}.gguf"
        base = STOCK_BASE.get(scheme, "Q5_1")
        types = {tensor.name: STOCK_TYPES.get(tensor.name, base) for tensor in file.tensors if is_quantizable(tensor)}
        with GrainCache() as cache:
            build_recipe(file.path, types, path, imatrix=None, cache=cache, progress=progress)
        made = read_gguf(path)
        artifact = Artifact(
            model_id=source.model_id,
            scheme=scheme,
            sha256=sha256_file(path),
            bytes=made.bytes,
            weights=made.weights,
            bits_per_weight=made.bits_per_weight,
            census=made.census,
            source_sha256=source.digest,
            source_scheme="F16",
        )
        return Variant(artifact=artifact, path=path)


def fake_tools(folder: Path, truth: Truth, tasks: VerdictCode | None = VerdictCode.UNRESOLVED) -> RecipeTools:
    """Tools without an engine; everything they keep lies in `folder`."""

    @contextmanager
    def open_prober(teacher: Path, _request: RecipeRequest) -> Iterator[FakeProber]:
        yield FakeProber(truth, teacher.read_text())

    def run_tasks(
        request: RecipeRequest, _model: str, _tags: tuple[str, str], run: Path, _observer: SweepObserver
    ) -> TaskComparison | None:
        if tasks is None:
            return None
        return TaskComparison(bank=request.tasks, items=60, difference=None, verdict=tasks, run=run.name)

    return RecipeTools(
        quantizer=FakeQuantizer(folder),
        meter=FakeMeter(truth),
        open_prober=open_prober,
        blobs=BlobCache(folder / "cache"),
        grains=folder / "grains",
        shelf=RecipeShelf(folder / "cache"),
        run_tasks=run_tasks,
    )


class Notes(SilentObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)
