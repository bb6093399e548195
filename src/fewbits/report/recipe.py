"""A recipe as a report: the verdict first, then what it rests on, then how to make the file. Pure; everything is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.analysis.wording import count, percent
from fewbits.core.units import format_seconds
from fewbits.records.estimate import Estimate
from fewbits.records.recipe import HeldOut, RecipeGroup, RecipeManifest, RecipeOption, RecipeVerdict
from fewbits.report import formats
from fewbits.report.escape import code_block_text, markdown_name, markdown_text, visible
from fewbits.report.tables import bullets, table

PICTURE_NAME = "recipe_layers.svg"
REPORT_NAME = "recipe_report.md"
_RECIPE = "recipe"
_VERDICT_WORDS = {
    RecipeVerdict.BETTER: "better than the stock file",
    RecipeVerdict.NOT_BETTER: "not better than the stock file",
    RecipeVerdict.UNRESOLVED: "not told apart from the stock file",
}
_SCORE_WORDS = {
    "probes": "probes of this model",
    "autoquant": "imported AutoQuant scores (units of their own, so nothing is predicted)",
    "given": "none: the recipe was brought along",
}


def render_recipe_markdown(manifest: RecipeManifest) -> str:
    """Return the report as Markdown, ending in a newline. It links `PICTURE_NAME`."""
    blocks = [
        f"# A recipe for {markdown_name(manifest.model_id)}",
        _verdict_card(manifest),
        *_warnings(manifest),
        "## On held-out text",
        _held_out_table(manifest.held_out),
        _held_out_notes(manifest),
        "## On tasks",
        _tasks(manifest),
        "## The recipe",
        f"![Type of every tensor]({PICTURE_NAME})",
        _groups_table(manifest.groups),
        _groups_note(manifest),
        "## How it was searched",
        bullets(_search_lines(manifest)),
        "## What this does not show",
        bullets(_limits(manifest)),
        "## Make it again",
        _commands(manifest),
        "## Where it comes from",
        _provenance(manifest),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def recommendation_words(manifest: RecipeManifest) -> str:
    """Return which file to use, in one line without markup: foreign names are made visible, not escaped."""
    name = manifest.file if manifest.recommended == _RECIPE else f"stock {manifest.recommended}"
    return f"Use {'the recipe ' if manifest.recommended == _RECIPE else ''}{visible(name)}"


def verdict_words(verdict: RecipeVerdict) -> str:
    """Return a verdict in words."""
    return _VERDICT_WORDS[verdict]


def _verdict_card(manifest: RecipeManifest) -> str:
    used = markdown_name(manifest.file if manifest.recommended == _RECIPE else manifest.recommended)
    kind = "the recipe" if manifest.recommended == _RECIPE else "the stock file"
    lines = [
        f"## Use {kind} {used}",
        "",
        f"**The recipe is {_VERDICT_WORDS[manifest.verdict]} ({manifest.verdict.value}).** {markdown_text(manifest.why)}",
        "",
        f"- *recipe:* {markdown_name(manifest.tag)}, {_bytes(manifest.file_bytes)} bytes, "
        f"{formats.bits(manifest.bits_per_weight)} bits per weight",
        f"- *budget:* {markdown_text(manifest.budget.asked)}: at most {_bytes(manifest.budget.bytes)} bytes",
        f"- *stock file:* {markdown_name(manifest.stock_tag)}",
    ]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _warnings(manifest: RecipeManifest) -> list[str]:
    if not manifest.warnings:
        return []
    return ["**Read this before using the numbers:**\n\n" + bullets([markdown_text(line) for line in manifest.warnings])]


def _held_out_table(files: Sequence[HeldOut]) -> str:
    header = ("file", "bytes", "bits per weight", "divergence, nats", "same top token", "less than stock by", "types")
    return table(header, [_held_out_row(file) for file in files], numeric=range(1, 6))


def _held_out_row(file: HeldOut) -> list[str]:
    types = ", ".join(f"{number} {name}" for name, number in sorted(file.types.items(), key=lambda item: (-item[1], item[0])))
    name = markdown_text(file.label)
    return [
        f"**{name}**" if file.label == _RECIPE else name,
        _bytes(file.bytes) if file.bytes else formats.MISSING,
        formats.bits(file.bits_per_weight) if file.bytes else formats.MISSING,
        formats.nats_estimate(file.kl_nats),
        formats.percent_estimate(file.top_token_agreement),
        formats.percent_estimate(file.against_stock),
        markdown_text(types) or formats.MISSING,
    ]


def _held_out_notes(manifest: RecipeManifest) -> str:
    estimates = [
        one
        for file in manifest.held_out
        for one in (file.kl_nats, file.top_token_agreement, file.against_stock)
        if one is not None and one.low is not None
    ]
    lines = []
    if estimates:
        levels = ", ".join(sorted({formats.level(one.level) for one in estimates}))
        methods = "; ".join(sorted({one.method for one in estimates}))
        windows = max(one.n for one in estimates)
        lines.append(
            f"Brackets: {levels} intervals over {count(windows, 'window')} of {markdown_name(manifest.held_out_text)} "
            f"({markdown_text(methods)}). The comparison with stock is paired: the same windows for both files."
        )
    lines += [f"{markdown_text(file.label)}: {markdown_text(file.unavailable)}" for file in manifest.held_out if file.unavailable]
    return bullets(lines)


def _tasks(manifest: RecipeManifest) -> str:
    tasks = manifest.tasks
    if tasks is None:
        return "No tasks were run, so nothing is known about answers."
    where = f"{count(tasks.items, 'task')} of {markdown_name(tasks.bank)}; the sweep lies in {markdown_name(tasks.run)}"
    if tasks.unavailable:
        return f"{where}. No comparison: {markdown_text(tasks.unavailable)}"
    verdict = "none" if tasks.verdict is None else tasks.verdict.value
    difference = formats.signed_estimate(tasks.difference)
    return f"Adherence of the recipe minus {markdown_name(manifest.stock_tag)}: {difference}, verdict **{verdict}** ({where})."


def _groups_table(groups: Sequence[RecipeGroup]) -> str:
    header = ("group", "tensors", "weights", "chosen", "divergence alone, nats", "windows", "other types")
    return table(header, [_group_row(group) for group in groups], numeric=(1, 2, 4, 5))


def _group_row(group: RecipeGroup) -> list[str]:
    chosen = next((option for option in group.options if option.ggml_type == group.chosen), None)
    others = [_option_words(option) for option in group.options if option is not chosen]
    return [
        markdown_name(group.name),
        str(len(group.tensors)),
        _bytes(group.weights),
        markdown_name(group.chosen) if group.chosen else "mixed",
        formats.nats_estimate(_option_estimate(chosen)) if chosen is not None else formats.MISSING,
        str(chosen.windows) if chosen is not None and chosen.windows else formats.MISSING,
        markdown_text("; ".join(others)) or formats.MISSING,
    ]


def _option_estimate(option: RecipeOption) -> Estimate | None:
    if option.kl_nats is None:
        return None
    return Estimate(value=option.kl_nats, low=option.kl_low, high=option.kl_high, level=0.95, method="", n=option.windows)


def _option_words(option: RecipeOption) -> str:
    if option.excluded is not None and option.kl_nats is None:
        return f"{option.ggml_type} no ({option.excluded.value.lower().replace('_', ' ')})"
    number = formats.nats(option.kl_nats)
    dropped = ", dominated" if option.excluded is not None else ""
    return f"{option.ggml_type} {number}{dropped}"


def _groups_note(manifest: RecipeManifest) -> str:
    reasons = {
        (option.excluded.value, option.detail)
        for group in manifest.groups
        for option in group.options
        if option.excluded is not None and option.detail
    }
    details = sorted({detail for _, detail in reasons})
    shown = [markdown_text(detail) for detail in details[:8]]
    if len(details) > len(shown):
        shown.append(f"... and {len(details) - len(shown)} more in the manifest")
    head = "Each divergence is of the whole model with this group alone at that type, everything else as in the reference."
    return "\n\n".join(part for part in (head, bullets(shown)) if part)


def _search_lines(manifest: RecipeManifest) -> list[str]:
    lines = [f"What groups cost: {_SCORE_WORDS.get(manifest.score_source, markdown_text(manifest.score_source))}."]
    if manifest.probes:
        saved = 1 - manifest.probe_windows / manifest.exhaustive_windows if manifest.exhaustive_windows else 0.0
        lines.append(
            f"{count(manifest.probes, 'probe')} read {count(manifest.probe_windows, 'window')} of "
            f"{markdown_name(manifest.probe_text)} in {format_seconds(manifest.probe_wall_seconds)}. Every option on all windows "
            f"would have read {manifest.exhaustive_windows:,}: leaving clear cases early saved {percent(max(0.0, saved))}."
        )
    if manifest.predicted_kl_nats is not None and manifest.measured_kl_nats is not None:
        error = formats.MISSING if manifest.prediction_error is None else f"{manifest.prediction_error:+.0%}".replace("%", " %")
        lines.append(
            f"The additive model (each group's divergence, summed) predicted {formats.nats(manifest.predicted_kl_nats)} nats on "
            f"the probe text; {formats.nats(manifest.measured_kl_nats)} were measured on the held-out text ({error})."
        )
    lines.append(f"All of it took {format_seconds(manifest.total_wall_seconds)}.")
    return lines


def _limits(manifest: RecipeManifest) -> list[str]:
    lines = [
        "One held-out text is one topic and one style: the intervals are about windows of texts like it, not about all language.",
        f"Measured with {markdown_text(manifest.engine)} on this machine's kernels; others round differently.",
        "Speed was not compared: at equal size, types differ in how fast a machine computes with them.",
        "The additive model ignores that errors of two groups may cancel or amplify each other; the held-out table does not.",
    ]
    if manifest.off_grid_seed is not None:
        lines.append(
            "The reference is not the model itself: half-step noise was added to take it off the source's grid. The recipe is "
            "right for weights like these, and the file is for measuring, not for use."
        )
    elif manifest.reference_scheme.startswith("dequantized"):
        lines.append(
            "The reference was itself quantized before, so types near the source's own look better than they are on true 16-bit "
            "weights; `--off-grid` measures that."
        )
    if manifest.tasks is None:
        lines.append("Divergence is not usefulness: no tasks were run.")
    return lines


def _commands(manifest: RecipeManifest) -> str:
    return "\n\n".join(
        [
            "With fewbits:",
            _fenced(manifest.command),
            "The same tensor types with llama.cpp's own tool, from the same float file (`tensor_types.txt` lies beside this):",
            _fenced(manifest.quantize_command),
        ]
    )


def _fenced(command: str) -> str:
    return f"```text\n{code_block_text(command)}\n```"


def _provenance(manifest: RecipeManifest) -> str:
    rows = [
        ("file", markdown_name(manifest.file)),
        ("sha256", f"`{manifest.file_sha256}`"),
        ("made from", f"{markdown_text(manifest.reference_scheme)}, sha256 `{manifest.recipe.source_sha256}`"),
        ("importance matrix", _digest(manifest.recipe.imatrix_sha256)),
        ("probe text", f"{markdown_name(manifest.probe_text)}, sha256 {_digest(manifest.probe_text_digest)}"),
        ("held-out text", f"{markdown_name(manifest.held_out_text)}, sha256 {_digest(manifest.held_out_text_digest)}"),
        ("imported scores", _digest(manifest.scores_sha256)),
        ("engine", f"{markdown_text(manifest.engine)} {markdown_text(manifest.engine_version)}"),
        ("seed", str(manifest.seed)),
    ]
    return table(("what", "value"), rows)


def _digest(value: str | None) -> str:
    return "none" if value is None else markdown_name(value)


def _bytes(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def render_recipe_text(manifest: RecipeManifest, folder: str) -> str:
    """Return the result for a terminal, plain text ending in a newline; `folder` holds the files."""
    rows = [_text_row(file) for file in manifest.held_out]
    header = ("file", "bytes", "bits", "divergence, nats", "less than stock by")
    lines = [f"{visible(manifest.model_id)}, {visible(manifest.budget.asked)}", "", *_columns([header, *rows]), ""]
    lines += [f"{visible(file.label)}: {visible(file.unavailable)}" for file in manifest.held_out if file.unavailable]
    lines += [f"The recipe is {_VERDICT_WORDS[manifest.verdict]} ({manifest.verdict.value}). {visible(manifest.why)}"]
    lines += [f"! {visible(warning)}" for warning in manifest.warnings]
    lines += [
        recommendation_words(manifest),
        "",
        f"file     {visible(folder)}/{visible(manifest.file)}",
        f"report   {visible(folder)}/{REPORT_NAME}",
        f"again    {visible(manifest.command)}",
    ]
    return "\n".join(lines) + "\n"


def _text_row(file: HeldOut) -> tuple[str, ...]:
    return (
        visible(file.label, 40),
        f"{file.bytes:,}" if file.bytes else formats.MISSING,
        formats.bits(file.bits_per_weight) if file.bytes else formats.MISSING,
        formats.nats_estimate(file.kl_nats),
        formats.percent_estimate(file.against_stock),
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the first column left and the others right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def render_dry_run_text(document: Mapping[str, Any]) -> str:
    """Return what a dry run found as plain text, ending in a newline."""
    lines = [f"{visible(str(document['model']))}: {len(document['groups'])} groups, {document['options']} options"]
    lines += [
        f"{visible(kind)} of the source lies on the grid of {', '.join(names)}: lossless by construction, no evidence about bits"
        for kind, names in document["source_grid_types"].items()
    ]
    for group in document["groups"]:
        excluded = ", ".join(f"{name} ({why.lower().replace('_', ' ')})" for name, why in group["excluded"].items())
        out = f"; not {excluded}" if excluded else ""
        lines.append(f"  {visible(group['group'], 40):<24} {group['weights']:>13,} weights  {' '.join(group['types'])}{out}")
    lines.append(f"smallest file: {document['smallest_file_bytes']:,} bytes")
    for budget in document["budgets"]:
        size = formats.MISSING if budget["bytes"] is None else f"{budget['bytes']:,} bytes"
        lines.append(f"{visible(budget['asked'])}: {size}, stock file {budget['stock'] or formats.MISSING}")
    lines += [
        f"probes: at most {document['probes_at_most']:,} that read {document['probe_windows_at_most']:,} windows of "
        f"{visible(document['probe_text'])}; clear cases stop early",
        f"judged on {visible(document['held_out_text'])}; tasks: {visible(document['tasks'])}",
        f"results would go to {visible(document['out_dir'])}",
    ]
    return "\n".join(lines) + "\n"
