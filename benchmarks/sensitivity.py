"""Sensitivity of a real model's layers: how long it takes, and how well AutoQuant's score agrees with measured ablation."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.result import MODEL, Result, judged, notice
from fewbits.api.agreement import measure_agreement
from fewbits.api.agreement_request import AgreementRequest
from fewbits.api.sensitivity import run_sensitivity
from fewbits.core.errors import PrerequisiteError
from fewbits.quantizers.llamacpp.models import fetch_model
from fewbits.records.quant_formats import find_quant_format
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    DatasetSettings,
    GranularitySettings,
    ModelSettings,
    OutputSettings,
    PairSettings,
    RankAgreement,
    SensitivityManifest,
    SensitivitySpec,
)
from fewbits.store.artifacts import ArtifactCache
from fewbits.workloads.text.evaluation import CALIBRATION_TEXT, open_evaluation_text

PAIRS = {
    "wint4_afp16": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "wint8_afp16": "INT8_WEIGHT_ONLY_CFG",
    "wfp8_afp8": "FP8_DEFAULT_CFG",
    "wint8_aint8": "INT8_DEFAULT_CFG",
}
CHECKED = ("wint4_afp16", "wint8_aint8")
"""Pairs whose ranking is checked against ablation."""
_SAMPLES = 16
_LEAST_AGREEMENT = 0.7


def measure() -> list[Result]:
    """Score the packaged model's 120 groups for each pair, then quantize each group alone and read held-out text."""
    try:
        import modelopt  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise PrerequisiteError("no PyTorch with ModelOpt", "pip install 'fewbits[sensitivity]'") from error
    model = fetch_model(MODEL, ArtifactCache(), notice)
    results = []
    with tempfile.TemporaryDirectory(prefix="fewbits-bench-") as name:
        folder = Path(name)
        captions = _captions(folder)
        for pair in PAIRS:
            notice(f"  {pair} ...")
            manifest = run_sensitivity(_spec(pair, model, captions), folder / pair, "", notice)
            results.append(_scored(pair, manifest))
            if pair in CHECKED:
                notice(f"  {pair}: ablation ...")
                results.append(_agreement(pair, folder))
    return results


def _captions(folder: Path) -> Path:
    """Short lines of the text's calibration part: benchmarks must not need a data set."""
    opened = open_evaluation_text(CALIBRATION_TEXT)
    lines = [line.strip() for line in (opened[1] if opened else "").splitlines()]
    path = folder / "calibration.txt"
    path.write_text("\n".join([line for line in lines if len(line.split()) >= 8][:_SAMPLES]) + "\n", encoding="utf-8")
    return path


def _spec(pair: str, model: Path, captions: Path) -> SensitivitySpec:
    fmt = find_quant_format(PAIRS[pair], "pair")
    return SensitivitySpec(
        model=ModelSettings(name=MODEL, path=str(model)),
        dataset=DatasetSettings(
            name="python-topics", size="small", captions_path=str(captions), size_to_max_samples={"small": _SAMPLES}
        ),
        quant_pair=PairSettings(
            name=pair, weight=fmt.weight, activation=fmt.activation, format_name=fmt.name, experimental=fmt.experimental
        ),
        quant_granularity=GranularitySettings(),
        autoquant=AutoQuantSettings(effective_bits=8.25, verbose=False),
        output_layout=OutputSettings(),
    )


def _scored(pair: str, manifest: SensitivityManifest) -> Result:
    total = sum(group.importance for group in manifest.layer_sensitivity.values())
    rss = (manifest.peak_memory_bytes.get("rss") or 0) / 2**30
    worst = max(manifest.layer_sensitivity, key=lambda name: manifest.layer_sensitivity[name].importance)
    note = (
        f"{len(manifest.layer_sensitivity)} groups, {_SAMPLES} samples, total {total:.4g}, most sensitive {worst}, {rss:.1f} GiB"
    )
    return judged(f"seconds to score {pair}", manifest.timings_seconds["total"], 180.0, "s", note)


def _agreement(pair: str, folder: Path) -> Result:
    found = measure_agreement(AgreementRequest(out=folder / f"{pair}.json", manifest=folder / pair, samples=_SAMPLES), notice)
    kl, ceiling = found.against_kl, found.noise_ceiling
    noise = f"noise allows {ceiling.value:.3f}" if ceiling else "no noise ceiling"
    value = kl.spearman.value if kl.spearman else 0.0
    note = (
        f"KL: {_words(kl)}; loss change: {_words(found.against_loss)}; {noise}; {found.samples} held-out samples, "
        f"{found.wall_seconds:.0f} s"
    )
    return judged(f"rank correlation of {pair}'s score with measured KL", value, _LEAST_AGREEMENT, "", note, at_least=True)


def _words(agreement: RankAgreement) -> str:
    found, top = agreement.spearman, agreement.top_k_overlap
    if found is None:
        return agreement.reason
    low, high = found.low, found.high
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    shared = f", top {agreement.top_k} shared {100 * top.value:.0f} %" if top else ""
    return f"{found.value:.3f}{interval}{shared}"
