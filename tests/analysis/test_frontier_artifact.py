"""The frontier artifact says what the summary says, no more and no less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fewbits.analysis.frontier_artifact import frontier_artifact
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.explorer import ArtifactProvenance
from fewbits.records.frontier_artifact import FrontierArtifact, FrontierQuantRow
from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import FrontierReason, ImportedFrom, QuantRow, SweepSummary, VerdictCode

BASE = decode((Path(__file__).parent / "golden" / "summary.json").read_bytes(), SweepSummary, "golden")
SOURCE = SourceFile(path="out/sweep_summary.json", sha256="a" * 64, schema_version="2.2.0")


def artifact_of(summary: SweepSummary) -> FrontierArtifact:
    provenance = ArtifactProvenance(ref="run-7:4be1", sources=(SOURCE,), commit_sha=summary.commit_sha, fewbits_version="0")
    return frontier_artifact(summary, provenance=provenance, source_summary=SOURCE.path, generated_at="2026-02-27T10:00:00Z")


def with_row(index: int, **changes: Any) -> SweepSummary:
    session = BASE.sessions[0]
    rows = list(session.per_quant)
    rows[index] = msgspec.structs.replace(rows[index], **changes)
    return msgspec.structs.replace(BASE, sessions=(msgspec.structs.replace(session, per_quant=tuple(rows)),))


def test_the_common_fields_and_the_origin() -> None:
    artifact = artifact_of(BASE)
    assert artifact.schema_version == "explorer.frontier.v1"
    assert (artifact.generated_at, artifact.execution_lane, artifact.vram_profile) == ("2026-02-27T10:00:00Z", "lab", "safe")
    assert artifact.provenance.sources == (SOURCE,)
    assert artifact.source_summary == "out/sweep_summary.json"
    assert artifact.hardware_fingerprint == BASE.hardware_fingerprint
    assert artifact.plan_digest == BASE.provenance.plan_digest
    assert artifact.summary_complete is True


def test_rows_carry_the_summarys_numbers() -> None:
    (session,) = artifact_of(BASE).sessions
    source = BASE.sessions[0]
    assert [row.quant_tag for row in session.quant_rows] == [row.quant_tag for row in source.per_quant]
    shared = set(FrontierQuantRow.__struct_fields__) & set(QuantRow.__struct_fields__) - {"verdict", "unavailable"}
    assert len(shared) > 15
    for row, origin in zip(session.quant_rows, source.per_quant, strict=True):
        assert {name: getattr(row, name) for name in shared} == {name: getattr(origin, name) for name in shared}
        assert origin.uncertainty is not None
        assert row.frontier_probability == origin.uncertainty.frontier_probability
    assert session.quant_rows[1].verdict is VerdictCode.UNRESOLVED
    assert session.quant_rows[1].verdict_reasons == ("TOO_FEW_ITEMS",)


def test_the_picks_and_the_frontier() -> None:
    (session,) = artifact_of(BASE).sessions
    assert (session.minimum_viable_quant, session.best_value_quant, session.frontier_reason) == ("F16", "F16", FrontierReason.OK)
    assert [row.is_minimum_viable for row in session.quant_rows] == [True, False, False]
    assert [row.is_best_value for row in session.quant_rows] == [True, False, False]
    assert session.objectives == ("adherence_score:max", "total_latency:min", "peak_memory_rss:min")
    assert session.pareto_quant_tags == ("F16", "Q8_0", "Q2_K")
    assert session.recommendation == BASE.sessions[0].recommendation


def test_a_models_own_policy_is_the_one_that_is_named() -> None:
    own = SelectionPolicy(name=PolicyName.THREE_ZONE)
    session = msgspec.structs.replace(BASE.sessions[0], selection_policy=own)
    assert artifact_of(BASE).sessions[0].selection_policy is PolicyName.THRESHOLD
    assert artifact_of(msgspec.structs.replace(BASE, sessions=(session,))).sessions[0].selection_policy is PolicyName.THREE_ZONE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"verdict": None, "uncertainty": None, "unavailable": {"uncertainty": "TOO_FEW_SAMPLES"}},
        {"adherence_score": None, "adherence": None, "total_latency": None, "latency_median": None, "latency_ratio": None},
        {"variant_sha256": None, "variant_bytes": None, "bits_per_weight": None, "peak_memory_rss": None, "unavailable": {}},
        {"prompt_tokens_per_second": None, "generation_tokens_per_second": None, "peak_memory_gpu_bytes": 0},
    ],
)
def test_every_null_has_its_reason(changes: dict[str, Any]) -> None:
    for row in artifact_of(with_row(1, **changes)).sessions[0].quant_rows:
        nulls = {name for name in FrontierQuantRow.__struct_fields__ if getattr(row, name) is None}
        assert nulls == set(row.unavailable)
        assert all(row.unavailable.values())


def test_reasons_are_the_summarys_own() -> None:
    unavailable = {
        "uncertainty": "TOO_FEW_SAMPLES",
        "total_latency": "NO_CLEAN_TRIALS",
        "peak_memory_rss": "REMOTE_PROCESS",
        "latency_ratio": "TRIAL_FAILED",
    }
    nulls = ("uncertainty", "total_latency", "latency_median", "peak_memory_rss", "latency_ratio")
    changes: dict[str, Any] = dict.fromkeys(nulls)
    reference, row, _ = artifact_of(with_row(1, **changes, unavailable=unavailable)).sessions[0].quant_rows
    assert row.unavailable["frontier_probability"] == "TOO_FEW_SAMPLES"
    assert row.unavailable["latency_median"] == "NO_CLEAN_TRIALS"
    assert row.unavailable["peak_memory_rss"] == "REMOTE_PROCESS"
    assert row.unavailable["latency_ratio"] == "TRIAL_FAILED"
    assert {reference.unavailable[name] for name in ("verdict", "adherence_difference", "latency_ratio")} == {"NO_REFERENCE"}


def test_an_imported_summary_says_what_its_numbers_mean_less() -> None:
    origin = ImportedFrom(schema_version="1.1.3", sha256="b" * 64, notes=("Adherence was never checked.",))
    provenance = msgspec.structs.replace(BASE.provenance, imported_from=origin)
    assert artifact_of(msgspec.structs.replace(BASE, provenance=provenance)).imported_from == origin
    assert artifact_of(BASE).imported_from is None


def test_the_same_summary_gives_the_same_bytes() -> None:
    artifact = artifact_of(BASE)
    assert encode_pretty(artifact) == encode_pretty(artifact_of(BASE))
    assert decode(encode_pretty(artifact), FrontierArtifact, "artifact") == artifact


def test_no_session_is_no_crash() -> None:
    assert artifact_of(msgspec.structs.replace(BASE, sessions=())).sessions == ()
