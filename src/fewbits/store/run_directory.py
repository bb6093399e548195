"""A sweep's folder: who may write to it, what lies where, and how it starts over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fewbits.core.codec import decode, encode_pretty
from fewbits.core.files import atomic_write, safe_name
from fewbits.records.plan import Plan
from fewbits.records.variant import Artifact
from fewbits.store.folders import hold_folder, set_aside

_OURS = (
    "plan.json",
    "trials.jsonl",
    "canary.jsonl",
    "divergence.jsonl",
    "sidecar.jsonl",
    "baselines.json",
    "labels.json",
    "page_labels.json",
    "per_run.jsonl",
    "benchmark_results.json",
    "censuses.json",
    "sanity.json",
    "stages.json",
    "sweep_summary.json",
    "sweep_report.md",
    "sweep_scatter.json",
    "manifests",
)


class RunDirectory:
    """Paths and records of one run. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan_path = root / "plan.json"
        self.trials_path = root / "trials.jsonl"
        self.canary_path = root / "canary.jsonl"
        self.divergence_path = root / "divergence.jsonl"
        self.sidecar_path = root / "sidecar.jsonl"
        self.baselines_path = root / "baselines.json"
        self.labels_path = root / "labels.json"
        self.page_labels_path = root / "page_labels.json"
        self.per_run_path = root / "per_run.jsonl"
        self.benchmark_path = root / "benchmark_results.json"
        self.censuses_path = root / "censuses.json"
        self.sanity_path = root / "sanity.json"
        self.stages_path = root / "stages.json"
        self.summary_path = root / "sweep_summary.json"
        self.report_path = root / "sweep_report.md"
        self.scatter_path = root / "sweep_scatter.json"

    def manifest_path(self, model_id: str, quant_tag: str) -> Path:
        """Where the manifest of one variant lies."""
        return self.root / "manifests" / safe_name(model_id) / f"{safe_name(quant_tag)}.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing. Raises `StoreError` when it is not writable or another sweep holds it."""
        busy = f"{self.root} is in use by another sweep: wait for it to end, or choose another folder with --out-dir."
        with hold_folder(self.root, busy):
            yield

    def read_plan(self) -> Plan | None:
        """The plan that this folder was started with; `None` in a new folder. Raises `StoreError` when it cannot be read."""
        if not self.plan_path.exists():
            return None
        return decode(self.plan_path.read_bytes(), Plan, str(self.plan_path))

    def write_plan(self, plan: Plan) -> None:
        """Write `plan.json`, unless it says the same already (an earlier run's commit stays on record)."""
        present = self.read_plan()
        if present is not None and present.digest == plan.digest:
            return
        atomic_write(self.plan_path, encode_pretty(plan))

    def write_manifest(self, artifact: Artifact) -> None:
        """Write the manifest of one variant."""
        atomic_write(self.manifest_path(artifact.model_id, artifact.scheme), encode_pretty(artifact))

    def read_manifests(self) -> dict[tuple[str, str], Artifact]:
        """Every variant manifest of the run, by (model, quant tag)."""
        manifests = {}
        for path in sorted((self.root / "manifests").glob("*/*.json")):
            artifact = decode(path.read_bytes(), Artifact, str(path))
            manifests[artifact.model_id, artifact.scheme] = artifact
        return manifests

    def holds_a_run(self) -> bool:
        """Whether anything of an earlier run lies here."""
        return any((self.root / name).exists() for name in _OURS)

    def set_aside(self) -> Path | None:
        """Move an earlier run's files into `superseded/<n>/`; returns that folder, or `None` when there was nothing."""
        return set_aside(self.root, [*(self.root / name for name in _OURS), *self.root.glob("sweep_frontier_*.svg")])
