"""What a sensitivity manifest says, most sensitive group first, and what several of them say together. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from fewbits.analysis.agreement import rank_agreement
from fewbits.core.codec import to_builtins
from fewbits.records.sensitivity import (
    CandidateScore,
    GroupSensitivity,
    PairTotals,
    RankAgreement,
    ReportRow,
    RunStatus,
    SensitivityManifest,
    SensitivityReport,
    SensitivityRollup,
)

UNQUANTIZED = "NONE"
"""Name of the candidate that leaves a group in 16 bits."""
OUTSIDE = "outside the layers"


@dataclass(frozen=True, slots=True)
class Total:
    """Sum over the rows that share something: a kind, or a depth (`None`: outside the stack of layers)."""

    name: str
    depth: int | None
    groups: int
    sensitivity: float
    share: float | None
    """Of the sum over all rows, 0..1; `None` where that is 0."""


def sensitivity_report(manifest: SensitivityManifest, manifest_name: str, manifest_sha256: str) -> SensitivityReport:
    """Tell a finished run's story as `layer-sensitivity-report.json` has it.

    `manifest_name` and `manifest_sha256` name the file that it was read from. Raises `ValueError` for a run that failed.
    """
    if manifest.status is not RunStatus.OK:
        msg = f"the run failed ({manifest.failure}): there are no scores to report"
        raise ValueError(msg)
    spec = manifest.spec
    rows = report_rows(manifest)
    return SensitivityReport(
        scheme=manifest.scheme,
        model=to_builtins(spec.model),
        dataset={
            **to_builtins(spec.dataset),
            "batch_size": spec.autoquant.batch_size,
            "calibration_samples": manifest.calibration_samples,
            "scored_samples": manifest.scored_samples,
            "padding_ratio": manifest.padding_ratio,
        },
        quantization={**manifest.quantization, "pair": to_builtins(spec.quant_pair)},
        autoquant_state={
            "method": manifest.method,
            "requested_effective_bits": manifest.requested_effective_bits,
            "adjusted_effective_bits": manifest.adjusted_effective_bits,
            "selected_effective_bits": manifest.selected_effective_bits,
            "score": manifest.selected_score,
            "is_satisfied": manifest.budget_satisfied,
        },
        layer_sensitivity=rows,
        excluded=manifest.excluded,
        total_sensitivity=total_sensitivity(rows),
        manifest=manifest_name,
        manifest_sha256=manifest_sha256,
    )


def report_rows(manifest: SensitivityManifest) -> tuple[ReportRow, ...]:
    """Return one row per group that has a candidate, most sensitive first; equal ones by name."""
    rows = [
        ReportRow(
            layer=name,
            kind=group.kind,
            depth=group.depth,
            num_bits=candidate.weight_bits,
            activation_bits=candidate.activation_bits,
            sensitivity=candidate.score,
            size_cost=candidate.cost_bytes,
            selected=group.selected,
        )
        for name, group in manifest.layer_sensitivity.items()
        if (candidate := most_aggressive(group)) is not None
    ]
    return tuple(sorted(rows, key=lambda row: (-row.sensitivity, row.layer)))


def most_aggressive(group: GroupSensitivity) -> CandidateScore | None:
    """Return the candidate of fewest bits that quantizes the group at all; `None` when there is none."""
    return next((candidate for candidate in group.candidates if candidate.format != UNQUANTIZED), None)


def total_sensitivity(rows: Iterable[ReportRow]) -> float:
    """Sum of the rows' sensitivities, rounded once: the same whatever their order."""
    return math.fsum(row.sensitivity for row in rows)


def totals_by_kind(rows: Sequence[ReportRow]) -> tuple[Total, ...]:
    """Sum the rows by kind, largest sum first; equal ones by name."""
    return tuple(sorted(_totals(rows, lambda row: (row.kind, None)), key=lambda total: (-total.sensitivity, total.name)))


def totals_by_depth(rows: Sequence[ReportRow]) -> tuple[Total, ...]:
    """Sum the rows by layer, first layer first; what lies outside the stack comes last."""
    found = _totals(rows, lambda row: (OUTSIDE if row.depth is None else f"layer {row.depth}", row.depth))
    return tuple(sorted(found, key=lambda total: math.inf if total.depth is None else total.depth))


def _totals(rows: Sequence[ReportRow], place: Callable[[ReportRow], tuple[str, int | None]]) -> list[Total]:
    parts: dict[tuple[str, int | None], list[ReportRow]] = defaultdict(list)
    for row in rows:
        parts[place(row)].append(row)
    whole = total_sensitivity(rows)
    totals = []
    for (name, depth), members in parts.items():
        part = total_sensitivity(members)
        totals.append(Total(name, depth, len(members), part, part / whole if whole > 0 else None))
    return totals


# --- several runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """A finished run, and what tells it from others."""

    manifest: SensitivityManifest
    scores: Mapping[str, float]

    @property
    def size(self) -> str:
        return size_label(self.manifest)

    @property
    def setting(self) -> tuple[str, ...]:
        """All but pair, size and groups: only runs that share it are compared."""
        spec = self.manifest.spec
        return (spec.model.name, spec.quant_granularity.name, self.manifest.method)

    @property
    def pair(self) -> tuple[str, ...]:
        """The pair, its scheme included: two configurations may share a pair's name."""
        return (self.manifest.spec.quant_pair.name, self.manifest.scheme)


def rollup(manifests: Mapping[str, SensitivityManifest], skipped: Mapping[str, str]) -> SensitivityRollup:
    """Put several runs into one table, and compare the rankings of those that score the same groups.

    `manifests` is path -> manifest, failed runs included; `skipped` is path -> why it could not be read. Compared are the
    calibration sizes of one pair, and the pairs of one size; model, granularity, method and groups must be the same.
    """
    runs = [
        _Run(manifest, {row.layer: row.sensitivity for row in report_rows(manifest)})
        for manifest in manifests.values()
        if manifest.status is RunStatus.OK
    ]
    runs.sort(key=lambda run: (run.setting, sample_cap(run.manifest), run.size, run.pair))
    label = _labels([run.manifest for run in runs])
    return SensitivityRollup(
        runs=tuple(pair_totals(path, manifest) for path, manifest in sorted(manifests.items(), key=_order)),
        between_sizes=_comparisons(runs, label, same=lambda run: run.pair, other=lambda run: (run.size,)),
        between_pairs=_comparisons(runs, label, same=lambda run: (run.size,), other=lambda run: run.pair),
        skipped=dict(skipped),
    )


def pair_totals(path: str, manifest: SensitivityManifest) -> PairTotals:
    """Return a run's line in the table; a failed run has no numbers of scores."""
    spec, rows = manifest.spec, report_rows(manifest)
    finished = manifest.status is RunStatus.OK
    return PairTotals(
        scheme=manifest.scheme,
        pair=spec.quant_pair.name,
        granularity=spec.quant_granularity.name,
        size=size_label(manifest),
        method=manifest.method,
        status=manifest.status,
        failure=manifest.failure,
        manifest=path,
        groups=len(rows),
        total_sensitivity=total_sensitivity(rows) if finished else None,
        selected_effective_bits=manifest.selected_effective_bits,
        scored_samples=manifest.scored_samples,
        most_sensitive=rows[0].layer if rows else None,
        wall_seconds=manifest.timings_seconds.get("total"),
        peak_rss_bytes=manifest.peak_memory_bytes.get("rss"),
    )


def size_label(manifest: SensitivityManifest) -> str:
    """Name the calibration size; where `max_calib_samples` overrides its cap, that is part of the name."""
    dataset = manifest.spec.dataset
    return dataset.size if dataset.max_calib_samples is None else f"{dataset.size} (at most {dataset.max_calib_samples})"


def sample_cap(manifest: SensitivityManifest) -> int:
    """Return how many calibration samples a run would take at most; 0 where the manifest does not say."""
    dataset = manifest.spec.dataset
    cap = dataset.max_calib_samples
    return cap if cap is not None else dataset.size_to_max_samples.get(dataset.size, 0)


def _order(item: tuple[str, SensitivityManifest]) -> tuple[object, ...]:
    """Order of the table: method, size, then the pair that disturbs least; failed runs last."""
    path, manifest = item
    failed = manifest.status is not RunStatus.OK
    total = total_sensitivity(report_rows(manifest))
    return (failed, manifest.method, sample_cap(manifest), size_label(manifest), total, manifest.scheme, path)


def _labels(manifests: Sequence[SensitivityManifest]) -> Callable[[_Run], str]:
    """Return what names a run in a comparison: pair and size, and whatever else differs within the rollup."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for manifest in manifests:
        by_name[manifest.spec.quant_pair.name].add(manifest.scheme)
    varying = [index for index in range(3) if len({_Run(manifest, {}).setting[index] for manifest in manifests}) > 1]

    def label(run: _Run) -> str:
        pair = run.manifest.spec.quant_pair.name
        name = pair if len(by_name[pair]) == 1 else f"{pair} ({run.manifest.scheme})"
        return ", ".join([f"{name} {run.size}", *(run.setting[index] for index in varying)])

    return label


def _comparisons(
    runs: Sequence[_Run],
    label: Callable[[_Run], str],
    *,
    same: Callable[[_Run], tuple[str, ...]],
    other: Callable[[_Run], tuple[str, ...]],
) -> tuple[RankAgreement, ...]:
    """Compare every two runs that share their setting, their groups and `same`, and differ in `other`."""
    families: dict[tuple[object, ...], list[_Run]] = defaultdict(list)
    for run in runs:
        families[run.setting, same(run), frozenset(run.scores)].append(run)
    return tuple(
        rank_agreement(left.scores, right.scores, names=(label(left), label(right)))
        for family in families.values()
        for left, right in combinations(family, 2)
        if other(left) != other(right) and left.scores
    )
