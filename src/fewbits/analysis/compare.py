"""What a session's variants are against the reference: verdicts, ratios, divergence, determinism; and what that took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from fewbits.analysis.baselines import compare_with_baseline
from fewbits.analysis.counterfactual import would_change
from fewbits.analysis.determinism import describe_divergence, determinism_of, first_differing_pair, repeated_cells
from fewbits.analysis.items import drawn_order, item_blocks, item_order
from fewbits.analysis.race import Race
from fewbits.analysis.ranking import Artifacts, compared_ranks
from fewbits.analysis.ratios import RATIO_FIELDS, block_ratios
from fewbits.analysis.recommend import Selection, takes_part
from fewbits.analysis.replay import HarmPs, block_outcomes, item_score, model_index, new_race, replay
from fewbits.analysis.rows import RowDraft
from fewbits.analysis.trial_table import Group, TrialTable
from fewbits.analysis.uncertainty import VariantEvidence, joint_uncertainty
from fewbits.analysis.verdicts import Candidate, evidence_of, judge, verdict_detail
from fewbits.records.base import Unavailable
from fewbits.records.baseline import BaselineMatch
from fewbits.records.detector_run import RowDetection
from fewbits.records.extraction_run import RowExtraction
from fewbits.records.plan import Plan, SelectionPolicy
from fewbits.records.sidecar import SidecarBlock
from fewbits.records.summary import (
    DecisionLog,
    DeterminismDetail,
    DivergenceEstimate,
    QuantRow,
    RowConditions,
    RowUncertainty,
    VerdictDetail,
    VerdictReason,
)
from fewbits.records.trial import TrialView

Cells = dict[tuple[str, str], list[TrialView]]
"""(quant tag, task id) -> counted trials."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything about variants that is not read from their counted trials alone, by (model id, quant tag)."""

    artifacts: Artifacts
    divergence: Mapping[tuple[str, str], DivergenceEstimate]
    harm_ps: HarmPs
    determinism: Mapping[tuple[str, str], DeterminismDetail]
    conditions: Mapping[tuple[str, str], RowConditions]
    baselines: Mapping[tuple[str, str], BaselineMatch]
    sidecars: Mapping[tuple[str, str], SidecarBlock]
    detections: Mapping[tuple[str, str], RowDetection] = field(default_factory=dict)
    extractions: Mapping[tuple[str, str], RowExtraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionVerdicts:
    """Verdicts by quant tag (none for the reference), the trials that each row needed, and how deciding went."""

    reference: str
    details: dict[str, VerdictDetail]
    expected_runs: dict[str, int]
    decision_log: DecisionLog | None


def judge_session(plan: Plan, model_id: str, reference: str, groups: Mapping[str, Group], evidence: Evidence) -> SessionVerdicts:
    """Judge one model's variants against its reference, as the run loop did when it was deciding."""
    cells, policy = _cells(groups), plan.spec.policy_of(model_id)
    if plan.spec.decide.enabled:
        race = new_race(plan, model_id, evidence.artifacts, reference, evidence.harm_ps)
        replay(plan, race, model_id, reference, cells)
        expected = _needed_runs(plan, model_id, race, reference)
        log = _decision_log(plan, race, expected, reference, groups)
        return SessionVerdicts(reference, _race_details(plan, race, policy), expected, log)
    ranks = compared_ranks(plan, model_id, evidence.artifacts, reference)
    harm_ps = {tag: evidence.harm_ps.get((model_id, tag)) for tag in ranks}
    details = _matrix_details(plan, reference, cells, ranks, harm_ps, policy=policy)
    whole = len(item_order(plan)) * plan.spec.runs_per_quant
    return SessionVerdicts(reference, details, dict.fromkeys(groups, whole), None)


def _cells(groups: Mapping[str, Group]) -> Cells:
    cells: Cells = {}
    for tag, group in groups.items():
        for trial in group.trials:
            cells.setdefault((tag, trial.task_id), []).append(trial)
    return cells


def _matrix_details(
    plan: Plan,
    reference: str,
    cells: Cells,
    ranks: Mapping[str, int],
    harm_ps: Mapping[str, float | None],
    *,
    policy: SelectionPolicy,
) -> dict[str, VerdictDetail]:
    """Judge a full matrix: all items that both have answered, in an order that does not depend on the bank's."""
    runs = plan.spec.runs_per_quant

    def score(tag: str, task: str) -> float | None:
        return item_score(cells.get((tag, task), ()), runs)

    items = block_outcomes(drawn_order(plan), ranks, reference, score)
    differences = {tag: np.array([item[tag] for item in items if tag in item], dtype=np.float64) for tag in ranks}
    candidates = {tag: Candidate(tag, rank, evidence_of(differences[tag], policy), harm_ps[tag]) for tag, rank in ranks.items()}
    claims = judge(tuple(candidates.values()), policy)
    return {tag: verdict_detail(candidates[tag], claims[tag], differences[tag], policy) for tag in ranks}


def _race_details(plan: Plan, race: Race, policy: SelectionPolicy) -> dict[str, VerdictDetail]:
    stopped = {tag: finish.items for tag, finish in race.finished.items()} if plan.spec.decide.early_stop else {}
    return {
        tag: verdict_detail(race.candidate(tag), claims, race.differences(tag), policy, stopped_after_items=stopped.get(tag))
        for tag, claims in race.claims().items()
    }


def _needed_runs(plan: Plan, model_id: str, race: Race, reference: str) -> dict[str, int]:
    """Return tag -> the trials that deciding asks of it: up to the block that decided it, the reference as long as any other."""
    runs, blocks = plan.spec.runs_per_quant, item_blocks(plan)
    first = model_index(plan, model_id) * len(blocks)
    whole = len(item_order(plan)) * runs
    needed = dict.fromkeys(race.live, whole)
    for tag, finish in race.finished.items():
        if tag not in needed:
            needed[tag] = runs * sum(len(block) for block in blocks[: finish.block - first + 1])
    needed[reference] = max(needed.values(), default=whole)
    return needed


def _decision_log(
    plan: Plan, race: Race, expected: Mapping[str, int], reference: str, groups: Mapping[str, Group]
) -> DecisionLog:
    return DecisionLog(
        decisions=race.decisions(),
        undecided=tuple(tag for tag in expected if tag not in race.finished and tag != reference),
        items_available=len(item_order(plan)),
        items_asked=len(groups[reference].tasks) if reference in groups else 0,
        trials_run=sum(len(group.trials) for group in groups.values()),
        trials_full_matrix=len(item_order(plan)) * plan.spec.runs_per_quant * len(groups),
    )


def complete_row(
    row: QuantRow, draft: RowDraft, *, model_id: str, verdicts: SessionVerdicts, table: TrialTable, evidence: Evidence
) -> QuantRow:
    """Add to a row what only the comparison with the reference, all runs of its cells, or other files of the run can show."""
    key = (model_id, row.quant_tag)
    found, why = _comparison(key, verdicts, table, evidence)
    determinism = evidence.determinism.get(key) or determinism_of(())
    match = evidence.baselines.get(key)
    beside = {
        "conditions": evidence.conditions.get(key),
        "hardware_sidecar": evidence.sidecars.get(key),
        "detection": evidence.detections.get(key),
        "extraction": evidence.extractions.get(key),
    }
    why["conditions"] = str(Unavailable.NO_TRIALS)
    why |= dict.fromkeys(("baseline", "hardware_sidecar", "detection", "extraction"), str(Unavailable.NOT_MEASURED))
    present = {name for name, block in {**beside, "baseline": match}.items() if block is not None}
    unavailable = {name: reason for name, reason in sorted({**row.unavailable, **why}.items()) if name not in present}
    group = table.groups.get(key)
    seconds = group.task_means(group.wall, draft.timed) if group is not None else {}
    engines = zip(group.values("engine"), group.values("engine_version"), strict=True) if group is not None else ()
    return msgspec.structs.replace(
        row,
        **found,
        determinism=determinism,
        **beside,
        baseline=compare_with_baseline(match, row, draft.task_scores, seconds, engines=engines) if match is not None else None,
        unavailable=unavailable,
    )


def _comparison(
    key: tuple[str, str], verdicts: SessionVerdicts, table: TrialTable, evidence: Evidence
) -> tuple[dict[str, object], dict[str, str]]:
    """Return the fields that compare a variant with the reference, and a reason for each that stays `None`."""
    model_id, tag = key
    if tag == verdicts.reference:
        return {}, dict.fromkeys(("verdict", "divergence", *RATIO_FIELDS), str(Unavailable.NO_REFERENCE))
    ratios = block_ratios(table.groups.get(key, Group(())), table.groups.get((model_id, verdicts.reference), Group(())))
    why = dict(ratios.unavailable)
    if key not in evidence.divergence:
        why["divergence"] = str(Unavailable.NOT_MEASURED)
    measured = {name: getattr(ratios, name) for name in RATIO_FIELDS}
    return {"verdict": verdicts.details[tag], "divergence": evidence.divergence.get(key), **measured}, why


def judge_determinism(
    table: TrialTable, read_texts: Callable[[frozenset[str]], Mapping[str, str]]
) -> dict[tuple[str, str], DeterminismDetail]:
    """Judge every variant's repeats; texts are asked for only where two runs of one cell differ, to show where."""
    cells = {key: repeated_cells(runs) for key, runs in table.all_runs.items()}
    pairs = {key: pair for key, of_variant in cells.items() if (pair := first_differing_pair(of_variant)) is not None}
    wanted = frozenset(trial.trial_id for pair in pairs.values() for trial in pair)
    texts = read_texts(wanted) if wanted else {}
    shown = {key: describe_divergence(pair, texts) for key, pair in pairs.items()}
    return {key: determinism_of(of_variant, shown.get(key)) for key, of_variant in cells.items()}


def with_uncertainty(
    selection: Selection, drafts: Mapping[str, RowDraft], groups: Mapping[str, Group], policy: SelectionPolicy
) -> tuple[Selection, str]:
    """Return the selection with its rows' probabilities, and one sentence on what would change the picks."""
    variants = [
        _evidence_of(row, drafts[row.quant_tag], groups[row.quant_tag]) for row in selection.rows if takes_part(row, policy)
    ]
    reference = selection.reference.quant_tag if selection.reference else None
    uncertainty = joint_uncertainty(variants, reference, policy)
    known = uncertainty.rows if uncertainty is not None else {}
    rows = tuple(_with_probabilities(row, known.get(row.quant_tag)) for row in selection.rows)
    sentence = would_change(
        uncertainty,
        rows,
        minimum_viable=selection.minimum_viable.quant_tag if selection.minimum_viable else None,
        best_value=selection.best_value.quant_tag if selection.best_value else None,
        policy=policy,
    )
    return dataclasses.replace(selection, rows=rows), sentence


def _with_probabilities(row: QuantRow, found: RowUncertainty | None) -> QuantRow:
    if found is not None:
        return msgspec.structs.replace(row, uncertainty=found)
    reasons = {**row.unavailable, "uncertainty": str(Unavailable.TOO_FEW_SAMPLES)}
    return msgspec.structs.replace(row, unavailable=dict(sorted(reasons.items())))


def _evidence_of(row: QuantRow, draft: RowDraft, group: Group) -> VariantEvidence:
    verdict = row.verdict
    return VariantEvidence(
        quant_tag=row.quant_tag,
        rank=row.quant_rank,
        adherence=draft.task_scores,
        seconds=group.task_means(group.wall, draft.timed),
        peak_memory_rss=row.peak_memory_rss,
        variant_bytes=row.variant_bytes,
        eliminated=verdict is not None and VerdictReason.DIVERGENCE_HARM in verdict.reasons,
    )
