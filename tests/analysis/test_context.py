"""The rule of the safe ceiling, each limit, what is called uncertain, the rollup, and the checks that compute it all again."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.context import ContextEvidence, build_ceiling, judge_point, measure, roll_up, safe_ceiling
from fewbits.analysis.context_checks import check_ceiling, check_profiles, check_rollup, check_summaries
from fewbits.analysis.context_words import recommendation
from fewbits.core.codec import decode, encode_pretty
from fewbits.records.context import (
    ContextCeilingArtifact,
    ContextNote,
    ContextPoint,
    ContextProfile,
    ContextProfiles,
    ContextReason,
    ContextThresholds,
    VariantCeiling,
)
from fewbits.records.estimate import Estimate
from fewbits.records.explorer import ArtifactProvenance
from fewbits.records.gates import GateCheck, GateStatus
from fewbits.records.provenance import SourceFile
from fewbits.records.variant import Artifact
from fewbits.report.context import render_context_markdown, render_context_text

LIMITS = ContextThresholds(
    adherence_min=0.5, adherence_retention_min=0.9, ttft_ceiling_ms=1000.0, decode_floor_tps=10.0, profile="safe"
)
SOURCE = SourceFile(path="context_ceiling.json", sha256="a" * 64, schema_version="explorer.context_ceiling.v1")


def number(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, level=0.95, method="m", n=8)


def point_at(context: int = 4096, **changes: Any) -> ContextPoint:
    """A point that meets every limit, not judged yet."""
    good = ContextPoint(
        context=context,
        context_effective=context,
        adherence=number(0.8, 0.7, 0.9),
        retention=number(0.97, 0.93, 1.0),
        ttft_ms=number(500.0, 400.0, 600.0),
        decode_tps=20.0,
        prompt_tps=300.0,
        peak_memory_bytes=10**8,
        peak_memory_gpu_bytes=None,
        kv_cache_bytes=10**6,
        prompt_tokens=int(context * 0.9),
        prompt_tokens_min=int(context * 0.89),
        prompt_tokens_max=int(context * 0.91),
        fill_ratio=0.9,
        headroom_tokens=100,
        trials=8,
        valid=True,
        passed=False,
        reasons=(),
        summary_path=f"context_{context}_summary.json",
        summary_sha256="b" * 64,
    )
    return msgspec.structs.replace(good, **changes)


def judged(point: ContextPoint, limits: ContextThresholds = LIMITS, *, smallest: bool = False) -> ContextPoint:
    return judge_point(point, limits, smallest=smallest)


def artifact_of(*verdicts: tuple[bool, ...], ref: str = "run:1") -> ContextCeilingArtifact:
    """One variant per tuple of verdicts, consistent in itself."""
    contexts = tuple(1024 * (n + 1) for n in range(len(verdicts[0])))
    ceilings = []
    for index, passes in enumerate(verdicts):
        points = tuple(
            judged(point_at(context, adherence=number(0.8 if good else 0.1)), smallest=context == contexts[0])
            for context, good in zip(contexts, passes, strict=True)
        )
        ceilings.append(
            VariantCeiling(
                model_id="m",
                quant_tag=f"Q{index}",
                variant_sha256=None,
                trained_context=None,
                safe_context_ceiling=safe_ceiling(points),
                recommendation="",
                points=points,
            )
        )
    return ContextCeilingArtifact(
        generated_at="2026-02-27T00:00:00Z",
        execution_lane="lab",
        vram_profile="safe",
        provenance=ArtifactProvenance(ref=ref, sources=(), fewbits_version="0"),
        hardware_fingerprint="h",
        contexts=contexts,
        thresholds=LIMITS,
        ceilings=tuple(ceilings),
    )


def failed(checks: tuple[GateCheck, ...]) -> set[str]:
    return {check.code for check in checks if check.status is not GateStatus.PASS}


verdict_lists = st.lists(st.booleans(), min_size=1, max_size=7)


class TestRule:
    @given(passes=verdict_lists, order=st.randoms(use_true_random=False))
    def test_the_ceiling_is_the_last_before_the_first_failure(self, passes: list[bool], order: Any) -> None:
        points = [point_at(1000 * (n + 1), passed=good) for n, good in enumerate(passes)]
        good = [point.context for point in itertools.takewhile(lambda point: point.passed, points)]
        order.shuffle(points)
        assert safe_ceiling(points) == (good[-1] if good else None)

    def test_one_that_passes_above_a_failing_one_does_not_count(self) -> None:
        points = [judged(point_at(c, decode_tps=d), smallest=c == 4096) for c, d in ((4096, 20), (8192, 5), (16384, 20))]
        assert [point.passed for point in points] == [True, False, True]
        assert safe_ceiling(points) == 4096
        words = recommendation(points, LIMITS, 4096)
        assert words.startswith(
            "Up to 4,096 tokens is safe: 8,192 tokens fails because it writes 5 tokens per second (limit 10)."
        )
        assert "16,384 tokens passed above a failing one" in words

    def test_an_empty_set_has_no_ceiling(self) -> None:
        assert safe_ceiling([]) is None


class TestLimits:
    def test_a_good_point_passes(self) -> None:
        assert judged(point_at()).passed
        assert judged(point_at()).reasons == judged(point_at()).uncertain == ()

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"context_effective": None}, ContextReason.CONTEXT_NOT_APPLIED),
            ({"context_effective": 4095}, ContextReason.CONTEXT_NOT_APPLIED),
            ({"headroom_tokens": -1}, ContextReason.PROMPT_OVERFLOW),
            ({"fill_ratio": None}, ContextReason.FILL_MISSING),
            ({"fill_ratio": 0.699}, ContextReason.CONTEXT_NOT_FILLED),
            ({"valid": False}, ContextReason.INVALID_ROW),
            ({"adherence": None}, ContextReason.ADHERENCE_MISSING),
            ({"adherence": number(0.499)}, ContextReason.ADHERENCE_BELOW_MIN),
            ({"retention": None}, ContextReason.RETENTION_MISSING),
            ({"retention": number(0.899)}, ContextReason.RETENTION_BELOW_MIN),
            ({"ttft_ms": None}, ContextReason.TTFT_MISSING),
            ({"ttft_ms": number(1000.1)}, ContextReason.TTFT_ABOVE_CEILING),
            ({"decode_tps": None}, ContextReason.DECODE_TPS_MISSING),
            ({"decode_tps": 9.99}, ContextReason.DECODE_TPS_BELOW_FLOOR),
        ],
    )
    def test_each_reason_alone(self, changes: dict[str, Any], reason: ContextReason) -> None:
        point = judged(point_at(**changes))
        assert (point.passed, point.reasons) == (False, (reason,))

    @pytest.mark.parametrize(
        "changes",
        [
            {"context_effective": 4096 + 255},
            {"headroom_tokens": 0},
            {"headroom_tokens": None},
            {"fill_ratio": 0.7},
            {"adherence": number(0.5)},
            {"retention": number(0.9)},
            {"ttft_ms": number(1000.0)},
            {"decode_tps": 10.0},
        ],
    )
    def test_a_limit_itself_passes(self, changes: dict[str, Any]) -> None:
        assert judged(point_at(**changes)).passed

    def test_a_limit_that_is_null_is_not_checked(self) -> None:
        nothing = point_at(adherence=None, retention=None, ttft_ms=None, decode_tps=None, fill_ratio=None)
        assert judged(nothing, ContextThresholds(fill_min=None)).passed
        assert not judged(nothing).passed

    def test_zero_is_a_number(self) -> None:
        point = judged(point_at(adherence=number(0.0), decode_tps=0.0))
        assert point.reasons == (ContextReason.ADHERENCE_BELOW_MIN, ContextReason.DECODE_TPS_BELOW_FLOOR)

    def test_the_smallest_context_is_not_compared_with_itself(self) -> None:
        assert judged(point_at(retention=None), smallest=True).passed

    def test_the_override(self) -> None:
        assert judged(point_at(valid=False), msgspec.structs.replace(LIMITS, include_invalid=True)).passed

    def test_a_failure_is_the_only_reason(self) -> None:
        point = judged(point_at(failure=ContextReason.ENGINE_FAILED, adherence=None, decode_tps=None))
        assert (point.passed, point.reasons, point.uncertain) == (False, (ContextReason.ENGINE_FAILED,), ())


class TestUncertain:
    @pytest.mark.parametrize(
        ("changes", "reasons"),
        [
            ({"adherence": number(0.55, 0.45, 0.65)}, (ContextReason.ADHERENCE_BELOW_MIN,)),
            ({"adherence": number(0.45, 0.35, 0.55)}, (ContextReason.ADHERENCE_BELOW_MIN,)),
            ({"adherence": number(0.6, 0.5, 0.7)}, ()),
            ({"adherence": number(0.6)}, (ContextReason.ADHERENCE_BELOW_MIN,)),
            ({"retention": number(0.95, 0.7, 1.2)}, (ContextReason.RETENTION_BELOW_MIN,)),
            ({"ttft_ms": number(990.0, 900.0, 1100.0)}, (ContextReason.TTFT_ABOVE_CEILING,)),
            ({"ttft_ms": number(990.0)}, ()),
        ],
    )
    def test_a_limit_inside_the_interval_is_told_and_does_not_decide(
        self, changes: dict[str, Any], reasons: tuple[ContextReason, ...]
    ) -> None:
        point = judged(point_at(**changes))
        assert point.uncertain == reasons
        assert point.passed is (changes.get("adherence", number(1)).value >= 0.5)

    def test_the_answer_says_so(self) -> None:
        points = [judged(point_at(4096, adherence=number(0.55, 0.4, 0.7)), smallest=True)]
        assert "Not certain, for a limit lies inside the interval or there is none: 4,096 (adherence)." in recommendation(
            points, LIMITS, 4096
        )


class TestWords:
    @given(reason=st.sampled_from(ContextReason))
    def test_every_reason_has_words(self, reason: ContextReason) -> None:
        point = point_at(reasons=(reason,), adherence=number(0.1), retention=number(0.1), ttft_ms=number(9e4), headroom_tokens=-3)
        words = recommendation([point], LIMITS, None)
        assert words.startswith("No context is safe: the smallest one, 4,096 tokens, fails because ")
        assert str(reason) not in words
        assert "nan" not in words

    def test_beyond_the_trained_context(self) -> None:
        points = [judged(point_at(4096, notes=(ContextNote.BEYOND_TRAINED_CONTEXT,)), smallest=True)]
        assert points[0].passed  # a note fails nothing by itself
        assert "The model was not trained for 4,096 tokens." in recommendation(points, LIMITS, 4096)


class TestMeasure:
    def artifact(self) -> Artifact:
        parameters: dict[str, int | str] = {"n_ctx_train": 4096, "n_layers": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2}
        return Artifact(
            model_id="m", scheme="Q8_0", sha256="c" * 64, bytes=1, weights=1, bits_per_weight=8.0, parameters=parameters
        )

    def test_a_context_that_was_not_run_is_null_with_reasons(self) -> None:
        evidence = ContextEvidence(
            8192, artifact=self.artifact(), failure=ContextReason.CONTEXT_TOO_LARGE, detail="no memory", effective_contexts=()
        )
        point = measure(evidence, evidence)
        nulls = {
            name
            for name in ("adherence", "retention", "ttft_ms", "decode_tps", "peak_memory_bytes", "fill_ratio", "prompt_tokens")
            if getattr(point, name) is None
        }
        assert nulls <= point.unavailable.keys()
        assert len(nulls) == 7
        assert set(point.unavailable.values()) == {"NO_TRIALS"}
        assert point.kv_cache_bytes == 2 * 8192 * 2 * (16 + 16) * 2
        assert point.notes == (ContextNote.BEYOND_TRAINED_CONTEXT,)

    def test_a_variant_that_never_ran_still_has_a_point_for_every_context(self) -> None:
        reasons = (ContextReason.LOAD_FAILED, ContextReason.NOT_RUN)
        evidence = [ContextEvidence(context, failure=reason) for context, reason in zip((512, 1024), reasons, strict=True)]
        ceiling = build_ceiling("m", "Q8_0", evidence, LIMITS)
        assert (ceiling.safe_context_ceiling, ceiling.trained_context) == (None, None)
        assert [point.reasons for point in ceiling.points] == [(reason,) for reason in reasons]
        assert ceiling.recommendation.startswith(
            "No context is safe: the smallest one, 512 tokens, fails because the engine could"
        )


class TestRollup:
    @given(verdicts=st.integers(1, 5).flatmap(lambda n: st.lists(st.tuples(*[st.booleans()] * n), min_size=1, max_size=4)))
    def test_counts_agree_and_the_checks_say_so(self, verdicts: list[tuple[bool, ...]]) -> None:
        artifact = artifact_of(*verdicts)
        rollup = roll_up(artifact, SOURCE, generated_at="now")
        assert rollup.contexts_passed + rollup.contexts_failed == rollup.contexts_total == len(verdicts[0])
        every = [all(column) for column in zip(*verdicts, strict=True)]
        assert rollup.contexts_passed == sum(every)
        good = list(itertools.takewhile(bool, every))
        assert rollup.safe_context_ceiling == (1024 * len(good) if good else None)
        assert failed(check_ceiling(artifact, None)) == set()
        assert failed(check_rollup(rollup, artifact, SOURCE)) == set()

    def test_an_artifact_survives_its_file(self) -> None:
        artifact = artifact_of((True, False))
        assert decode(encode_pretty(artifact), ContextCeilingArtifact, "x") == artifact


class TestChecks:
    def test_a_point_without_a_summary_needs_an_excuse(self) -> None:
        for reason, code in ((ContextReason.LOAD_FAILED, set()), (ContextReason.ENGINE_FAILED, {"MISSING_CONTEXT_SUMMARY_FILE"})):
            artifact = artifact_of((True,))
            point = judged(point_at(1024, failure=reason, summary_path=None, summary_sha256=None), smallest=True)
            ceiling = msgspec.structs.replace(artifact.ceilings[0], points=(point,), safe_context_ceiling=None)
            artifact = msgspec.structs.replace(artifact, ceilings=(ceiling,))
            assert failed(check_summaries(artifact, {})) == code

    def test_an_artifact_without_variants_covers_nothing(self) -> None:
        artifact = msgspec.structs.replace(artifact_of((True,)), ceilings=())
        assert failed(check_ceiling(artifact, None)) == {"MISSING_CONTEXT_POINTS"}

    def test_a_point_too_few_is_found(self) -> None:
        artifact = artifact_of((True, True))
        short = msgspec.structs.replace(artifact.ceilings[0], points=artifact.ceilings[0].points[:1])
        found = failed(check_ceiling(msgspec.structs.replace(artifact, ceilings=(short,)), None))
        assert found == {"MISSING_CONTEXT_POINTS", "SAFE_CEILING_MISMATCH"}

    def test_a_limit_that_is_not_set_is_the_loosest(self) -> None:
        def profiles(*ceilings: float | None) -> ContextProfiles:
            made = {
                name: ContextProfile(contexts=(1024,), ttft_ceiling_ms=ceiling)
                for name, ceiling in zip(("safe", "balanced", "stress"), ceilings, strict=True)
            }
            return ContextProfiles(profiles=made)

        assert failed(check_profiles(profiles(10, 20, None))) == set()
        assert failed(check_profiles(profiles(None, None, None))) == set()
        assert failed(check_profiles(profiles(10, 10, 10))) == set()
        assert failed(check_profiles(profiles(None, 20, 30))) == {"LIMIT_TIGHTENS"}
        assert failed(check_profiles(profiles(20, 10, None))) == {"LIMIT_TIGHTENS"}


class TestReport:
    def test_names_and_messages_are_escaped(self) -> None:
        artifact = artifact_of((True, False), ref="<b>|")
        nasty = msgspec.structs.replace(
            artifact.ceilings[0],
            model_id="m|<script>\u202e",
            points=(
                msgspec.structs.replace(artifact.ceilings[0].points[0], detail="a\n# b <img> | c"),
                artifact.ceilings[0].points[1],
            ),
        )
        text = render_context_markdown(msgspec.structs.replace(artifact, ceilings=(nasty,)))
        assert "<" not in text
        assert "\u202e" not in text
        assert "\n# b" not in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in rows[:4]} == {12}
        assert "\u202e" not in render_context_text(msgspec.structs.replace(artifact, ceilings=(nasty,)))

    def test_memory_growth_is_measured_between_the_ends(self) -> None:
        artifact = artifact_of((True, True))
        first, second = artifact.ceilings[0].points
        points = (first, msgspec.structs.replace(second, peak_memory_bytes=10**8 + 1024 * 2048))
        grown = msgspec.structs.replace(artifact.ceilings[0], points=points)
        text = render_context_markdown(msgspec.structs.replace(artifact, ceilings=(grown,)))
        assert "Measured: 2.0 KiB of peak memory for each further token of context (1,024 to 2,048)." in text
