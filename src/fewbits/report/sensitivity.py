"""A sensitivity run as Markdown. A pure function of the manifest; every name and value in it is foreign and escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fewbits.analysis.sensitivity import Total, sample_cap, sensitivity_report, totals_by_depth, totals_by_kind
from fewbits.analysis.wording import count
from fewbits.core.codec import encode_pretty
from fewbits.records.sensitivity import (
    FLOAT_BITS,
    ExclusionReason,
    ReportRow,
    SensitivityManifest,
    SensitivityMethod,
    SensitivityReport,
)
from fewbits.report import formats
from fewbits.report.escape import code_block_text, markdown_name, markdown_text
from fewbits.report.sensitivity_svg import DEPTH_PICTURE, RANKING_PICTURE, render_depth_svg, render_ranking_svg
from fewbits.report.tables import table, value_cell

MARKDOWN_NAME = "layer-sensitivity-report.md"
JSON_NAME = "layer-sensitivity-report.json"
_CONFIG_LINES = 2000
_QUANTIZERS_SHOWN = 60
_METHOD_WORDS = {
    SensitivityMethod.GRADIENT: (
        "A group's sensitivity is the mean over scored samples of the sum of squared products of output gradient and output "
        "error, with this group alone quantized: to second order, how much the loss moves."
    ),
    SensitivityMethod.KL_DIV: (
        "A group's sensitivity is the mean KL divergence of the next-token distribution from the unquantized model's, with this "
        "group alone quantized."
    ),
}
_READING = (
    "Higher is more sensitive, and only the order and the ratios within one method mean something: it is a prediction, and "
    "`fewbits sensitivity agree` measures how far it can be trusted."
)
_EXCLUDED_WORDS = {
    ExclusionReason.VISION_TOWER: "part of the vision tower",
    ExclusionReason.OUTPUT_HEAD: "the output head",
    ExclusionReason.COVERAGE_FRACTION: "left out by `coverage_fraction`",
    ExclusionReason.PATTERN: "named by `autoquant.disabled_layers`",
}


def render_sensitivity_documents(manifest: SensitivityManifest, manifest_name: str, manifest_sha256: str) -> dict[str, str]:
    """Return every report of a finished run: file name -> text. The same manifest gives the same bytes.

    Raises `ValueError` for a run that failed.
    """
    report = sensitivity_report(manifest, manifest_name, manifest_sha256)
    return {
        MARKDOWN_NAME: render_sensitivity_markdown(manifest, report),
        JSON_NAME: encode_pretty(report).decode(),
        DEPTH_PICTURE: render_depth_svg(report),
        RANKING_PICTURE: render_ranking_svg(report),
    }


def render_sensitivity_markdown(manifest: SensitivityManifest, report: SensitivityReport) -> str:
    """Return the report as Markdown, ending in a newline."""
    rows = report.layer_sensitivity
    blocks = [
        f"# Layer sensitivity: {markdown_name(manifest.scheme)}",
        _summary(manifest, rows, report.total_sensitivity),
        f"{_METHOD_WORDS[manifest.spec.autoquant.method]} {_READING}",
        *_warnings(manifest),
        f"![Sensitivity over depth]({DEPTH_PICTURE})",
        f"![The most sensitive groups]({RANKING_PICTURE})",
        "## Dataset",
        _dataset(manifest),
        "## Quantization",
        *_quantization(manifest),
        "## Excluded modules",
        *_excluded(manifest),
        "## Sensitivity",
        _rows(rows),
        "## Totals by kind",
        _totals(("kind", "groups", "sensitivity", "share"), totals_by_kind(rows)),
        "## Totals by layer",
        _totals(("place", "groups", "sensitivity", "share"), totals_by_depth(rows)),
        "## Provenance",
        *_provenance(manifest, report),
        "## Composed configuration",
        _config(manifest),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _summary(manifest: SensitivityManifest, rows: Sequence[ReportRow], total: float) -> str:
    spec = manifest.spec
    most = rows[0] if rows else None
    satisfied = {None: formats.MISSING, True: "yes", False: "**no**"}[manifest.budget_satisfied]
    pair = f"{markdown_name(spec.quant_pair.name)} ({markdown_name(spec.quant_pair.format_name)})"
    return _pairs(
        [
            ("scheme", markdown_name(manifest.scheme)),
            ("model", markdown_name(spec.model.name)),
            ("pair", pair + (", experimental" if spec.quant_pair.experimental else "")),
            ("granularity", markdown_name(spec.quant_granularity.name)),
            ("method", markdown_name(manifest.method)),
            ("requested bits per weight", f"{manifest.requested_effective_bits:.4f} over the covered weights"),
            (
                "adjusted",
                f"{_bits(manifest.adjusted_effective_bits)} over all quantizable weights, excluded ones at {FLOAT_BITS:g} bits",
            ),
            ("selected", f"{_bits(manifest.selected_effective_bits)} over the covered weights, block scales included"),
            ("budget satisfied", satisfied),
            ("score of the selection", _score(manifest.selected_score)),
            ("total sensitivity", f"{_score(total)} over {count(len(rows), 'group')}"),
            ("most sensitive", markdown_name(most.layer) if most is not None else formats.MISSING),
        ]
    )


def _warnings(manifest: SensitivityManifest) -> list[str]:
    return [f"> {markdown_text(warning, 600)}" for warning in manifest.warnings]


def _dataset(manifest: SensitivityManifest) -> str:
    data, settings, most = manifest.spec.dataset, manifest.spec.autoquant, sample_cap(manifest)
    return _pairs(
        [
            ("name", markdown_name(data.name)),
            ("size", markdown_name(data.size)),
            ("captions", markdown_name(data.captions_path)),
            ("samples used / at most", f"{manifest.calibration_samples:,} / {f'{most:,}' if most else formats.MISSING}"),
            ("scored samples", f"{manifest.scored_samples:,}"),
            ("longest sample", count(data.calib_seq_len, "token")),
            ("batch size", f"{settings.batch_size:,}"),
            ("padding", f"{formats.percent(manifest.padding_ratio)} of the token positions (masked out)"),
        ]
    )


def _quantization(manifest: SensitivityManifest) -> list[str]:
    """List what was really configured: one line per quantizer, then whatever else the quantizer says of itself."""
    quantization = manifest.quantization
    rest = [(markdown_text(key, 60), value_cell(value)) for key, value in quantization.items() if key != "effective_quantizers"]
    blocks = [_pairs(rest)] if rest else []
    effective = quantization.get("effective_quantizers")
    if not effective:
        return [*blocks, "The manifest names no quantizers."]
    lines = _quantizer_rows(effective)
    blocks += ["Quantizers as they were configured:", table(("quantizer", "settings"), lines[:_QUANTIZERS_SHOWN])]
    if len(lines) > _QUANTIZERS_SHOWN:
        blocks.append(f"{count(len(lines) - _QUANTIZERS_SHOWN, 'further quantizer')}: see the manifest.")
    return blocks


def _quantizer_rows(effective: Any) -> list[tuple[str, str]]:
    if isinstance(effective, Mapping):
        return [(markdown_name(str(name)), value_cell(settings)) for name, settings in effective.items()]
    entries = effective if isinstance(effective, Sequence) and not isinstance(effective, str) else [effective]
    return [(str(index + 1), value_cell(entry)) for index, entry in enumerate(entries)]


def _excluded(manifest: SensitivityManifest) -> list[str]:
    if not manifest.excluded:
        return ["None: every linear and convolution layer has candidates."]
    by_reason: dict[ExclusionReason, list[int]] = defaultdict(list)
    for module in manifest.excluded:
        by_reason[module.reason].append(module.weights)
    summary = [
        (f"`{reason.value}`", _EXCLUDED_WORDS[reason], f"{len(weights):,}", f"{sum(weights):,}")
        for reason, weights in sorted(by_reason.items())
    ]
    full = [
        (markdown_name(module.name, 160), f"`{module.reason.value}`", markdown_text(module.detail, 160), f"{module.weights:,}")
        for module in sorted(manifest.excluded, key=lambda module: module.name)
    ]
    return [
        "These stay in floating point.",
        table(("reason", "meaning", "modules", "weights"), summary, numeric=(2, 3)),
        *_folded("All excluded modules", table(("module", "reason", "detail", "weights"), full, numeric=(3,))),
    ]


def _rows(rows: Sequence[ReportRow]) -> str:
    if not rows:
        return "No group was scored."
    lines = [
        (
            str(index),
            markdown_name(row.layer, 160),
            markdown_name(row.kind),
            formats.MISSING if row.depth is None else f"{row.depth}",
            f"{row.num_bits:.3f}",
            f"{row.activation_bits:g}",
            _score(row.sensitivity),
            formats.size(round(row.size_cost)),
            markdown_name(row.selected),
        )
        for index, row in enumerate(rows, start=1)
    ]
    header = ("rank", "group", "kind", "layer", "weight bits", "activation bits", "sensitivity", "size", "selected")
    return table(header, lines, numeric=(0, 3, 4, 5, 6, 7))


def _totals(header: Sequence[str], totals: Sequence[Total]) -> str:
    lines = [
        (
            markdown_name(total.name) if header[0] == "kind" else markdown_text(total.name),
            f"{total.groups:,}",
            _score(total.sensitivity),
            formats.percent(total.share),
        )
        for total in totals
    ]
    return table(header, lines, numeric=(1, 2, 3))


def _provenance(manifest: SensitivityManifest, report: SensitivityReport) -> list[str]:
    git = manifest.git
    commit = "no checkout" if git.get("commit") is None else markdown_name(str(git["commit"]))
    seconds = ", ".join(f"{key} {formats.seconds(value)}" for key, value in manifest.timings_seconds.items())
    memory = ", ".join(f"{key} {formats.size(value)}" for key, value in manifest.peak_memory_bytes.items())
    pairs = [
        ("manifest", f"{markdown_name(report.manifest)}, sha256 {markdown_name(report.manifest_sha256)}"),
        ("commit of fewbits", commit + (", with changes" if git.get("dirty") else "")),
        ("hardware", value_cell(manifest.hardware)),
        ("versions", value_cell(manifest.versions)),
        ("seeds", value_cell(manifest.seeds)),
        ("time", markdown_text(seconds) or formats.MISSING),
        ("peak memory", markdown_text(memory) or formats.MISSING),
    ]
    blocks = [_pairs(pairs)]
    if manifest.inputs:
        files = [(markdown_name(source.path, 160), markdown_name(source.sha256)) for source in manifest.inputs]
        blocks += ["Files that were read:", table(("file", "sha256"), files)]
    return blocks


def _config(manifest: SensitivityManifest) -> str:
    lines = str(manifest.run_config.get("composed_yaml", "")).splitlines()
    if not lines:
        return "The manifest holds none."
    shown = [" " * (len(line) - len(line.lstrip(" "))) + code_block_text(line) for line in lines[:_CONFIG_LINES]]
    if len(lines) > _CONFIG_LINES:
        shown.append(f"({count(len(lines) - _CONFIG_LINES, 'further line')} in the manifest)")
    return "\n".join(["```yaml", *shown, "```"])


def _folded(title: str, content: str) -> list[str]:
    """Return a block that readers open when they want it; the only HTML of a report, and without foreign text."""
    return [f"<details>\n<summary>{title}</summary>", content, "</details>"]


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return table(("", ""), pairs)


def _bits(value: float | None) -> str:
    return formats.MISSING if value is None else f"{value:.4f}"


def _score(value: float | None) -> str:
    """Format a score with four significant digits; scores span many powers of ten."""
    return formats.MISSING if value is None else f"{value:.3e}"
