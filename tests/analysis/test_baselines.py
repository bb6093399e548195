"""Baselines, pure: names, matching, comparison, what is good enough, retention and health."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.analysis.baseline_records import row_flaws, run_id_of
from fewbits.analysis.baseline_upkeep import (
    Retention,
    check_history,
    check_missing,
    check_unreadable,
    count_health,
    keep,
    out_of_order,
    sum_health,
)
from fewbits.analysis.baselines import (
    BaselineQuery,
    compare_measured,
    compare_with_baseline,
    find_baseline,
    moment,
    sweep_test_id,
    tasks_revision,
)
from fewbits.analysis.gate_report import build_report
from fewbits.records.base import PollutionReason
from fewbits.records.baseline import (
    BaselineFlaw,
    BaselineHistory,
    BaselineMatch,
    BaselineMetadata,
    BaselineRecord,
    BaselineStatus,
    GoldTelemetry,
)
from fewbits.records.baseline_upkeep import HealthScope, UnreadableFile
from fewbits.records.gates import GateStatus
from fewbits.records.summary import QuantRow, SweepSummary

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TEST = "sweep.m.Q4_K_M"


def record(ref: str, *, days_ago: float = 0.0, **changes: Any) -> BaselineRecord:
    gold = {"adherence_score": 0.8, "peak_memory_rss": 1000, "total_latency": 2.0}
    gold |= {name: changes.pop(name) for name in list(changes) if name in GoldTelemetry.__struct_fields__}
    known = {
        "test_run_id": ref,
        "model_id": "m",
        "quant_tag": "Q4_K_M",
        "model_hash": "a" * 64,
        "hardware_fingerprint": "here",
        "task_revision": "r1",
        "engine": "llamacpp",
        "engine_version": "b1",
        "created_at": (NOW - timedelta(days=days_ago)).isoformat(),
    }
    return BaselineRecord(baseline_metadata=BaselineMetadata(**(known | changes)), gold_telemetry=GoldTelemetry(**gold))  # type: ignore[arg-type]


def history(*records: BaselineRecord) -> BaselineHistory:
    return BaselineHistory(test_id=TEST, history=records)


def find(*records: BaselineRecord, hardware: str = "here", revision: str = "r1", ref: str | None = None) -> BaselineMatch:
    return find_baseline(history(*records), BaselineQuery(TEST, hardware, revision, ref))


def ref_of(match: BaselineMatch) -> str | None:
    return match.record.baseline_metadata.test_run_id if match.record else None


class TestNames:
    def test_plain_names_stay_readable(self) -> None:
        assert sweep_test_id("smollm2-135m", "Q4_K_M") == "sweep.smollm2-135m.Q4_K_M"

    @given(st.text(max_size=200), st.text(max_size=200))
    def test_any_name_is_safe(self, model: str, tag: str) -> None:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", sweep_test_id(model, tag))

    @given(*[st.text("ab./-_~ \u00e9", min_size=1, max_size=60)] * 4)
    def test_different_rows_are_different_tests(self, model: str, tag: str, other_model: str, other_tag: str) -> None:
        same = (model, tag) == (other_model, other_tag)
        assert (sweep_test_id(model, tag) == sweep_test_id(other_model, other_tag)) is same

    def test_a_dot_does_not_move_between_model_and_tag(self) -> None:
        assert sweep_test_id("a", "b.c") != sweep_test_id("a.b", "c")

    def test_long_names_keep_apart(self) -> None:
        long = "m" * 79
        assert sweep_test_id(long, "Q" * 70 + "1") != sweep_test_id(long, "Q" * 70 + "2")

    @given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=6), st.randoms())
    def test_a_revision_knows_no_order(self, tasks: dict[str, str], shuffler: Any) -> None:
        pairs = list(tasks.items())
        shuffler.shuffle(pairs)
        assert tasks_revision(pairs) == tasks_revision(tasks.items())
        assert tasks_revision([*pairs, ("new", "task")]) != tasks_revision(pairs)

    def test_a_revision_sees_swapped_contents(self) -> None:
        assert tasks_revision([("a", "1"), ("b", "2")]) != tasks_revision([("a", "2"), ("b", "1")])

    @pytest.mark.parametrize(
        ("text", "same_as"),
        [
            ("2026-02-21T10:00:00Z", "2026-02-21T10:00:00+00:00"),
            ("2026-02-21T12:00:00+02:00", "2026-02-21T10:00:00Z"),
            ("2026-02-21T10:00:00", "2026-02-21T10:00:00.000+00:00"),
        ],
    )
    def test_moments_are_utc(self, text: str, same_as: str) -> None:
        assert moment(text) == moment(same_as)

    @pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "0001-01-01T00:00:00+23:59"])
    def test_no_moment(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"."):
            moment(text)

    def test_a_run_has_one_reference(self) -> None:
        digest = "0123456789abcdef"
        assert run_id_of(digest, "2026-02-21T10:00:00.123+00:00") == "0123456789ab-20260221T100000123"
        assert run_id_of(digest, "2026-02-21T12:00:00.123+02:00") == run_id_of(digest, "2026-02-21T10:00:00.123Z")
        assert run_id_of(digest, None) == "0123456789ab"


class TestMatching:
    @pytest.mark.parametrize(
        ("records", "wanted", "status", "words"),
        [
            ([], {}, BaselineStatus.NO_BASELINE, "Nothing is stored"),
            ([], {"ref": "x"}, BaselineStatus.NO_BASELINE, "Nothing is stored"),
            ([record("a", hardware_fingerprint="there")], {}, BaselineStatus.HW_MISMATCH, "from there, not from here"),
            ([record("a", task_revision="r0")], {}, BaselineStatus.REV_MISMATCH, "of task revision r0, not of r1"),
            # hardware is looked at first
            ([record("a", hardware_fingerprint="there", task_revision="r0")], {}, BaselineStatus.HW_MISMATCH, "there"),
            # one record of the hardware, another of the revision: neither is both
            (
                [record("a", hardware_fingerprint="there"), record("b", task_revision="r0")],
                {},
                BaselineStatus.REV_MISMATCH,
                "of task revision r0",
            ),
            ([record("a")], {"ref": "x"}, BaselineStatus.REF_NOT_FOUND, "no baseline x; there is a"),
            ([record("a", hardware_fingerprint="there"), record("b")], {"ref": "a"}, BaselineStatus.HW_MISMATCH, "baseline a of"),
            ([record("a", task_revision="r0"), record("b")], {"ref": "a"}, BaselineStatus.REV_MISMATCH, "baseline a of"),
        ],
    )
    def test_why_not(self, records: list[BaselineRecord], wanted: dict[str, Any], status: BaselineStatus, words: str) -> None:
        match = find(*records, **wanted)
        assert (match.status, match.record) == (status, None)
        assert words in match.detail
        assert TEST in match.detail

    def test_no_file_is_no_baseline(self) -> None:
        assert find_baseline(None, BaselineQuery(TEST, "here", "r1")).status is BaselineStatus.NO_BASELINE

    def test_the_newest_date_wins_wherever_it_stands(self) -> None:
        match = find(record("new", days_ago=1), record("old", days_ago=9), record("other", task_revision="r0"))
        assert (match.status, ref_of(match)) == (BaselineStatus.OK, "new")
        assert "the newest of 2 that match" in match.detail

    def test_dates_are_times_not_texts(self) -> None:
        early = record("early", created_at="2026-02-21T23:00:00+23:00")
        late = record("late", created_at="2026-02-21T01:00:00Z")
        assert ref_of(find(early, late)) == ref_of(find(late, early)) == "late"

    def test_of_equal_dates_the_later_entry_wins(self) -> None:
        assert ref_of(find(record("a"), record("b"))) == "b"
        assert ref_of(find(record("b"), record("a"))) == "a"

    def test_a_named_record_is_found_although_another_is_newer(self) -> None:
        assert ref_of(find(record("a", days_ago=5), record("b"), ref="a")) == "a"

    def test_a_forced_record_says_so(self) -> None:
        assert "by force, in spite of POLLUTED" in find(record("a", forced=True, forced_because=("POLLUTED",))).detail
        assert "force" not in find(record("a")).detail

    def test_long_lists_are_cut(self) -> None:
        records = [record(str(n), hardware_fingerprint=f"machine{n}", days_ago=n) for n in range(9)]
        assert "machine0, machine1, machine2 and 6 more" in find(*records).detail

    @settings(max_examples=60)
    @given(
        st.lists(st.tuples(st.sampled_from("hx"), st.sampled_from("rs"), st.integers(0, 3)), max_size=8),
        st.sampled_from([None, "0", "3", "none"]),
    )
    def test_a_match_is_always_of_what_was_asked(self, entries: list[tuple[str, str, int]], ref: str | None) -> None:
        records = [
            record(str(n), hardware_fingerprint=hardware, task_revision=revision, days_ago=days)
            for n, (hardware, revision, days) in enumerate(entries)
        ]
        match = find(*records, hardware="h", revision="r", ref=ref)
        fitting = [n for n, (hardware, revision, _) in enumerate(entries) if (hardware, revision) == ("h", "r")]
        fitting = [n for n in fitting if ref in (None, str(n))]
        assert (match.status is BaselineStatus.OK) is bool(fitting)
        if fitting:
            assert ref_of(match) == str(max(fitting, key=lambda n: (-entries[n][2], n)))


def gold(**changes: Any) -> GoldTelemetry:
    return GoldTelemetry(**({"adherence_score": 0.5, "peak_memory_rss": 1500, "total_latency": 3.0} | changes))


def found(one: BaselineRecord) -> BaselineMatch:
    return BaselineMatch(model_id="m", quant_tag="Q", test_id=TEST, status=BaselineStatus.OK, detail="found", record=one)


class TestComparison:
    def test_paired_by_task(self) -> None:
        scores = {f"t{n}": float(n % 2) for n in range(20)}
        seconds = {task: 1.0 + n / 20 for n, task in enumerate(scores)}
        known = record("r", task_scores=scores, task_seconds=seconds)
        ours = gold(
            task_scores={task: 1.0 if task == "t0" else score for task, score in scores.items()} | {"unknown": 0.0},
            task_seconds={task: 2 * one if n else 3 * one for n, (task, one) in enumerate(seconds.items())},
        )
        compared = compare_measured(found(known), ours, variant_hash="a" * 64, engines=[("llamacpp", "b1")] * 3)
        difference, latency = compared.adherence_difference, compared.latency_ratio
        assert difference is not None
        assert latency is not None
        assert (difference.value, difference.n) == (0.05, 20)
        assert difference.low is not None
        assert difference.high is not None
        assert difference.low < 0.05 < difference.high
        assert latency.n == 20
        assert latency.low is not None
        assert latency.high is not None
        assert latency.low <= 2.0 < latency.value < 2.1 <= latency.high + 0.1
        assert (compared.memory_ratio, compared.same_weights, compared.same_engine) == (1.5, True, True)
        assert (compared.baseline_ref, compared.unavailable) == ("r", {})

    def test_the_same_again_has_an_honest_interval(self) -> None:
        values = dict.fromkeys(("a", "b", "c"), 1 / 3)
        ours = gold(task_scores=values, task_seconds=values)
        compared = compare_measured(found(record("r", task_scores=values, task_seconds=values)), ours, variant_hash="")
        assert compared.adherence_difference is not None
        assert compared.latency_ratio is not None
        assert (compared.adherence_difference.value, compared.latency_ratio.value) == (0.0, 1.0)
        assert compared.adherence_difference.low == pytest.approx(-0.7076, abs=1e-4)
        assert compared.latency_ratio.high == pytest.approx(1.7076, abs=1e-4)

    @given(st.floats(1e-3, 1e3))
    def test_the_unit_of_time_is_nothing(self, unit: float) -> None:
        def ratio(factor: float) -> Any:
            known = record("r", task_seconds={"a": 1.0 * factor, "b": 2.0 * factor, "c": 4.0 * factor})
            ours = gold(task_seconds={"a": 1.5 * factor, "b": 2.0 * factor, "c": 7.0 * factor})
            return compare_measured(found(known), ours, variant_hash="").latency_ratio

        assert ratio(unit).value == pytest.approx(ratio(1.0).value, abs=2e-6)
        assert ratio(unit).high == pytest.approx(ratio(1.0).high, abs=2e-6)

    def test_without_values_by_task_there_is_no_interval(self) -> None:
        compared = compare_measured(found(record("r")), gold(task_scores={"a": 0.5}, task_seconds={"a": 3.0}), variant_hash="")
        for estimate, value in ((compared.adherence_difference, -0.3), (compared.latency_ratio, 1.5)):
            assert estimate is not None
            assert estimate.value == pytest.approx(value)
            assert (estimate.low, estimate.high, estimate.n) == (None, None, 0)
            assert "no values by task" in estimate.reason

    def test_without_a_shared_task_there_is_no_interval(self) -> None:
        known = record("r", task_scores={"b": 1.0}, task_seconds={"b": 1.0})
        compared = compare_measured(found(known), gold(task_scores={"a": 0.5}, task_seconds={"a": 3.0}), variant_hash="")
        assert compared.adherence_difference is not None
        assert "share no task" in compared.adherence_difference.reason

    @pytest.mark.parametrize(
        ("known", "ours", "reasons"),
        [
            (
                {"adherence_score": None, "peak_memory_rss": None, "total_latency": None, "model_hash": "", "engine_version": ""},
                {},
                {
                    "adherence_difference": "NO_CHECKS",
                    "latency_ratio": "NO_CLEAN_TRIALS",
                    "memory_ratio": "NO_SENSOR",
                    "same_weights": "NOT_REPORTED",
                    "same_engine": "NOT_REPORTED",
                },
            ),
            (
                {"total_latency": 0.0, "peak_memory_rss": 0},
                {},
                {"latency_ratio": "ZERO_DENOMINATOR", "memory_ratio": "ZERO_DENOMINATOR"},
            ),
            (
                {},
                {"adherence_score": None, "peak_memory_rss": None, "total_latency": None},
                {"adherence_difference": "NO_CHECKS", "latency_ratio": "NO_CLEAN_TRIALS", "memory_ratio": "NO_SENSOR"},
            ),
        ],
    )
    def test_every_null_has_its_reason(self, known: dict[str, Any], ours: dict[str, Any], reasons: dict[str, str]) -> None:
        compared = compare_measured(
            found(record("r", **known)), gold(**ours), variant_hash="b" * 64, engines=[("llamacpp", "b2")]
        )
        assert compared.unavailable == reasons
        missing = {name for name, value in msgspec.structs.asdict(compared).items() if value is None}
        assert missing == set(reasons)

    @pytest.mark.parametrize("status", [status for status in BaselineStatus if status is not BaselineStatus.OK])
    def test_no_baseline_no_numbers(self, status: BaselineStatus) -> None:
        match = BaselineMatch(model_id="m", quant_tag="Q", test_id=TEST, status=status, detail="because")
        compared = compare_measured(match, gold(), variant_hash="a")
        assert (compared.status, compared.detail, compared.baseline_ref) == (status, "because", None)
        missing = {name for name, value in msgspec.structs.asdict(compared).items() if value is None}
        assert compared.unavailable == dict.fromkeys(missing, status.value)
        assert len(missing) == 7

    def test_other_weights_and_engines_show(self) -> None:
        compared = compare_measured(found(record("r")), gold(), variant_hash="b" * 64, engines=[("llamacpp", "b2")])
        assert (compared.same_weights, compared.same_engine) == (False, False)

    def test_a_row_uses_its_own_numbers(self, make_summary: Any, make_plan: Any, trial: Any) -> None:
        row = one_row(make_summary, make_plan, [trial("Q4_K_M", task, total_latency=0.5) for task in TASKS])
        known = record("r", model_hash=row.variant_sha256, task_scores=dict.fromkeys(TASKS, 0.5), total_latency=1.0)
        compared = compare_with_baseline(found(known), row, dict.fromkeys(TASKS, 1.0), {})
        assert compared.adherence_difference is not None
        assert compared.latency_ratio is not None
        assert (compared.adherence_difference.value, compared.adherence_difference.n) == (0.5, len(TASKS))
        assert (compared.latency_ratio.value, compared.latency_ratio.low) == (0.5, None)
        assert compared.same_weights is True
        server = msgspec.structs.replace(row, variant_sha256=None)
        match = msgspec.structs.replace(found(record("r", model_hash="digest")), variant_hash="digest")
        assert compare_with_baseline(match, server, {}, {}).same_weights is True


TASKS = ("t1", "t2", "t3", "t4")


def summary_of(make_summary: Any, make_plan: Any, trials: list[Any], **policy: Any) -> SweepSummary:
    summary: SweepSummary = make_summary(make_plan(("Q4_K_M",), TASKS, **policy), trials)
    return summary


def one_row(make_summary: Any, make_plan: Any, trials: list[Any]) -> QuantRow:
    return summary_of(make_summary, make_plan, trials).sessions[0].per_quant[0]


class TestGoodEnough:
    @pytest.fixture
    def flaws(self, make_summary: Any, make_plan: Any) -> Callable[..., dict[BaselineFlaw, str]]:
        def judge(trials: list[Any], **policy: Any) -> dict[BaselineFlaw, str]:
            summary = summary_of(make_summary, make_plan, trials, **policy)
            return row_flaws(summary, summary.sessions[0], summary.sessions[0].per_quant[0])

        return judge

    def test_a_clean_row_has_no_flaw(self, flaws: Any, trial: Any) -> None:
        assert flaws([trial("Q4_K_M", task) for task in TASKS]) == {}

    def test_an_unfinished_run(self, flaws: Any, trial: Any) -> None:
        judged = flaws([trial("Q4_K_M", task) for task in TASKS[1:]])
        assert set(judged) == {BaselineFlaw.RUN_INCOMPLETE, BaselineFlaw.ROW_INVALID}
        assert "3 of 4 trials" in judged[BaselineFlaw.RUN_INCOMPLETE]
        assert "INCOMPLETE" in judged[BaselineFlaw.ROW_INVALID]

    def test_a_polluted_row(self, flaws: Any, trial: Any) -> None:
        reasons = [PollutionReason.FOREIGN_CPU_LOAD]
        judged = flaws([trial("Q4_K_M", task, run_quality_reasons=reasons if n else ()) for n, task in enumerate(TASKS)])
        assert set(judged) == {BaselineFlaw.ROW_INVALID, BaselineFlaw.POLLUTED}
        assert judged[BaselineFlaw.POLLUTED] == "75 % of its trials are polluted (FOREIGN_CPU_LOAD)"

    def test_one_failed_trial(self, flaws: Any, trial: Any, failure: Any) -> None:
        judged = flaws([failure("Q4_K_M", "t1"), *(trial("Q4_K_M", task) for task in TASKS[1:])])
        assert judged == {BaselineFlaw.FAILED_TRIALS: "1 trial failed: 1 crashed"}

    def test_a_slow_row(self, flaws: Any, trial: Any) -> None:
        judged = flaws([trial("Q4_K_M", task, total_latency=3.0) for task in TASKS], latency_ceiling=2.0)
        assert judged == {BaselineFlaw.ABOVE_LATENCY_CEILING: "median latency 3.00 s, the ceiling is 2.00 s"}

    def test_a_reference_below_the_floor(self, flaws: Any, trial: Any) -> None:
        judged = flaws([trial("Q4_K_M", task, adherence_score=0.2) for task in TASKS], adherence_floor=0.5)
        assert judged == {BaselineFlaw.BELOW_ADHERENCE_LIMIT: "adherence 0.200, the limit is 0.500"}

    def test_nothing_at_all(self, flaws: Any) -> None:
        judged = flaws([])
        assert BaselineFlaw.RUN_INCOMPLETE in judged
        assert "no latency is known" in judged[BaselineFlaw.ABOVE_LATENCY_CEILING]
        assert "no adherence is known" in judged[BaselineFlaw.BELOW_ADHERENCE_LIMIT]


class TestRetention:
    @given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=12), st.integers(1, 6))
    def test_the_newest_and_the_pinned_stay(self, entries: list[tuple[int, bool]], keep_last: int) -> None:
        records = [record(str(n), days_ago=days, pinned=pinned) for n, (days, pinned) in enumerate(entries)]
        kept = keep(history(*records), Retention(keep_last, None, NOW))
        assert [one for one in records if one in kept] == list(kept)  # order of the file
        assert all(one in kept for one in records if one.baseline_metadata.pinned)
        unpinned = [n for n, (_, pinned) in enumerate(entries) if not pinned]
        newest = sorted(unpinned, key=lambda n: (-entries[n][0], n))[-keep_last:]
        stayed = {int(one.baseline_metadata.test_run_id) for one in kept if not one.baseline_metadata.pinned}
        assert stayed == set(newest)
        assert keep(history(*kept), Retention(keep_last, None, NOW)) == kept

    def test_an_age_spares_what_is_younger(self) -> None:
        records = [record(str(days), days_ago=days) for days in (40, 30, 20, 10, 1)]
        refs = [one.baseline_metadata.test_run_id for one in keep(history(*records), Retention(2, 25.0, NOW))]
        assert refs == ["20", "10", "1"]
        refs = [one.baseline_metadata.test_run_id for one in keep(history(*records), Retention(2, 0.5, NOW))]
        assert refs == ["10", "1"]

    def test_a_clock_that_ran_backwards_is_noticed(self) -> None:
        records = [record("a", days_ago=3), record("b", days_ago=9), record("c", days_ago=5), record("d", days_ago=1)]
        assert out_of_order(history(*records)) == ("b", "c")
        assert out_of_order(history(records[1], records[2], records[0], records[3])) == ()


def scope(**changes: Any) -> HealthScope:
    return HealthScope(**({"checked_at": NOW.isoformat()} | changes))


def answers(one: BaselineHistory, **changes: Any) -> dict[tuple[str, str], tuple[GateStatus, str]]:
    return {(check.subject, check.name): (check.status, check.code) for check in check_history(one, scope(**changes))}


class TestHealth:
    def test_old_history_behind_a_fresh_record_passes(self) -> None:
        one = history(
            record("a", days_ago=400, engine_version="b0"), record("b", task_revision="r0"), record("c", days_ago=-0.001)
        )
        judged = answers(one)
        assert set(judged.values()) == {(GateStatus.PASS, "")}
        assert set(judged) == {(f"{TEST} on here", "usable_baseline"), (f"{TEST} on here", "age_days")}
        counts = count_health(one, scope()).counts
        assert (counts.records, counts.stale_records) == (3, 2)
        assert (counts.too_old_records, counts.superseded_engine_records, counts.revision_mismatch_records) == (1, 1, 1)
        assert counts.hardware_mismatch_records is None

    def test_the_newest_being_old_fails(self) -> None:
        judged = answers(history(record("a", days_ago=91)))
        assert judged[f"{TEST} on here", "age_days"] == (GateStatus.FAIL, "TOO_OLD")
        assert answers(history(record("a", days_ago=90)))[f"{TEST} on here", "age_days"][0] is GateStatus.PASS

    def test_each_hardware_is_judged_alone(self) -> None:
        one = history(record("a", days_ago=100, hardware_fingerprint="attic"), record("b"))
        judged = answers(one)
        assert judged[f"{TEST} on attic", "age_days"] == (GateStatus.FAIL, "TOO_OLD")
        assert judged[f"{TEST} on here", "age_days"][0] is GateStatus.PASS
        assert {subject for subject, _ in answers(one, hardware_fingerprint="here")} == {f"{TEST} on here"}

    def test_hardware_counts_only_when_asked_for(self) -> None:
        one = history(record("a", hardware_fingerprint="there"))
        assert answers(one, hardware_fingerprint="here") == {
            (f"{TEST} on here", "usable_baseline"): (GateStatus.FAIL, "HW_MISMATCH")
        }
        counts = count_health(one, scope(hardware_fingerprint="here")).counts
        assert (counts.hardware_mismatch_records, counts.stale_records) == (1, 0)

    def test_a_revision_that_nothing_is_of(self) -> None:
        one = history(record("a"))
        assert answers(one, task_revision="r2")[f"{TEST} on here", "usable_baseline"] == (GateStatus.FAIL, "REV_MISMATCH")
        assert count_health(one, scope(task_revision="r2")).counts.stale_records == 1

    def test_an_older_record_of_the_asked_revision_is_usable(self) -> None:
        one = history(record("a", days_ago=10, task_revision="r1"), record("b", task_revision="r2"))
        checks = {check.name: check for check in check_history(one, scope(task_revision="r1"))}
        assert checks["usable_baseline"].status is GateStatus.PASS
        assert checks["age_days"].measured == 10.0

    def test_the_engine(self) -> None:
        one = history(record("a", days_ago=1, engine_version="b1"), record("b", engine_version="b2"))
        assert (f"{TEST} on here", "engine_version") not in answers(one)
        assert answers(one, engine_version="b2")[f"{TEST} on here", "engine_version"][0] is GateStatus.PASS
        assert answers(one, engine_version="b3")[f"{TEST} on here", "engine_version"] == (GateStatus.FAIL, "ENGINE_SUPERSEDED")
        assert count_health(one, scope()).counts.superseded_engine_records == 1
        assert count_health(one, scope(engine_version="b3")).counts.superseded_engine_records == 2
        unknown = history(record("a", engine_version=""))
        assert answers(unknown, engine_version="b3")[f"{TEST} on here", "engine_version"] == (GateStatus.SKIP, "ENGINE_NOT_KNOWN")
        assert count_health(unknown, scope(engine_version="b3")).counts.superseded_engine_records == 0
        beside = history(record("a", engine_version=""), record("b"), record("c", engine_version="b1"))
        assert count_health(beside, scope()).counts.superseded_engine_records == 0

    def test_a_record_from_the_future_cannot_be_judged(self) -> None:
        (age,) = (check for check in check_history(history(record("a", days_ago=-3)), scope()) if check.name == "age_days")
        assert (age.status, age.code, age.measured) == (GateStatus.SKIP, "CLOCKS_DISAGREE", None)
        assert "3.0 days ahead" in age.evidence

    def test_an_empty_history_and_a_missing_one_fail(self) -> None:
        assert answers(history()) == {(TEST, "usable_baseline"): (GateStatus.FAIL, "NO_BASELINE")}
        assert check_missing(TEST).code == "NO_BASELINE"

    def test_damage_fails_and_counts_add_up(self) -> None:
        (check,) = check_unreadable([UnreadableFile(path="x.json", reason="half of it")])
        assert (check.status, check.code, check.subject, check.evidence) == (
            GateStatus.FAIL,
            "UNREADABLE",
            "x.json",
            "half of it",
        )
        tests = [count_health(history(record("a", forced=True), record("b", pinned=True, days_ago=200)), scope())] * 2
        total = sum_health(tests, scope(), 1)
        assert (total.tests_total, total.records_total, total.stale_records_total) == (2, 4, 2)
        assert (total.forced_records_total, total.pinned_records_total, total.unreadable_files_total) == (2, 2, 1)
        assert total.hardware_mismatch_records_total is None
        assert sum_health(tests, scope(hardware_fingerprint="here"), 0).hardware_mismatch_records_total == 0

    def test_nothing_to_judge_is_no_pass(self) -> None:
        assert build_report("baseline_health", [], sources=[], thresholds={}).status is GateStatus.SKIP
