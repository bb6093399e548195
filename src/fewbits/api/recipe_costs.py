"""What each type of each group costs: probed on text, or imported from a sensitivity run; and the choice for every budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from fewbits.analysis.knapsack import Choice, Option, choose
from fewbits.analysis.recipe_race import OptionEstimate, SearchSettings
from fewbits.api.recipe_bench import WindowProber
from fewbits.api.recipe_layout import Layout
from fewbits.api.recipe_request import CheckedRequest
from fewbits.core.codec import digest
from fewbits.quantizers.llamacpp.ggml_types import GGML_TYPES
from fewbits.quantizers.llamacpp.gguf_file import GgufFile
from fewbits.quantizers.llamacpp.grains import Rows, read_rows, round_trip, row_count
from fewbits.sensitivity.recipe_search import SearchResult, search
from fewbits.sensitivity.score_import import ImportedScores, SampledErrors, complete_costs, import_scores
from fewbits.store.sensitivity_runs import read_finished_manifest

SEARCH_SCHEMA = "fewbits.recipe-search.v1"
FIRST_WINDOWS = 2
STEP_WINDOWS = 2
RESAMPLES = 400
LEVEL = 0.95
_SAMPLE_ROWS, _SAMPLE_PLACES = 16, 4
"""Rows in a stretch, and evenly spread stretches, that a tensor's weight error is sampled from."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Estimates for every option, and the choices made with them."""

    options: Mapping[str, Mapping[str, OptionEstimate]]
    costs: Mapping[str, Mapping[str, float]]
    """Group -> ggml type -> what it was chosen by: nats per token, or the unit of imported scores."""
    choices: Mapping[str, Choice]
    predicted: Mapping[str, float]
    """Budget -> sum of the chosen options' divergence, nats; empty where scores have units of their own."""
    probes: int
    windows_read: int
    exhaustive_windows: int
    wall_seconds: float
    scores_sha256: str | None
    warnings: tuple[str, ...]


class GraftProber:
    """Measures one group at one type, everything else as in the reference. Opens the teacher when it is first asked."""

    def __init__(
        self,
        *,
        layout: Layout,
        build: Callable[[Mapping[str, str], Path], None],
        file: Path,
        teacher: Callable[[], Path],
        open_prober: Callable[[Path], AbstractContextManager[WindowProber]],
    ) -> None:
        """`build` writes the file of some tensor types; `file` is where probes are written, one at a time."""
        self._layout = layout
        self._build = build
        self._file = file
        self._teacher = teacher
        self._open_prober = open_prober
        self._stack = ExitStack()
        self._prober: WindowProber | None = None

    def __enter__(self) -> GraftProber:
        """Open nothing yet: a search that finds everything in its journal needs no engine."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the engine."""
        self._stack.close()

    def measure(self, group: str, ggml_type: str, first_window: int, windows: int) -> tuple[float, ...]:
        """Return the mean KL of each window, nats per token. Raises `BackendError`."""
        if self._prober is None:
            self._prober = self._stack.enter_context(self._open_prober(self._teacher()))
        self._build(self._layout.tensor_types({group: ggml_type}), self._file)
        try:
            found = self._prober.compare(self._file, first_window, windows)
        finally:
            self._file.unlink(missing_ok=True)
        return tuple(math.fsum(window.kl_nats) / len(window.kl_nats) for window in found)


@dataclass(frozen=True, slots=True)
class Question:
    """What is chosen among, and how it may be found out. `budgets`: name -> bytes for the groups together.

    `identity` holds what probes depend on besides groups and text: rows of other searches in the journal do not count.
    """

    layout: Layout
    budgets: Mapping[str, int]
    checked: CheckedRequest
    prober: GraftProber
    journal: Path
    identity: Mapping[str, str | None]

    def searched(
        self, groups: Mapping[str, Mapping[str, int]], budgets: Mapping[str, int], progress: Callable[[str], None]
    ) -> SearchResult:
        """Probe groups until the choice for the budgets is settled. Raises what `search` raises."""
        request = self.checked.request
        settings = SearchSettings(
            windows=request.probe_windows,
            first_windows=min(FIRST_WINDOWS, request.probe_windows),
            step_windows=STEP_WINDOWS,
            resamples=RESAMPLES,
            seed=request.seed,
            level=LEVEL,
        )
        identity = search_digest(self.layout, self.checked, self.identity)
        return search(groups, budgets, self.prober, settings, self.journal, identity, progress)


def probed_costs(question: Question, progress: Callable[[str], None]) -> Costs:
    """Probe what the choice needs, and choose for every budget. Raises what `search` raises."""
    found = question.searched(question.layout.sizes, question.budgets, progress)
    return Costs(
        options=found.options,
        costs=_measured(found),
        choices=found.choices,
        predicted={name: estimate.value for name, estimate in found.predicted.items()},
        probes=found.probes,
        windows_read=found.windows_read,
        exhaustive_windows=found.exhaustive_windows,
        wall_seconds=found.wall_seconds,
        scores_sha256=None,
        warnings=(),
    )


def _measured(found: SearchResult) -> dict[str, dict[str, float]]:
    return {
        group: {name: one.kl for name, one in options.items() if one.kl is not None} for group, options in found.options.items()
    }


def scored_costs(question: Question, progress: Callable[[str], None]) -> Costs:
    """Import scores; what they do not cover (the embedding) is probed, with one scored group beside it to tell the units apart.

    Raises `SpecError` (unusable manifests, another model), `StoreError`, and what `search` raises.
    """
    layout, request = question.layout, question.checked.request
    loaded = [read_finished_manifest(path) for path in request.scores]
    groups = {group.name: [tensor.name for tensor in group.tensors] for group in layout.groups}
    types = {name: list(sizes) for name, sizes in layout.sizes.items()}
    imported = import_scores([one.manifest for one in loaded], groups, types, _weight_errors(layout.file))
    found = _probe_the_rest(question, imported, progress)
    costs = complete_costs(imported, _measured(found) if found else {}, {})
    options = {name: _imported_options(costs[name], found.options.get(name) if found else None) for name in layout.sizes}
    choosable = {
        name: [Option(kind, layout.sizes[name][kind], cost) for kind, cost in row.items()] for name, row in costs.items()
    }
    return Costs(
        options=options,
        costs=costs,
        choices={name: choose(choosable, budget, where=name) for name, budget in question.budgets.items()},
        predicted={},
        probes=found.probes if found else 0,
        windows_read=found.windows_read if found else 0,
        exhaustive_windows=request.probe_windows * sum(map(len, layout.sizes.values())),
        wall_seconds=found.wall_seconds if found else 0.0,
        scores_sha256=loaded[0].sha256 if len(loaded) == 1 else digest([one.sha256 for one in loaded]),
        warnings=imported.warnings,
    )


def _probe_the_rest(question: Question, imported: ImportedScores, progress: Callable[[str], None]) -> SearchResult | None:
    """Probe the groups without scores, and the scored group of the most weights."""
    if not imported.uncovered:
        return None
    weights = {group.name: group.weights for group in question.layout.groups}
    beside = max(imported.costs, key=lambda name: (weights[name], name))
    sizes = {name: question.layout.sizes[name] for name in (*imported.uncovered, beside)}
    for name, why in imported.uncovered.items():
        progress(f"{name} has no imported score ({why}): it is probed")
    return question.searched(sizes, {}, progress)


def _imported_options(costs: Mapping[str, float], probed: Mapping[str, OptionEstimate] | None) -> dict[str, OptionEstimate]:
    """What the report shows: nats where probed; else only what the score came to, in words."""
    found = dict(probed or {})
    for name, cost in costs.items():
        found.setdefault(name, OptionEstimate(None, None, None, 0, detail=f"imported score {cost:.4g}"))
    return found


def _weight_errors(file: GgufFile) -> SampledErrors:
    tensors = {tensor.name: tensor for tensor in file.tensors}

    def rows_of(name: str) -> Rows:
        tensor = tensors[name]
        rows = row_count(tensor)
        size = min(_SAMPLE_ROWS, rows)
        starts = sorted({int(place * (rows - size) / max(1, _SAMPLE_PLACES - 1)) for place in range(_SAMPLE_PLACES)})
        return np.concatenate([read_rows(file, tensor, start, size) for start in starts])

    def stored(rows: Rows, ggml_type: str) -> Rows:
        return round_trip(rows, GGML_TYPES[ggml_type])

    return SampledErrors(rows_of, stored, {name: tensor.weights for name, tensor in tensors.items()})


def search_digest(layout: Layout, checked: CheckedRequest, identity: Mapping[str, str | None]) -> str:
    """Return the digest of everything that a probe depends on."""
    return digest(
        {
            "schema": SEARCH_SCHEMA,
            "groups": {group.name: [tensor.name for tensor in group.tensors] for group in layout.groups},
            "text_digest": checked.probe[0].digest,
            "window_tokens": checked.request.window_tokens,
            **identity,
        }
    )
