"""Names and folders of sensitivity runs: what differs in a setting that changes the result never shares a folder. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from fewbits.core.codec import digest
from fewbits.core.files import safe_name
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    CoverageMode,
    DatasetSettings,
    ModelSettings,
    SensitivityMethod,
    SensitivitySpec,
)

PUBLISHED_DATASET = "vlm_coco2017_captions"
"""The data set that a published folder does not name: its runs carry the earlier, shorter names."""

_DIGEST_DIGITS = 8
_LONGEST_NAME = 200
"""File systems take 255 bytes."""
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_MARKS = ("data-", "max-", "method-", "bits-", "coverage-", "fraction-", "settings-")


def scheme_name(spec: SensitivitySpec) -> str:
    """Return the stem of the run's file names: `quant_pair.scheme_name`, or `<pair>_autoquant_lm`."""
    return spec.quant_pair.scheme_name or f"{spec.quant_pair.name}_autoquant_lm"


def manifest_name(scheme: str) -> str:
    """Return the file name of a scheme's manifest."""
    return f"{scheme}_quant_manifest.json"


def publish_folder(spec: SensitivitySpec) -> PurePosixPath:
    """Return the run's folder below `output_layout.root_dir`: `weight-<w>-act-<a>/<granularity>/<run>`.

    `quant_pair.publish_pair_dir` and `.publish_run_dir` replace the first and the last part.
    """
    pair = spec.quant_pair
    first = pair.publish_pair_dir or f"weight-{pair.weight}-act-{pair.activation}"
    return PurePosixPath(first) / spec.quant_granularity.name / (pair.publish_run_dir or run_name(spec))


def run_name(spec: SensitivitySpec) -> str:
    """Return `<model>_autoquant_<pair>_lm_<size>`, followed by every setting that is not the default.

    Two specs with different model names, pairs, sizes, sample caps, methods, budgets or coverage have different names. Further
    settings that change scores go in as a digest, and so do names that could be read in two ways.
    """
    pair, size = spec.quant_pair.name, spec.dataset.size
    words = [f"{spec.model.name}_autoquant_{pair}_lm_{size}", *_settings_in_words(spec)]
    others = _other_settings(spec)
    if others or not _reads_one_way(spec):
        everything = {"model": spec.model.name, "pair": pair, "size": size, "words": words[1:], "others": others}
        words.append(f"settings-{digest(everything)[:_DIGEST_DIGITS]}")
    name = "_".join(words)
    return name if len(name) <= _LONGEST_NAME and _SAFE.fullmatch(name) else safe_name(name)


def _settings_in_words(spec: SensitivitySpec) -> list[str]:
    words = []
    if spec.dataset.name != PUBLISHED_DATASET:
        words.append(f"data-{spec.dataset.name}")
    if spec.dataset.max_calib_samples is not None:
        words.append(f"max-{spec.dataset.max_calib_samples}")
    if spec.autoquant.method is not SensitivityMethod.GRADIENT:
        words.append(f"method-{spec.autoquant.method}")
    if spec.autoquant.effective_bits != _default(AutoQuantSettings, "effective_bits"):
        words.append(f"bits-{float(spec.autoquant.effective_bits)!r}")
    if spec.quant_pair.coverage_mode is not CoverageMode.LM_ONLY:
        words.append(f"coverage-{spec.quant_pair.coverage_mode}")
    if spec.quant_pair.coverage_fraction != 1:
        words.append(f"fraction-{float(spec.quant_pair.coverage_fraction)!r}")
    return words


def _other_settings(spec: SensitivitySpec) -> dict[str, Any]:
    """Settings that change the scores and are not in the words, as far as they differ from the records' defaults."""
    found: dict[str, Any] = {}
    for part, names in (
        (spec.autoquant, ("batch_size", "score_size", "disabled_layers", "include_output_head", "seed")),
        (spec.dataset, ("calib_seq_len",)),
        (spec.model, ("dtype",)),
    ):
        found |= {name: value for name in names if (value := getattr(part, name)) != _default(type(part), name)}
    return found


def _default(record: type[AutoQuantSettings | DatasetSettings | ModelSettings], name: str) -> Any:
    fields = record.__struct_fields__
    defaults = record.__struct_defaults__
    return defaults[fields.index(name) - (len(fields) - len(defaults))]


def _reads_one_way(spec: SensitivitySpec) -> bool:
    """Whether `<model>_autoquant_<pair>_lm_<size>_...` can be split back into its parts.

    The first `autoquant` ends the model and the last `lm` starts the size, so these words must not be in the model's name or in
    what follows; nor may a size or data set have a word that could be a setting.
    """
    tail = [*spec.dataset.size.split("_"), *spec.dataset.name.split("_")]
    return "autoquant" not in spec.model.name.split("_") and not any(word == "lm" or word.startswith(_MARKS) for word in tail)
