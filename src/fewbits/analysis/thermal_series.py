"""Which row of which summaries is profiled, whether the runs belong together, and what to know before comparing them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from fewbits.core.errors import Problem, SpecError
from fewbits.records.provenance import SourceFile
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.records.thermal import ThermalNote, ThermalNoteCode


@dataclass(frozen=True, slots=True)
class ThermalRun:
    """A summary and the row of it that is profiled."""

    summary: SweepSummary
    source: SourceFile
    session: Session
    row: QuantRow


@dataclass(frozen=True, slots=True)
class ThermalLabels:
    """What the operator asked for or told. `None`: nothing was said."""

    model_id: str | None = None
    quant_tag: str | None = None
    execution_lane: str | None = None
    vram_profile: str | None = None


@dataclass(frozen=True, slots=True)
class ThermalSeries:
    """Runs that may be compared, in the order in which they were given, and how their row was chosen."""

    runs: tuple[ThermalRun, ...]
    selection: str
    notes: tuple[ThermalNote, ...]


def select_series(summaries: Sequence[tuple[SweepSummary, SourceFile]], labels: ThermalLabels) -> ThermalSeries:
    """Choose the row to profile and check that the runs belong together.

    The model is the named one, else the first session's; the variant is the named one, else that session's minimum viable, else
    its most precise. The first summary decides for all. Raises `SpecError` with every problem: a summary given twice, nothing
    by that name, other hardware, other weights, another lane or profile than the first.
    """
    first = summaries[0][0]
    problems = _repeated(summaries)
    session, model_why = _first_session(first, labels.model_id)
    row, quant_why = _first_row(session, labels.quant_tag)
    runs = []
    for summary, source in summaries:
        try:
            of_model = _session_of(summary, session.model_id, source.path)
            runs.append(ThermalRun(summary, source, of_model, _row_of(of_model, row.quant_tag, source.path)))
        except SpecError as error:
            problems.extend(error.problems)
    problems.extend(_strangers(runs))
    if problems:
        raise SpecError(problems)
    selection = f"{row.quant_tag} of {session.model_id}: the model {model_why}, the variant {quant_why}."
    return ThermalSeries(tuple(runs), selection, tuple(_notes(runs, labels)))


def _repeated(summaries: Sequence[tuple[SweepSummary, SourceFile]]) -> list[Problem]:
    seen: dict[str, str] = {}
    problems = []
    for _, source in summaries:
        if source.sha256 in seen:
            same = f"{source.path} is the same summary as {seen[source.sha256]} (sha256 {source.sha256[:12]})"
            problems.append(Problem("--summaries", same, "give each run once, in the order in which they ran"))
        seen.setdefault(source.sha256, source.path)
    return problems


def _first_session(summary: SweepSummary, model_id: str | None) -> tuple[Session, str]:
    if model_id is not None:
        return _session_of(summary, model_id, "the first summary"), "named by --model-id"
    if not summary.sessions:
        raise SpecError.single("--summaries", "the first summary has no session", "give summaries of finished sweeps")
    only = len(summary.sessions) == 1
    return summary.sessions[0], "is the only one" if only else f"is the first of {len(summary.sessions)}, none was named"


def _first_row(session: Session, quant_tag: str | None) -> tuple[QuantRow, str]:
    where = "the first summary"
    if quant_tag is not None:
        return _row_of(session, quant_tag, where), "named by --quant-tag"
    if not session.per_quant:
        raise SpecError.single(
            "--summaries", f"{where} has no variant of {session.model_id}", "give summaries of finished sweeps"
        )
    viable = session.efficiency_frontier.minimum_viable_quant_tag
    if viable is not None:
        return _row_of(session, viable, where), "is the minimum viable one of the first run"
    return max(session.per_quant, key=lambda row: row.quant_rank), "is the most precise one (nothing was recommended)"


def _session_of(summary: SweepSummary, model_id: str, where: str) -> Session:
    found = next((session for session in summary.sessions if session.model_id == model_id), None)
    if found is None:
        there = ", ".join(session.model_id for session in summary.sessions) or "no model at all"
        raise SpecError.single("--model-id", f"{where} has no model {model_id!r}", f"it has {there}")
    return found


def _row_of(session: Session, quant_tag: str, where: str) -> QuantRow:
    found = next((row for row in session.per_quant if row.quant_tag == quant_tag), None)
    if found is None:
        there = ", ".join(row.quant_tag for row in session.per_quant) or "no variant at all"
        raise SpecError.single("--quant-tag", f"{where} has no variant {quant_tag!r} of {session.model_id}", f"it has {there}")
    return found


def _strangers(runs: Sequence[ThermalRun]) -> list[Problem]:
    """Find what must be the same in all runs and is not."""
    problems = []
    for run in runs[1:]:
        for what, one, other in (
            ("hardware", runs[0].summary.hardware_fingerprint, run.summary.hardware_fingerprint),
            ("execution lane", runs[0].summary.execution_lane, run.summary.execution_lane),
            ("VRAM profile", runs[0].summary.vram_profile, run.summary.vram_profile),
            ("weights (sha256)", runs[0].row.variant_sha256, run.row.variant_sha256),
        ):
            if None not in (one, other) and one != other:
                text = f"{run.source.path} was measured with another {what} than {runs[0].source.path}: {other!r}, not {one!r}"
                problems.append(Problem("--summaries", text, "profile runs of one machine and one variant"))
    return problems


def _notes(runs: Sequence[ThermalRun], labels: ThermalLabels) -> Iterable[ThermalNote]:
    first = runs[0].summary
    for code, flag, asked, measured in (
        (ThermalNoteCode.LANE_MISMATCH, "--execution-lane", labels.execution_lane, first.execution_lane),
        (ThermalNoteCode.PROFILE_MISMATCH, "--vram-profile", labels.vram_profile, first.vram_profile),
    ):
        if asked is not None and asked != measured:
            yield ThermalNote(
                code=code, text=f"{flag} said {asked!r}, the runs were measured as {measured!r}: that label is kept."
            )
    clock = _clock_note(runs)
    if clock is not None:
        yield clock
    if work_differs(runs):
        text = "The runs followed different plans or asked different numbers of tasks: their seconds are not of the same work."
        yield ThermalNote(code=ThermalNoteCode.WORK_DIFFERS, text=text)
    engines = {f"{run.session.engine} {run.session.engine_version}" for run in runs}
    if len(engines) > 1:
        text = f"The runs used different engines ({', '.join(sorted(engines))}): a change of speed may come from there."
        yield ThermalNote(code=ThermalNoteCode.ENGINE_DIFFERS, text=text)
    partial = [str(index) for index, run in enumerate(runs, start=1) if not run.summary.complete]
    if partial:
        text = f"Trials are missing from run {', '.join(partial)}: its numbers may still change."
        yield ThermalNote(code=ThermalNoteCode.INCOMPLETE_RUN, text=text)


def _clock_note(runs: Sequence[ThermalRun]) -> ThermalNote | None:
    began = [_moment(run.summary.provenance.first_trial_at) for run in runs]
    unknown = [str(index) for index, moment in enumerate(began, start=1) if moment is None]
    if unknown:
        text = f"The order given is kept; it cannot be checked, since run {', '.join(unknown)} does not say when it began."
        return ThermalNote(code=ThermalNoteCode.CLOCK_UNKNOWN, text=text)
    known = [moment for moment in began if moment is not None]
    for index, (one, other) in enumerate(pairwise(known), start=1):
        if other <= one:
            text = (
                f"The order given is kept, although by its own date run {index + 1} did not begin after run {index}: "
                "the order is wrong, or a clock was set back."
            )
            return ThermalNote(code=ThermalNoteCode.CLOCK_NOT_INCREASING, text=text)
    return None


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def work_differs(runs: Sequence[ThermalRun]) -> bool:
    """Tell whether the runs followed different plans, or counted different numbers of tasks or trials."""
    return len({(run.summary.provenance.plan_digest, run.row.tasks, run.row.test_runs) for run in runs}) > 1
