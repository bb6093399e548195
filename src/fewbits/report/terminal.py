"""What a command prints at its end, for `rich`: colours on a terminal, plain text in a pipe.

`rich` is imported inside the functions, so that importing this module costs nothing. Foreign text goes into `Text`
objects, never into console markup, and only after hidden characters were made visible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewbits.records.estimate import Estimate
from fewbits.records.plan import PolicyName
from fewbits.records.summary import QuantRow, Session, SweepSummary
from fewbits.report import formats
from fewbits.report.escape import NAME_LIMIT, visible
from fewbits.report.tables import plain_value
from fewbits.report.terminal_extraction import extraction_columns
from fewbits.report.verdicts import clean_words, deciding_words, pick_words, reason_words, rerun_words, row_by_tag, standing_words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MEDIUM_COLUMNS = 72
"""Below this console width the memory column makes room for the verdicts."""
WIDE_COLUMNS = 110
"""From this console width on, intervals and file sizes get their own room in the table."""
EXTRA_COLUMNS = 130
"""From this width on, so do the latency ratio and the divergence, where they were measured."""
_DIGEST_DIGITS = 16
_SHOWN_TASKS = 60


def render_terminal(summary: SweepSummary, console_width: int) -> RenderableType:
    """Return the recommendation panel and a compact table per session, fitted to a console of that many columns."""
    from rich.console import Group

    parts: list[RenderableType] = []
    if not summary.complete:
        words = f"Not complete: {summary.trials_counted} of {summary.trials_expected} planned trials are in."
        parts.append(_styled(words, "bold yellow"))
    if summary.canary.enabled and summary.canary.passed is False:
        parts.append(_styled("The canary failed: this machine did not repeat itself.", "bold red"))
    for session in summary.sessions:
        parts += [_panel(session, wide=console_width >= WIDE_COLUMNS)]
        policy = session.selection_policy or summary.selection_policy
        parts += [_rows_table(session, policy.name, console_width)]
        parts += [_styled(f"† {sentence}", "yellow") for sentence in _warning_sentences(session)]
    parts.append(_styled(f"{clean_words(summary.run_quality)}. {rerun_words(summary.run_quality)}".strip(), "dim"))
    return Group(*parts)


def _styled(words: str, style: str) -> Text:
    from rich.text import Text

    return Text(words, style=style)


def _panel(session: Session, *, wide: bool) -> RenderableType:
    """Return the recommendation with its numbers in a frame."""
    from rich.box import ROUNDED
    from rich.panel import Panel
    from rich.text import Text

    frontier = session.efficiency_frontier
    picks = dict.fromkeys(tag for tag in (frontier.minimum_viable_quant_tag, frontier.best_value_quant_tag) if tag is not None)
    body = Text()
    for tag in picks:
        row = row_by_tag(session, tag)
        if row is not None:
            body.append(f"{visible(tag, NAME_LIMIT)}", style="bold green")
            body.append(f"  {' and '.join(pick_words(session, row))}\n", style="bold")
            lines = [" · ".join(_numbers(row))] if wide else [" · ".join(half) for half in (_numbers(row)[:2], _numbers(row)[2:])]
            body.append("".join(f"  {line}\n" for line in lines), style="cyan")
    body.append(visible(session.recommendation), style="" if picks else "bold yellow")
    _append_reasons(body, session)
    title = Text(f" {visible(session.model_id, NAME_LIMIT)} ", style="bold")
    return Panel(body, title=title, title_align="left", box=ROUNDED, border_style="green" if picks else "yellow", padding=(0, 1))


def _append_reasons(body: Text, session: Session) -> None:
    """Say why, what is not decided, what is not certain, and what would change the answer."""
    detail = session.recommendation_detail
    for sentence in detail.because:
        body.append(f"\n- {visible(sentence)}")
    for heading, sentences in (("Not decided", detail.missing), ("Not certain", detail.uncertain)):
        if sentences:
            body.append(f"\n{heading}", style="bold")
        for sentence in sentences:
            body.append(f"\n- {visible(sentence)}", style="dim")
    if detail.would_change:
        body.append("\nWhat would change it", style="bold")
        body.append(f"\n- {visible(detail.would_change)}", style="dim")
    if session.decision_log is not None:
        body.append(f"\n{deciding_words(session.decision_log)}", style="dim")


def _numbers(row: QuantRow) -> list[str]:
    adherence = formats.score_estimate(row.adherence) if row.adherence else formats.score(row.adherence_score)
    return [
        f"{formats.bits(row.bits_per_weight)} bits/weight",
        f"adherence {adherence}",
        f"{formats.seconds(row.total_latency)} median",
        f"{formats.rate(row.generation_tokens_per_second)} tokens/s",
        f"{formats.size(row.peak_memory_rss)} peak",
    ]


def _rows_table(session: Session, policy: PolicyName, console_width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = _columns(session, console_width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    table.add_column("quant", no_wrap=True, overflow="ellipsis", max_width=24 if console_width >= WIDE_COLUMNS else 16)
    for heading in columns:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", ratio=1)
    for row in session.per_quant:
        name = visible(row.quant_tag, NAME_LIMIT) + (" †" if row.warnings else "")
        cells = (name, *(cell(row) for cell in columns.values()), _verdict(session, row, policy))
        style = "dim" if not row.valid else "green" if pick_words(session, row) else ""
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _columns(session: Session, console_width: int) -> dict[str, Callable[[QuantRow], str]]:
    """Return heading -> cell for the number columns that fit; the extra ones only where some row can fill them."""
    if any(row.detection is not None for row in session.per_quant):
        return _detector_columns(session, console_width)
    if any(row.extraction is not None for row in session.per_quant):
        return extraction_columns(wide=console_width >= WIDE_COLUMNS, narrow=console_width < MEDIUM_COLUMNS)
    names: tuple[str, ...] = _NARROW if console_width < MEDIUM_COLUMNS else _MEDIUM
    if console_width < WIDE_COLUMNS:
        return {name: _CELLS[name] for name in names} | {"adherence": lambda row: formats.score(row.adherence_score)}
    names = _WIDE
    if console_width >= EXTRA_COLUMNS:
        names += tuple(name for name in _EXTRA if any(_CELLS[name](row) != formats.MISSING for row in session.per_quant))
    return {name: _CELLS[name] for name in names}


def _detector_columns(session: Session, console_width: int) -> dict[str, Callable[[QuantRow], str]]:
    """Return the columns of detectors: COCO's numbers in the place of tokens, intervals where there is room."""
    wide = console_width >= WIDE_COLUMNS
    share = f"of {visible(session.baseline_quant, _REFERENCE_LIMIT)}"
    cells: dict[str, Callable[[QuantRow], str]] = {
        **_CELLS,
        "mAP50-95": lambda row: formats.score_estimate(_map_of(row)) if wide else formats.score(_value(_map_of(row))),
        share: lambda row: formats.percent(_value(_retained_of(row))),
        "adherence": lambda row: formats.score(row.adherence_score),
    }
    names: tuple[str, ...] = ("bits", "mAP50-95", share, "latency")
    if wide:
        names = ("bits", "size", "mAP50-95", share, "adherence", "vs reference", "latency", "memory")
    elif console_width >= MEDIUM_COLUMNS:
        names = ("bits", "mAP50-95", share, "adherence", "latency")
    return {name: cells[name] for name in names}


def _map_of(row: QuantRow) -> Estimate | None:
    return row.detection.metrics.map_50_95 if row.detection and row.detection.metrics else None


def _retained_of(row: QuantRow) -> Estimate | None:
    return row.detection.metrics.retained if row.detection and row.detection.metrics else None


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


_REFERENCE_LIMIT = 10
"""Characters of the reference's tag in a heading."""
_NARROW = ("bits", "adherence", "latency", "tok/s")
_MEDIUM = (*_NARROW, "memory")
_WIDE = ("bits", "size", "adherence", "vs reference", "latency", "tok/s", "memory")
_EXTRA = ("time ratio", "KLD")
_CELLS: Mapping[str, Callable[[QuantRow], str]] = {
    "bits": lambda row: formats.bits(row.bits_per_weight),
    "size": lambda row: formats.size(row.variant_bytes),
    "adherence": lambda row: formats.score_estimate(row.adherence) if row.adherence else formats.score(row.adherence_score),
    "vs reference": lambda row: formats.signed(row.adherence_difference.value if row.adherence_difference else None),
    "latency": lambda row: formats.seconds(row.total_latency),
    "tok/s": lambda row: formats.rate(row.generation_tokens_per_second),
    "memory": lambda row: formats.size(row.peak_memory_rss),
    "time ratio": lambda row: formats.score(row.latency_ratio.value if row.latency_ratio else None),
    "KLD": lambda row: formats.nats(row.divergence.mean_nats.value if row.divergence and row.divergence.mean_nats else None),
}
"""`time ratio`: seconds as a multiple of the reference's within a block; `KLD`: mean divergence, nats per token."""


def _verdict(session: Session, row: QuantRow, policy: PolicyName) -> str:
    words = [*pick_words(session, row), *(visible(standing) for standing in standing_words(row, policy))]
    if row.dominated_by:
        words.append("dominated by " + ", ".join(visible(tag, NAME_LIMIT) for tag in row.dominated_by))
    return ", ".join(words)


def _warning_sentences(session: Session) -> list[str]:
    return [
        visible(message) for message in dict.fromkeys(warning.message for row in session.per_quant for warning in row.warnings)
    ]


def render_dry_run(document: Mapping[str, Any]) -> RenderableType:
    """Return the dry-run document (`fewbits.sweep.plan.dry_run_document`) as tables; only long lists of tasks are cut short."""
    from rich.console import Group
    from rich.text import Text

    matrix, estimates = document["matrix"], document["estimates"]
    head = Text("Dry run: nothing was written.", style="bold")
    if document.get("description"):
        head.append("\n" + visible(str(document["description"])), style="not bold")
    sections: list[tuple[str, Table]] = [
        ("Plan", _pairs_table(_labelled(_plan_facts(document)))),
        ("Models", _pairs_table({model["model_id"]: _model_words(model) for model in matrix["models"]})),
        ("Variants and disk", _variants_table(estimates["disk"])),
        (
            "Work",
            _pairs_table(
                _labelled(_work_facts(matrix, estimates, deciding=document["policies"].get("decide", {}).get("enabled", False)))
            ),
        ),
        ("Controls", _pairs_table(_labelled(document["controls"]))),
        *((f"Policy: {name}", _pairs_table(_labelled(policy))) for name, policy in document["policies"].items()),
        ("Around it", _pairs_table(_lab_facts(document))),
        ("Files it would write", _pairs_table(_labelled(document["artifacts"]))),
    ]
    return Group(head, *(part for title, table in sections for part in (_styled(f"\n{visible(title)}", "bold"), table)))


def _labelled(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same pairs with keys that read as words."""
    return {str(key).replace("_", " "): value for key, value in pairs.items()}


def _plan_facts(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "plan_digest": str(document["plan_digest"])[:_DIGEST_DIGITS] + "…",
        "commit": document["commit_sha"],
        "machine": document["hardware_fingerprint"],
        **{f"runtime_{key}": value for key, value in document["runtime"].items() if value is not None},
        **document["labels"],
        **document["timeouts"],
    }


def _lab_facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands beside the matrix; of a model's own limits, those that are not the sweep's."""
    lab, common = document.get("lab", {}), document["policies"].get("policy", {})
    limits = {
        f"limits of {model} alone": {key.replace("_", " "): value for key, value in own.items() if value != common.get(key)}
        for model, own in lab.get("model_policies", {}).items()
    }
    return {**_labelled({key: value for key, value in lab.items() if key != "model_policies"}), **limits}


def _model_words(model: Mapping[str, Any]) -> str:
    digest = f"sha256 {str(model['digest'])[:_DIGEST_DIGITS]}…" if model.get("digest") else "digest not known"
    return ", ".join(str(part) for part in (model["kind"], digest, model.get("path")) if part)


def _first_of(tasks: Sequence[str]) -> list[str]:
    """Return the first tasks of a long list, and how many follow."""
    hidden = len(tasks) - _SHOWN_TASKS
    return [*tasks] if hidden <= 1 else [*tasks[:_SHOWN_TASKS], f"and {hidden} more (--json names all)"]


def _work_facts(matrix: Mapping[str, Any], estimates: Mapping[str, Any], *, deciding: bool) -> dict[str, Any]:
    seconds = estimates["seconds"]
    unavailable = _unknown(estimates["seconds_unavailable"])
    shown = {key: value for key, value in matrix.items() if key not in {"models", "tasks", "selection"}}
    chosen = {key: value for key, value in matrix["selection"].items() if value not in (None, [], (), 0)}
    # Chosen ids are exactly the tasks that are listed below
    selection = {key: "the tasks below" if key == "ids" else value for key, value in chosen.items()}
    return {
        **shown,
        "selection": selection or "all tasks",
        "tasks": _first_of(matrix["tasks"]),
        "estimated_time": f"{'at most ' if deciding else ''}{formats.seconds(seconds)}" if seconds is not None else unavailable,
    }


def _variants_table(disk: Mapping[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("model", "quant"):
        table.add_column(heading, overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for row in disk["variants"]:
        size = formats.size(row["bytes"]) if row["bytes"] is not None else _unknown(row["unavailable"])
        table.add_row(*(_plain(str(cell)) for cell in (row["model_id"], row["quant_tag"], size)))
    total = disk["total_bytes"]
    last = formats.size(total) if total is not None else _unknown(disk["total_unavailable"])
    table.add_row("", _plain("together"), _plain(last), style="bold")
    return table


def _unknown(reason: Any) -> str:
    return f"unknown ({reason_words(str(reason))})"


def _pairs_table(pairs: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="cyan", overflow="fold")
    table.add_column(overflow="fold")
    for key, value in pairs.items():
        table.add_row(_plain(str(key)), _plain(plain_value(value)))
    return table


def _plain(words: str) -> Text:
    from rich.text import Text

    return Text(visible(words))
