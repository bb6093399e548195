"""The second half of the report: how it was measured, how stable it was, how to do it again, and what the words mean."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec

from fewbits.records.plan import PolicyName, SelectionPolicy
from fewbits.records.summary import CanaryBlock, ImportedFrom, SweepSummary
from fewbits.report import formats
from fewbits.report.detection import has_detection
from fewbits.report.escape import markdown_name, markdown_text
from fewbits.report.evidence import has_evidence
from fewbits.report.extraction import has_extraction
from fewbits.report.tables import bullets, plain_value, table, value_cell
from fewbits.report.verdicts import clean_words, reason_words, rerun_words

Command = tuple[str, list[tuple[str, Any]], str]
"""A command, its main flags, and what these leave out."""
_DIGEST_DIGITS = 16

_LEGEND = (
    ("adherence", "share of the tasks' own machine checks that the answers meet, 0 to 1; a failed trial counts 0"),
    ("difference", "adherence minus the reference's, paired by task"),
    ("reference", "the variant that the others are compared with; by default the one with the most bits per weight"),
    ("bits per weight", "8 x bytes of all tensors / number of weights, read from the file; the tag is only a name"),
)
_PICK_LEGEND = {
    PolicyName.THRESHOLD: (
        ("minimum viable", "the fewest bits per weight within both limits"),
        ("best value", "the best adherence for its latency within both limits"),
    ),
    PolicyName.THREE_ZONE: (
        ("minimum viable", "the fewest bits per weight among the reference and the variants that are proven as good"),
        ("best value", "the lowest latency among them"),
    ),
}
_MARK_LEGEND = (
    ("frontier", "variants that no other valid variant beats in one objective without losing in another"),
    ("dominated", "another variant is at least as good in every objective and better in one"),
    ("median latency, p95", "wall-clock seconds of a whole trial: half, or 95 %, of the clean trials were at most this long"),
    ("tokens/s", "generated tokens per second of the engine's own decode time"),
    ("peak memory", "largest resident set of the process that holds the weights"),
    ("clean, polluted", "whether foreign load, throttling or missing telemetry touched a trial"),
    ("canary", "one cell repeated before the matrix, to see whether this machine gives the same answer twice"),
    ("lossless by construction", "the variant has the source's own number format, so equality says nothing about the bits"),
    ("—", "not measured; the reason is given where one was recorded"),
)
_EVIDENCE_LEGEND = (
    ("EQUIVALENT", "two one-sided tests put the difference to the reference inside the margin"),
    ("WORSE", "a loss on the same items is proven, or the divergence is proven to lie above the harm line"),
    ("BETTER", "a gain on the same items is proven"),
    ("UNRESOLVED", "not decidable yet; what is missing stands beside it"),
    ("margin", "the largest difference of adherence that still counts as the same; fixed before any result"),
    ("refuted", "the opposite of what is claimed has a p-value under its level; levels share the session's error (Holm)"),
    ("KL divergence", "nats per token by which the variant's next-token distribution misses the reference's; 0 is no difference"),
    ("floor", "the divergence of the reference from itself, computed another way: the instrument sees nothing below it"),
    ("harm line", "a mean divergence that no useful variant reaches"),
    ("perplexity ratio", "perplexity of the variant / of the reference on the same tokens"),
    ("ratio to the reference", "variant / reference for the same item in the same block, median over pairs"),
    ("repeat", "the same request with the same seed, asked again; text, finish reason, token count and score are compared"),
)
"""Words of the sections in `fewbits.report.evidence`."""
_DETECTION_LEGEND = (
    ("bits per weight", "bits that the weights' ranges of integers need, averaged over all weights; a file may store them wider"),
    ("mAP50-95", "mean over classes and over overlaps 0.50 to 0.95 of the average precision, as COCO's evaluation computes it"),
    ("mAP50, mAP75", "the same at one overlap (intersection over union) only"),
    ("collapsed", "mAP50-95 below half of the reference's"),
)
_DETECTION_METHOD = (
    "**What adherence is here:** the R-precision of each image. Of the R best detections (R: the objects labelled in the image), "
    "the share that match an object of their class, averaged over overlaps 0.50 to 0.95; an image without objects asks for no "
    "loud detection. It is a number per image, so verdicts, frontier and recommendation rest on it. COCO's mAP is no mean over "
    "images and decides nothing; it stands in *Detection*, with its own intervals."
)

_EXTRACTION_LEGEND = (
    ("adherence", "mean over pages of the page's field F1, 0 to 1; a page without a usable report counts 0"),
    (
        "field F1",
        "2 tp / (2 tp + fp + fn) over names, values, units and reference ranges of all tests; a wrong field is fp and fn",
    ),
    ("value accuracy", "of the tests that were found on a page, the share whose value is as printed"),
    ("critical sensitivity", "of the results that lie beyond a critical limit, the share that was reported as such"),
    ("pages that differ", "pages on which the variant and the reference were not right and wrong alike"),
    ("success rate", "share of the runs that ended with a report that holds at least one test"),
    ("self-consistency", "how far runs with other sampling seeds agree; it says nothing about what is right"),
)
_EXTRACTION_METHOD = (
    "**What adherence is here:** the field F1 of each page, over the names, values, units and reference ranges of its tests; of "
    "a page without labels, whether a report with at least one test was found. It is a number per page, so verdicts, frontier "
    "and recommendation rest on it. In *Extraction* the counts of all pages are added up before they are divided, so a page with "
    "many tests weighs more there, and the two numbers may differ a little. Rates are of the first run of each page, times of "
    "all measured runs. Intervals are about pages like these: how far the numbers would move with other pages from the same "
    "source. **Pages from the generator are not patients' pages:** their layouts, laboratories and damages are those that the "
    "generator knows, so what is read well there may be read worse elsewhere; label pages of your own before you rely on it."
)


def method_section(summary: SweepSummary) -> list[str]:
    """Return the blocks of `How it was measured`."""
    engines = dict.fromkeys((session.engine, session.engine_version) for session in summary.sessions)
    engine_words = ", ".join(f"{markdown_text(name)} {markdown_text(version)}".rstrip() for name, version in engines)
    facts = [
        ("machine", value_cell(summary.hardware_fingerprint)),
        ("engine", engine_words or formats.MISSING),
        ("lane, memory profile", markdown_text(f"{summary.execution_lane}, {summary.vram_profile}")),
        *((markdown_text(key.replace("_", " ")), value_cell(value)) for key, value in summary.matrix.items()),
        ("trials", f"{summary.trials_counted} of {summary.trials_expected} planned"),
        ("first and last trial", markdown_text(_span(summary))),
        ("quality policy", markdown_name(summary.quality_policy.name)),
        ("selection policy", _selection_policy(summary.selection_policy)),
        *_own_limits(summary),
    ]
    return [
        "## How it was measured",
        table(("", "value"), facts),
        *([_DETECTION_METHOD] if has_detection(summary) else []),
        *([_EXTRACTION_METHOD] if has_extraction(summary) else []),
        # of an imported summary the matrix shows what was recorded; the rest of the controls are defaults that nobody asked for
        *(["### Controls", _controls_table(summary)] if summary.provenance.imported_from is None else []),
        "### Canary",
        _canary(summary.canary),
    ]


def _selection_policy(policy: SelectionPolicy) -> str:
    name = markdown_name(policy.name)
    if policy.name is PolicyName.THRESHOLD:
        return name
    return (
        f"{name}: margin ±{formats.score(policy.equivalence_margin)}, error level {formats.percent(policy.error_level)} per "
        f"session and kind of verdict (the divergence test spends {formats.percent(policy.divergence_error_level)} of WORSE's), "
        f"harm line {formats.nats(policy.divergence_harm_nats)} nats, adherence floor {formats.score(policy.adherence_floor)}, "
        f"latency ceiling {formats.seconds(policy.latency_ceiling)}"
    )


def _own_limits(summary: SweepSummary) -> list[tuple[str, str]]:
    """Return a row for every model whose limits are not the sweep's: those that differ."""
    common = summary.selection_policy
    rows = []
    for session in summary.sessions:
        own = session.selection_policy
        if own is not None:
            pairs = [(name, getattr(own, name)) for name in own.__struct_fields__ if getattr(own, name) != getattr(common, name)]
            words = ", ".join(f"{name.replace('_', ' ')} {plain_value(value)}" for name, value in pairs)
            rows.append((f"limits of {markdown_name(session.model_id)} alone", markdown_text(words)))
    return rows


def _span(summary: SweepSummary) -> str:
    first, last = summary.provenance.first_trial_at, summary.provenance.last_trial_at
    return f"{first} to {last}" if first and last else formats.MISSING


def _controls_table(summary: SweepSummary) -> str:
    requested: dict[str, Any] = msgspec.to_builtins(summary.experimental_controls)
    effective = dict(summary.controls_effective)
    if "affinity" in effective:
        # The policy is what can be asked for, the cores are what can be read back: one row for both
        effective["affinity_policy"] = effective.pop("affinity")
    keys = list(dict.fromkeys([*requested, *effective]))
    rows = [
        [
            markdown_text(key.replace("_", " ")),
            value_cell(requested[key]) if key in requested else formats.MISSING,
            _effective_cell(effective.get(key), "cores " if key == "affinity_policy" else ""),
        ]
        for key in keys
    ]
    return table(("control", "requested", "effective, as read back"), rows)


def _effective_cell(values: Any, noun: str) -> str:
    """Return the distinct values that were seen, after `noun`; more than one means that the control was not held."""
    known = values if isinstance(values, list | tuple) else [values]
    if not known or known == [None]:
        return "not read back"
    text = markdown_text(" / ".join(noun + plain_value(value) for value in known), 160)
    return f"**changed during the run:** {text}" if len(known) > 1 else text


def _canary(canary: CanaryBlock) -> str:
    if not canary.enabled:
        return "Switched off: whether this machine repeats itself was not checked."
    verdict = {True: "**PASS**", False: "**FAIL**", None: "**not decided**"}[canary.passed]
    cell = ", ".join(markdown_name(name) for name in (canary.model_id, canary.quant_tag, canary.task_id) if name)
    first = " (the first is dropped)" if canary.drop_first_run else ""
    sentences = [
        f"{verdict}: {canary.runs_made} repeats of {cell or 'no cell'}, {canary.runs_requested} asked for, "
        f"{canary.polluted_retries} made again because of foreign load; "
        f"{canary.latency_sample_count_used} of {canary.latency_sample_count_raw} latency samples used{first}.",
        f"Latency variation {formats.percent(canary.latency_variation)} (limit "
        f"{formats.percent(canary.latency_variance_threshold)}), adherence variance "
        f"{plain_value(canary.adherence_variance)} (must be 0), missing telemetry "
        f"{formats.percent(canary.missing_telemetry_rate)} (limit {formats.percent(canary.max_missing_telemetry_rate)}), "
        f"same text {formats.percent(canary.same_output_rate)}.",
    ]
    sentences += [f"Failed: {markdown_text(reason_words(str(reason)))}." for reason in canary.failed_reasons]
    sentences += [f"What to do: {markdown_text(remedy)}" for remedy in canary.remedies]
    return bullets(sentences)


def stability_section(summary: SweepSummary) -> list[str]:
    """Return the blocks of run quality and the tracked rates."""
    quality, kpis = summary.run_quality, summary.stability_kpis
    reasons = ", ".join(f"{markdown_text(reason_words(code))} ({count})" for code, count in sorted(quality.reasons.items()))
    sentences = [
        f"{clean_words(quality)}, {quality.polluted} polluted" + (f": {reasons}." if reasons else "."),
    ]
    if rerun_words(quality):
        sentences.append(rerun_words(quality))
    if quality.superseded_attempts:
        sentences.append(f"{quality.superseded_attempts} earlier attempts were replaced by a later one of the same cell.")
    rows = [
        ["same text on repeat (determinism)", formats.percent(kpis.determinism_rate)],
        ["missing telemetry", formats.percent(kpis.missing_telemetry_rate)],
        ["polluted runs", formats.percent(kpis.polluted_run_rate)],
        ["sessions with a usable variant", formats.percent(kpis.frontier_success_rate)],
        ["variants, sessions, weighted runs", f"{kpis.quant_rows}, {kpis.sessions}, {kpis.weighted_runs}"],
    ]
    return [
        "## Run quality",
        bullets(sentences),
        table(("KPI, always strict", "value"), rows, numeric=(1,)),
    ]


def reproduce_section(summary: SweepSummary) -> list[str]:
    """Return the blocks of `Do it again`."""
    provenance = summary.provenance
    if provenance.imported_from is not None:
        return _import_section(summary, provenance.imported_from)
    rows = [
        ["fewbits", markdown_text(provenance.fewbits_version)],
        ["commit", markdown_name(summary.commit_sha) if summary.commit_sha else "not recorded"],
        ["plan digest", f"{markdown_name(provenance.plan_digest[:_DIGEST_DIGITS])}"],
        ["journal digest", f"{markdown_name(provenance.journal_digest[:_DIGEST_DIGITS])}"],
        ["summary schema", markdown_name(summary.schema_version)],
    ]
    return ["## Do it again", table(("made with", "value"), rows), _command(summary)]


def _import_section(summary: SweepSummary, origin: ImportedFrom) -> list[str]:
    """Return the blocks of a summary that another tool measured: there is no plan and no journal to do it again from."""
    rows = [
        ["imported from schema", markdown_name(origin.schema_version)],
        ["sha256 of that file begins", markdown_name(origin.sha256[:_DIGEST_DIGITS])],
        ["its commit", markdown_name(summary.commit_sha) if summary.commit_sha else "not recorded"],
        ["converted by fewbits", markdown_text(summary.provenance.fewbits_version)],
        ["summary schema", markdown_name(summary.schema_version)],
    ]
    notes = bullets([markdown_text(note) for note in origin.notes])
    return ["## Where this comes from", table(("", "value"), rows), notes]


def _command(summary: SweepSummary) -> str:
    """Return the command in a block, or a sentence when a name holds characters that a shell or a page could misread."""
    command, flags, left_out = _extraction_flags(summary) if has_extraction(summary) else _sweep_flags(summary)
    words = [(flag, plain_value(value)) for flag, value in flags if value not in (None, "")]
    note = (
        f"These are the main flags only: {left_out} stand in `plan.json` beside the journal. `fewbits verify` rebuilds the "
        "summary from the journal."
    )
    unsafe = set("<>`&\\")
    if any(unsafe & set(text) or not text.isprintable() or not text.isascii() for _, text in words):
        return f"The names hold characters that do not survive a command line in a document; take them from the plan. {note}"
    lines = " \\\n  ".join([command, *(f"{flag} {shlex.quote(text)}" for flag, text in words)])
    return f"```sh\n{lines}\n```\n\n{note}"


def _sweep_flags(summary: SweepSummary) -> Command:
    """Return the command of a sweep over texts or detectors."""
    controls, policy = summary.experimental_controls, summary.selection_policy
    models = ",".join(session.model_id for session in summary.sessions)
    tags = ",".join(dict.fromkeys(row.quant_tag for session in summary.sessions for row in session.per_quant))
    bank = summary.matrix.get("task_bank")
    detects = has_detection(summary)
    what: list[tuple[str, Any]] = [("--model-id", models), ("--quant-tags", tags), ("--task-bank", bank)]
    if detects:
        split = str(bank).partition(":")[2]
        what = [("--weights", models), ("--schemes", tags), ("--coco", "DIR"), ("--split", split)]
    flags: list[tuple[str, Any]] = [
        *what,
        ("--runs", summary.matrix.get("runs_per_quant")),
        ("--seed", controls.seed),
        ("--threads", controls.threads),
        ("--affinity-policy", controls.affinity_policy),
        ("--warmup-steps", controls.warmup_steps),
        ("--selection-policy", None if detects else policy.name.value),
        (
            ("--adherence-threshold", policy.adherence_threshold)
            if policy.name is PolicyName.THRESHOLD
            else ("--equivalence-margin", policy.equivalence_margin)
        ),
        ("--latency-ceiling", policy.latency_ceiling),
        *(("--model-threshold", text) for text in _threshold_texts(summary)),
    ]
    left_out = "which tasks, the canary, sampling and context size"
    if detects:
        left_out = "the folder of the data set (DIR), which images were evaluated and calibrated on, and the image size"
    return ("fewbits detect sweep" if detects else "fewbits sweep"), flags, left_out


def _extraction_flags(summary: SweepSummary) -> Command:
    """Return the command of an extraction benchmark; the first engine is the reference."""
    controls, policy = summary.experimental_controls, summary.selection_policy
    tags = [
        tag for session in summary.sessions for tag in (session.baseline_quant, *(row.quant_tag for row in session.per_quant))
    ]
    flags: list[tuple[str, Any]] = [
        ("--input-dir", "DIR"),
        ("--engines", ",".join(dict.fromkeys(tags))),
        ("--repeats", summary.matrix.get("runs_per_quant")),
        ("--warmup-runs", controls.warmup_steps),
        ("--seed", controls.seed),
        ("--temperature", controls.temperature),
        ("--threads", controls.threads),
        ("--affinity-policy", controls.affinity_policy),
        ("--equivalence-margin", policy.equivalence_margin),
        ("--latency-ceiling", policy.latency_ceiling),
    ]
    return "fewbits extract bench", flags, "the folder of the pages (DIR), which pages, the device, the models and the canary"


def _threshold_texts(summary: SweepSummary) -> list[str]:
    """Return `MODEL:KEY=VALUE` for every limit of one model alone."""
    common = summary.selection_policy
    return [
        f"{session.model_id}:{name}={plain_value(getattr(session.selection_policy, name))}"
        for session in summary.sessions
        if session.selection_policy is not None
        for name in ("adherence_threshold", "adherence_floor", "latency_ceiling", "equivalence_margin")
        if getattr(session.selection_policy, name) != getattr(common, name)
    ]


def legend_section(summary: SweepSummary) -> list[str]:
    """Return the blocks that explain the terms that this report uses."""
    evidence = _EVIDENCE_LEGEND if has_evidence(summary) else ()
    detection = _DETECTION_LEGEND if has_detection(summary) else ()
    extraction = _EXTRACTION_LEGEND if has_extraction(summary) else ()
    # of a term that stands twice, the later meaning counts
    terms = dict([*_LEGEND, *_PICK_LEGEND[summary.selection_policy.name], *_MARK_LEGEND, *evidence, *detection, *extraction])
    return ["## The words", table(("term", "meaning"), [[f"**{term}**", meaning] for term, meaning in terms.items()])]
