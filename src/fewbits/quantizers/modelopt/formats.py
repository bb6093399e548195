"""From a format of ours and an overlay to the configuration that ModelOpt takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fewbits.core.errors import PrerequisiteError
from fewbits.records.quant_formats import QuantFormat
from fewbits.spec.quant_overlay import ACTIVATIONS, WEIGHTS, Overrides, merge_overlay, overlaid_format

_WEIGHT_PRESETS = {
    "int8": "INT8_DEFAULT_CFG",
    "int4": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "NVFP4": "W4A16_NVFP4_CFG",
    "MXFP4": "MXFP4_DEFAULT_CFG",
}
_ACTIVATION_PRESETS = {"int8": "INT8_DEFAULT_CFG", "fp8": "FP8_DEFAULT_CFG"}
_INT4_ACTIVATIONS = {"num_bits": 4, "axis": None}
"""No preset has them: the int8 preset's rule (one scale per tensor) with half the bits."""


def quantizer_config(fmt: QuantFormat, overrides: Overrides) -> dict[str, Any]:
    """Return ModelOpt's configuration for a format under a (checked) overlay; presets are copied, never changed.

    The recipe's `effective_bits` is set to our own cost of a weight, block scales included: ModelOpt's own estimate takes the
    smallest bits of any quantizer, so that 8-bit weights with 4-bit activations would count as 4 bits.
    """
    config = _base_config(fmt)
    config["quant_cfg"] = merge_overlay(config["quant_cfg"], overrides)
    config["effective_bits"] = overlaid_format(fmt, overrides).weight_bits
    return config


def _base_config(fmt: QuantFormat) -> dict[str, Any]:
    if fmt.builtin:
        return _preset(fmt.name)
    family = fmt.name.split("_", 1)[0]
    config = _preset(_WEIGHT_PRESETS.get(family) or _WEIGHT_PRESETS[fmt.weight])
    kept = [rule for rule in config["quant_cfg"] if rule.get("quantizer_name") != ACTIVATIONS]
    after = 1 + next(index for index, rule in enumerate(kept) if rule.get("quantizer_name") == WEIGHTS)
    config["quant_cfg"] = [*kept[:after], _activation_rule(fmt), *kept[after:]]
    return config


def _activation_rule(fmt: QuantFormat) -> dict[str, Any]:
    if fmt.activation == "fp16":
        return {"quantizer_name": ACTIVATIONS, "enable": False}
    if fmt.activation == "int4":
        return {"quantizer_name": ACTIVATIONS, "cfg": dict(_INT4_ACTIVATIONS)}
    rules = _preset(_ACTIVATION_PRESETS[fmt.activation])["quant_cfg"]
    return next(dict(rule) for rule in rules if rule.get("quantizer_name") == ACTIVATIONS)


def _preset(name: str) -> dict[str, Any]:
    import modelopt.torch.quantization as mtq

    preset = getattr(mtq, name, None)
    if not isinstance(preset, dict):
        raise PrerequisiteError(f"this version of ModelOpt has no preset {name}", "Install nvidia-modelopt 0.47 or later.")
    return copy.deepcopy(preset)


def effective_quantizers(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a configuration does to weights and to activations: `enable`, `num_bits`, `axis`, `block_sizes`, `type`.

    `num_bits` is a number for integers and `E4M3`, `E2M1` for floats; `block_sizes` has text keys, as JSON wants.
    """
    result: dict[str, dict[str, Any]] = {}
    for pattern in (WEIGHTS, ACTIVATIONS):
        rules = [rule for rule in config["quant_cfg"] if rule.get("quantizer_name") == pattern]
        cfg = rules[-1].get("cfg") if rules else None
        if cfg is None or not rules[-1].get("enable", True):
            result[pattern] = {"enable": False}
            continue
        blocks = cfg.get("block_sizes")
        result[pattern] = {
            "enable": True,
            "num_bits": _bits_word(cfg["num_bits"]),
            "axis": cfg.get("axis"),
            "block_sizes": None if blocks is None else {str(key): _bits_word(value) for key, value in blocks.items()},
            "type": cfg.get("type", "static"),
        }
    return result


def _bits_word(bits: Any) -> Any:
    return f"E{bits[0]}M{bits[1]}" if isinstance(bits, tuple | list) else bits
