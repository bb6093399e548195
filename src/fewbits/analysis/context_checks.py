"""Gates of a context sweep: do its artifacts agree with each other, with the rule and with the summaries? Pure.

Nothing is taken at its word: verdicts, ceilings and counts are computed again from the numbers that stand beside them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fewbits.analysis.context import judge_point, roll_up, safe_ceiling
from fewbits.analysis.wording import count, listed
from fewbits.records.base import VramProfile
from fewbits.records.context import (
    ContextCeilingArtifact,
    ContextPoint,
    ContextProfile,
    ContextProfiles,
    ContextReason,
    ContextRollupArtifact,
    VariantCeiling,
    VariantRollup,
)
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import QuantRow, SweepSummary

_COUNTS = {
    "contexts_total": "TOTAL_COUNT_MISMATCH",
    "contexts_passed": "PASSED_COUNT_MISMATCH",
    "contexts_failed": "FAILED_COUNT_MISMATCH",
    "failed_contexts": "FAILED_CONTEXTS_MISMATCH",
    "safe_context_ceiling": "SAFE_CEILING_MISMATCH",
}
_WITHOUT_SUMMARY = frozenset(
    {ContextReason.NOT_RUN, ContextReason.LOAD_FAILED, ContextReason.CONTEXT_TOO_LARGE, ContextReason.CONTEXT_NOT_APPLIED}
)
"""Failures that leave no summary behind: no trial was run."""


@dataclass(frozen=True, slots=True)
class FoundSummary:
    """The summary file of one point, as it was looked for."""

    place: str
    """Where it was looked for, for people."""
    code: str = ""
    """Why it cannot be read (`MISSING_CONTEXT_SUMMARY_FILE`, `UNSAFE_SUMMARY_PATH`, `UNREADABLE_CONTEXT_SUMMARY`)."""
    problem: str = ""
    source: SourceFile | None = None
    summary: SweepSummary | None = None


def _check(name: str, subject: str, code: str, good: str, bad: str = "") -> GateCheck:
    """Build a check: it passes when there is no `code`."""
    status = GateStatus.FAIL if code else GateStatus.PASS
    return GateCheck(name=name, subject=subject, status=status, code=code, evidence=bad if code else good)


def _same(name: str, subject: str, code: str, recorded: object, right: object) -> GateCheck:
    """Check that what is recorded is what was computed again."""
    words = f"{_shown(recorded)} is recorded, {_shown(right)} follows"
    return _check(name, subject, "" if recorded == right else code, f"{_shown(recorded)}, computed again", words)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return listed([_shown(item) for item in value]) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def check_ceiling(artifact: ContextCeilingArtifact, expected: Sequence[int] | None) -> tuple[GateCheck, ...]:
    """Check the ceiling artifact against itself, and that it has every context that was asked for (`None`: its own)."""
    ascending = tuple(sorted(set(artifact.contexts)))
    missing = sorted(set(expected or ()) - set(artifact.contexts))
    checks = [
        _provenance("ceiling", artifact.provenance.ref),
        _same("contexts_ascend", "ceiling", "CONTEXTS_NOT_ASCENDING", artifact.contexts, ascending),
        _check(
            "contexts_covered",
            "ceiling",
            "MISSING_CONTEXT_POINTS" if missing or not artifact.ceilings else "",
            f"{count(len(artifact.contexts), 'context')} for {count(len(artifact.ceilings), 'variant')}",
            f"no point for {_shown(missing)}" if missing else "the artifact holds no variant",
        ),
    ]
    for ceiling in artifact.ceilings:
        checks += _variant_checks(ceiling, artifact)
    return tuple(checks)


def _provenance(subject: str, ref: str) -> GateCheck:
    words = "no provenance ref is recorded: give --provenance-ref when making it"
    return _check("provenance_ref", subject, "" if ref.strip() else "MISSING_PROVENANCE_REF", f"ref {ref!r}", words)


def _variant_checks(ceiling: VariantCeiling, artifact: ContextCeilingArtifact) -> Iterator[GateCheck]:
    subject = _name(ceiling)
    contexts = tuple(point.context for point in ceiling.points)
    yield _same("points", subject, "MISSING_CONTEXT_POINTS", contexts, artifact.contexts)
    smallest = min(contexts, default=0)
    for point in ceiling.points:
        judged = judge_point(point, artifact.thresholds, smallest=point.context == smallest)
        good = "passed" if point.passed else f"failed: {_shown(point.reasons)}"
        bad = f"{good} is recorded, its numbers and the limits give {_shown(judged.reasons)}"
        agrees = (judged.passed, judged.reasons) == (point.passed, point.reasons)
        yield _check("verdict", f"{subject} at {point.context:,}", "" if agrees else "POINT_VERDICT_MISMATCH", good, bad)
    right = safe_ceiling(ceiling.points)
    yield _same("safe_ceiling", subject, "SAFE_CEILING_MISMATCH", ceiling.safe_context_ceiling, right)


def _name(variant: VariantCeiling | VariantRollup) -> str:
    return f"{variant.model_id} {variant.quant_tag}"


def check_rollup(rollup: ContextRollupArtifact, artifact: ContextCeilingArtifact, source: SourceFile) -> tuple[GateCheck, ...]:
    """Check the rollup against the ceiling artifact, whose file as it lies there now is `source`."""
    right = roll_up(artifact, source, generated_at=rollup.generated_at)
    checks = [
        _provenance("rollup", rollup.provenance.ref),
        _same("same_provenance", "rollup", "PROVENANCE_REF_MISMATCH", rollup.provenance.ref, artifact.provenance.ref),
        _same("source", "rollup", "SOURCE_DIGEST_MISMATCH", rollup.source_context_ceiling.sha256, source.sha256),
        *_count_checks("rollup", rollup, right),
    ]
    made, wanted = ({_name(variant): variant for variant in each.variants} for each in (rollup, right))
    checks.append(_same("variants", "rollup", "VARIANTS_MISMATCH", sorted(made), sorted(wanted)))
    for name in sorted(made.keys() & wanted.keys()):
        checks += _count_checks(name, made[name], wanted[name])
    return tuple(checks)


def _count_checks(
    subject: str, made: ContextRollupArtifact | VariantRollup, right: ContextRollupArtifact | VariantRollup
) -> Iterator[GateCheck]:
    for field, code in _COUNTS.items():
        yield _same(field, subject, code, getattr(made, field), getattr(right, field))


def check_summaries(
    artifact: ContextCeilingArtifact, found: Mapping[tuple[str, str, int], FoundSummary]
) -> tuple[GateCheck, ...]:
    """Check that each point's summary is there, unchanged, and says what the point says. `found`: (model, quant, context)."""
    checks = []
    for ceiling in artifact.ceilings:
        for point in ceiling.points:
            subject = f"{_name(ceiling)} at {point.context:,}"
            looked = found.get((ceiling.model_id, ceiling.quant_tag, point.context))
            checks.append(_summary_check(subject, ceiling, point, looked))
    return tuple(checks)


def _summary_check(subject: str, ceiling: VariantCeiling, point: ContextPoint, found: FoundSummary | None) -> GateCheck:
    name = "summary"
    if point.summary_path is None or found is None:
        excused = point.failure in _WITHOUT_SUMMARY and not point.passed
        code = "" if excused else "MISSING_CONTEXT_SUMMARY_FILE"
        return _check(name, subject, code, f"no trial was run ({point.failure})", "the point names no summary file")
    if found.summary is None or found.source is None:
        return _check(name, subject, found.code, "", f"{found.place}: {found.problem}")
    if found.source.sha256 != point.summary_sha256:
        words = f"{found.place} has sha256 {found.source.sha256[:12]}, {(point.summary_sha256 or 'none')[:12]} is recorded"
        return _check(name, subject, "SUMMARY_DIGEST_MISMATCH", "", words)
    row = find_row(found.summary, ceiling.model_id, ceiling.quant_tag)
    differs = _differences(found.summary, row, point)
    code = "POINT_DIFFERS_FROM_SUMMARY" if differs else ""
    return _check(name, subject, code, f"{found.place} has the recorded digest and numbers", f"{found.place}: {listed(differs)}")


def _differences(summary: SweepSummary, row: QuantRow | None, point: ContextPoint) -> list[str]:
    """Say in which numbers a point differs from the summary that it names."""
    asked = summary.experimental_controls.context_size
    differs = [f"it was measured with a context of {asked:,}"] if asked != point.context else []
    if row is None:
        return differs if point.failure is not None else [*differs, "it has no row of this variant"]
    if point.failure is not None:
        return differs
    pairs = {
        "valid": (row.valid, point.valid),
        "adherence": (row.adherence.value if row.adherence else None, point.adherence.value if point.adherence else None),
        "decode_tps": (row.generation_tokens_per_second, point.decode_tps),
        "peak_memory_bytes": (row.peak_memory_rss, point.peak_memory_bytes),
    }
    return [*differs, *(f"{name} is {there} there and {here} here" for name, (there, here) in pairs.items() if there != here)]


def find_row(summary: SweepSummary, model_id: str, quant_tag: str) -> QuantRow | None:
    """Return a variant's row of a summary; `None` when it has none."""
    return next(
        (
            row
            for session in summary.sessions
            if session.model_id == model_id
            for row in session.per_quant
            if row.quant_tag == quant_tag
        ),
        None,
    )


# --- profiles --------------------------------------------------------------------------------------------------------


def check_profiles(profiles: ContextProfiles) -> tuple[GateCheck, ...]:
    """Check the profiles: `safe`, `balanced` and `stress` are there, contexts ascend, no limit tightens from safe to stress."""
    names = [profile.value for profile in VramProfile]
    absent = [name for name in names if name not in profiles.profiles]
    code = "MISSING_CONTEXT_PROFILE" if absent else ""
    checks = [_check("profiles_present", "profiles", code, listed(names), f"there is no {listed(absent, 'or')}")]
    for name, profile in sorted(profiles.profiles.items()):
        ascending = tuple(sorted(set(profile.contexts)))
        checks.append(_same("contexts_ascend", f"profile {name}", "CONTEXTS_NOT_ASCENDING", profile.contexts, ascending))
    ladder = [(name, profiles.profiles[name]) for name in names if name in profiles.profiles]
    for (stricter, first), (looser, second) in itertools.pairwise(ladder):
        checks += _loosening(stricter, first, looser, second)
    return tuple(checks)


def _loosening(stricter: str, first: ContextProfile, looser: str, second: ContextProfile) -> Iterator[GateCheck]:
    """Check each limit of two neighbours; a limit that is not set is the loosest there is."""
    for field, sign in (
        ("adherence_min", 1),
        ("adherence_retention_min", 1),
        ("decode_floor_tps", 1),
        ("ttft_ceiling_ms", -1),
    ):
        one, two = (_strictness(getattr(profile, field), sign) for profile in (first, second))
        words = f"{_limit(getattr(first, field))} in {stricter}, {_limit(getattr(second, field))} in {looser}"
        yield _check(field, f"{stricter} to {looser}", "LIMIT_TIGHTENS" if two > one else "", words, words)


def _strictness(limit: float | None, sign: int) -> float:
    return -math.inf if limit is None else sign * limit


def _limit(value: float | None) -> str:
    return "not checked" if value is None else f"{value:g}"
