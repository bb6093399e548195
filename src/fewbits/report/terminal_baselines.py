"""What the baseline commands say, as plain text. Everything that came out of a file is made visible first."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.analysis.wording import count, listed
from fewbits.records.baseline import BaselineMatch, BaselineRecord
from fewbits.records.baseline_upkeep import (
    AppendReport,
    BaselineHealth,
    BaselineList,
    BaselineShow,
    PinReport,
    PruneReport,
    UnreadableFile,
)
from fewbits.report import formats
from fewbits.report.escape import NAME_LIMIT, visible
from fewbits.report.terminal_gates import render_gate

_REFERENCE_LIMIT = 200
"""References and fingerprints are shown whole: people copy them into the next command."""


def render_list(listing: BaselineList) -> str:
    """Return a line per test, and what cannot be read."""
    lines = []
    for item in listing.items:
        words = [count(item.history_count, "baseline"), f"{item.pinned_count} pinned", f"{item.forced_count} forced"]
        newest = (
            f", newest {_whole(item.latest_test_run_id)} of {visible(item.latest_created_at or '')}"
            if item.latest_test_run_id
            else ""
        )
        lines.append(f"{visible(item.test_id)}: {', '.join(words)}{newest}")
    if not listing.items and not listing.unreadable:
        lines.append(f"no baseline found in {visible(listing.storage_root)}")
    return _text(lines + _unreadable(listing.unreadable))


def render_show(shown: BaselineShow) -> str:
    """Return every record of a test, in the file's order."""
    lines = [f"{visible(shown.test_id)}: {count(len(shown.history), 'baseline')}, oldest entry first"]
    for record in shown.history:
        lines += _record_lines(record)
    if shown.out_of_order:
        late = listed([_whole(ref) for ref in shown.out_of_order])
        lines.append(
            f"The clock ran backwards: {late} dated before an entry that was written earlier. Dates decide which is newest."
        )
    return _text(lines)


def _record_lines(record: BaselineRecord) -> list[str]:
    known, gold = record.baseline_metadata, record.gold_telemetry
    marks = [word for word, applies in (("pinned", known.pinned), ("forced", known.forced)) if applies]
    score = formats.score(gold.adherence_score)
    numbers = [
        f"adherence {score}",
        f"{formats.seconds(gold.total_latency)} median",
        f"{formats.size(gold.peak_memory_rss)} peak",
    ]
    engine = " ".join(part for part in (known.engine, known.engine_version) if part) or "engine not known"
    lines = [
        f"  {_whole(known.test_run_id)}  {visible(known.created_at)}{'  ' + ', '.join(marks) if marks else ''}",
        f"    {visible(known.model_id, NAME_LIMIT)} {visible(known.quant_tag, NAME_LIMIT)} · {' · '.join(numbers)}",
        f"    {visible(engine)} · values of {count(len(gold.task_scores), 'task')}",
        f"    weights {_whole(known.model_hash) or 'not known'}",
        f"    hardware {_whole(known.hardware_fingerprint)}",
        f"    task revision {_whole(known.task_revision)}",
    ]
    if known.forced:
        lines.append(f"    stored by force, in spite of {visible(listed(known.forced_because)) or 'nothing that is on record'}")
    return lines


def render_match(match: BaselineMatch) -> str:
    """Return the status, the reason, and the record where there is one."""
    lines = [f"{match.status.value}: {visible(match.detail)}"]
    return _text(lines + (_record_lines(match.record) if match.record is not None else []))


def render_append(report: AppendReport) -> str:
    """Return what became of every row."""
    lines = []
    for outcome in report.outcomes:
        name = visible(f"{outcome.model_id} {outcome.quant_tag}", NAME_LIMIT)
        forced = outcome.appended and outcome.record is not None and outcome.record.baseline_metadata.forced
        if outcome.appended:
            how = "stored by force" if forced else "stored"
            lines.append(f"{name}: {how} as {_whole(report.test_run_id)} of {visible(outcome.test_id)}")
        else:
            lines.append(f"{name}: refused")
        lines += [f"  {'in spite of: ' if forced else ''}{visible(reason)}" for reason in outcome.reasons]
    stored = [outcome.record for outcome in report.outcomes if outcome.record is not None]
    if stored and not any(record.gold_telemetry.task_scores for record in stored):
        lines.append("Without values by task, comparisons have no interval: append the run's folder to have them.")
    return _text(lines)


def render_pin(report: PinReport) -> str:
    """Return what the record is now."""
    state = "pinned" if report.pinned else "not pinned"
    return _text(
        [f"{_whole(report.baseline_ref)} of {visible(report.test_id)} is {state}{'' if report.changed else ', as it was'}"]
    )


def render_health(health: BaselineHealth) -> str:
    """Return the gate's answer, then the counts."""
    total = health.summary
    hardware = total.hardware_mismatch_records_total
    parts = [
        count(total.tests_total, "test"),
        count(total.records_total, "record"),
        f"{total.stale_records_total} stale",
        f"{total.revision_mismatch_records_total} of another task revision",
        "hardware not compared" if hardware is None else f"{hardware} from other hardware",
        f"{total.forced_records_total} forced",
        f"{total.pinned_records_total} pinned",
        count(total.unreadable_files_total, "unreadable file"),
    ]
    lines = [", ".join(parts)]
    lines += [
        f"  {visible(test.test_id)}: {test.counts.stale_records} of {count(test.counts.records, 'record')} stale"
        for test in health.per_test
        if test.counts.stale_records
    ]
    return render_gate(health.gate_report) + _text(lines)


def render_prune(report: PruneReport) -> str:
    """Return what goes and what stays."""
    goes, drops = ("would go", "would be dropped") if report.dry_run else ("gone", "dropped")
    lines = []
    for test in report.tests:
        lines.append(f"{visible(test.test_id)}: {len(test.dropped)} {goes}, {count(len(test.kept), 'baseline')} kept")
        lines += [f"  - {_whole(ref)}" for ref in test.dropped]
        lines += [f"    {_whole(ref)}{' pinned' if ref in test.kept_pinned else ''}" for ref in test.kept]
    total = sum(len(test.dropped) for test in report.tests)
    lines.append(f"{count(total, 'baseline')} {drops}" + ("; dry run: nothing was touched" if report.dry_run else ""))
    return _text(lines)


def _unreadable(files: Sequence[UnreadableFile]) -> list[str]:
    return [f"UNREADABLE {visible(file.path)}: {visible(file.reason)}" for file in files]


def _whole(text: str | None) -> str:
    return visible(text or "", _REFERENCE_LIMIT)


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
