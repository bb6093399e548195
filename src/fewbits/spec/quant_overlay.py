"""The granularity overlay: what may be laid over a format's own granularity, what it means, and how it is merged.

A rule of the configuration names quantizers by a pattern and carries their attributes; the overlay changes attributes of the
rules for weights and for activations. It changes how many values share a scale, never the number format itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.records.quant_formats import ROW_SCALE_BITS, TENSOR_SCALE_BITS, QuantFormat, ScaleShare, own_weight_bits
from fewbits.spec.values import nearest, shown

WEIGHTS = "*weight_quantizer"
ACTIVATIONS = "*input_quantizer"

_ATTRIBUTES = ("axis", "block_sizes", "type")
_WEIGHT_AXES = (None, 0, 1)
_LAST_AXIS = -1
_BLOCK_SCALE_BITS = 16.0

Overrides = Mapping[str, Mapping[str, Any]]


def check_overlay(fmt: QuantFormat, overrides: Overrides, where: str) -> list[Problem]:
    """Return every problem of an overlay over a format; `where` names the place it was written at. An empty overlay has none."""
    problems: list[Problem] = []
    for pattern, attributes in overrides.items():
        place = f"{where}.{pattern}"
        if pattern not in (WEIGHTS, ACTIVATIONS):
            problems.append(_unknown_pattern(pattern, place))
        elif not isinstance(cast("object", attributes), Mapping):
            problems.append(Problem(place, f"expected a table of attributes, got {shown(attributes)}", "write `axis: 0`"))
        elif not attributes:
            problems.append(Problem(place, "is empty and changes nothing", "leave it out"))
        else:
            problems += _check_attributes(fmt, pattern, attributes, place)
    return problems


def _unknown_pattern(pattern: str, place: str) -> Problem:
    if pattern == "default":
        hint = "quantizers that no rule names are off: use *weight_quantizer or *input_quantizer"
        return Problem(place, "`default` has no effect", hint)
    return Problem(place, "unsupported key", nearest(pattern, (WEIGHTS, ACTIVATIONS)) or f"use {WEIGHTS} or {ACTIVATIONS}")


def _check_attributes(fmt: QuantFormat, pattern: str, attributes: Mapping[str, Any], place: str) -> list[Problem]:
    problems = [_unknown_attribute(name, f"{place}.{name}") for name in attributes if name not in _ATTRIBUTES]
    if attributes.get("axis") is not None and attributes.get("block_sizes") is not None:
        problems.append(Problem(place, "`axis` and `block_sizes` exclude each other", "keep one of them"))
    kind = attributes.get("type", "static")
    if kind not in ("static", "dynamic"):
        problems.append(Problem(f"{place}.type", f"unknown type {shown(kind)}", "static or dynamic"))
    check = _check_weights if pattern == WEIGHTS else _check_activations
    return problems + check(fmt, attributes, place)


def _unknown_attribute(name: str, place: str) -> Problem:
    if name in ("num_bits", "enable", "scale_bits"):
        return Problem(place, f"`{name}` belongs to the format, not to its granularity", "choose another quant_pair")
    return Problem(place, f"unsupported attribute {name!r}", nearest(name, _ATTRIBUTES) or f"known: {', '.join(_ATTRIBUTES)}")


def _check_weights(fmt: QuantFormat, attributes: Mapping[str, Any], place: str) -> list[Problem]:
    problems = []
    if fmt.block_scaled_float and any(name in attributes for name in ("axis", "block_sizes", "type")):
        message = f"the weights of {fmt.name} are scaled in blocks of {fmt.block} by definition of the format"
        return [Problem(place, message, "leave the weights out of the overlay, or choose an int8, int4 or fp8 pair")]
    if attributes.get("axis") not in _WEIGHT_AXES or isinstance(attributes.get("axis"), bool):
        hint = "null (one scale), 0 (per output channel) or 1 (per input channel)"
        problems.append(Problem(f"{place}.axis", f"unsupported axis {shown(attributes['axis'])} of a weight", hint))
    if attributes.get("type") == "dynamic":
        problems.append(Problem(f"{place}.type", "weights do not change, so their scales are static", "leave `type` out"))
    if "block_sizes" in attributes:
        problems += _check_weight_blocks(attributes["block_sizes"], f"{place}.block_sizes")
    return problems


def _check_weight_blocks(blocks: object, place: str) -> list[Problem]:
    size, problems = _last_axis_block(blocks, place)
    if not problems and not (isinstance(size, int) and not isinstance(size, bool) and size >= 2):
        problems.append(Problem(place, f"unsupported block size {shown(size)}", "a whole number of at least 2, such as {-1: 64}"))
    return problems


def _check_activations(fmt: QuantFormat, attributes: Mapping[str, Any], place: str) -> list[Problem]:
    if fmt.activation == "fp16":
        return [Problem(place, f"{fmt.name} does not quantize activations, so this has no effect", "choose a pair that does")]
    problems = []
    axis = attributes.get("axis")
    if axis not in (None, _LAST_AXIS) or isinstance(axis, bool):
        hint = "null (one scale) or -1 (one scale per input channel): other axes change from batch to batch"
        problems.append(Problem(f"{place}.axis", f"unsupported axis {shown(axis)} of an activation", hint))
    if "block_sizes" in attributes:
        size, found = _last_axis_block(attributes["block_sizes"], f"{place}.block_sizes")
        problems += found
        if not found and size is not None:
            hint = "{-1: null} with `type: dynamic` gives one scale per token"
            problems.append(Problem(f"{place}.block_sizes", f"blocks of {shown(size)} are not supported on activations", hint))
        elif not found and attributes.get("type") != "dynamic":
            message = "one scale per token cannot be fixed beforehand: the number of tokens differs from batch to batch"
            problems.append(Problem(place, message, "add `type: dynamic`"))
    return problems


def _last_axis_block(blocks: object, place: str) -> tuple[object, list[Problem]]:
    """Return the block size along the last axis, and what is wrong with the table."""
    if not isinstance(blocks, Mapping):
        return None, [Problem(place, f"expected a table, got {shown(blocks)}", "write {-1: 64}, or use `axis` instead")]
    try:
        table = _block_keys(blocks)
    except ValueError as error:
        return None, [Problem(place, str(error), "write {-1: 64}")]
    if problems := [_block_part(name, place) for name in table if isinstance(name, str)]:
        return None, problems
    if set(table) != {_LAST_AXIS}:
        return None, [Problem(place, f"blocks run along the last axis (-1), got {shown(dict(table))}", "write {-1: 64}")]
    return table[_LAST_AXIS], []


def _block_part(name: str, place: str) -> Problem:
    if name == "type":
        return Problem(f"{place}.type", "is set by the format", "leave it out")
    return Problem(f"{place}.{name}", f"`{name}` belongs to the format, not to its granularity", "choose another quant_pair")


_BLOCK_WORDS = ("type", "scale_bits", "scale_block_sizes")


def _block_keys(blocks: Mapping[Any, Any]) -> dict[int | str, Any]:
    """Turn the keys of `block_sizes` into what ModelOpt takes: YAML and overrides write the axis -1 as text, too."""
    table: dict[int | str, Any] = {}
    for key, value in blocks.items():
        if key in _BLOCK_WORDS:
            table[key] = value
            continue
        try:
            table[int(key)] = value
        except (TypeError, ValueError):
            msg = f"{shown(key)} is no axis"
            raise ValueError(msg) from None
    return table


def overlaid_format(fmt: QuantFormat, overrides: Overrides) -> QuantFormat:
    """Return the format as the overlay leaves it: bits per weight and shared scales follow. The overlay must be checked."""
    weights = overrides.get(WEIGHTS, {})
    bits = own_weight_bits(fmt)
    if weights.get("block_sizes") is not None:
        block = int(_block_keys(weights["block_sizes"])[_LAST_AXIS])
        share, scale, bits = ScaleShare.BLOCK, _BLOCK_SCALE_BITS, bits + _BLOCK_SCALE_BITS / block
        return msgspec.structs.replace(fmt, scale_share=share, scale_bits=scale, block=block, weight_bits=bits)
    if "axis" not in weights:
        return fmt
    share, scale = (ScaleShare.TENSOR, TENSOR_SCALE_BITS) if weights["axis"] is None else (ScaleShare.CHANNEL, ROW_SCALE_BITS)
    return msgspec.structs.replace(fmt, scale_share=share, scale_bits=scale, block=None, weight_bits=bits)


def check_budget(fmt: QuantFormat, overrides: Overrides, effective_bits: float, where: str) -> list[Problem]:
    """Return the problem of a budget that even the quantized model exceeds, with the smallest that works; none if it fits."""
    minimum = overlaid_format(fmt, overrides).weight_bits
    if effective_bits >= minimum:
        return []
    message = f"{effective_bits:g} bits per weight cannot be reached: {fmt.name} itself needs {minimum:g}, block scales included"
    return [Problem(where, message, f"set it to {minimum:g} or more, up to 16")]


def merge_overlay(quant_cfg: Sequence[Mapping[str, Any]], overrides: Overrides) -> list[dict[str, Any]]:
    """Return a copy of ModelOpt's list of rules with the overlay merged in; the base is never changed.

    A rule is `{"quantizer_name": pattern, "cfg": attributes, "enable": bool}`; the overlay goes into every rule whose pattern is
    the overlay's key (into each part of a rule with several quantizers). `axis` drops the base's `block_sizes`; `block_sizes` is
    merged key by key and sets `axis` aside. Raises `SpecError` when no enabled rule has that pattern.
    """
    merged = [copy.deepcopy(dict(rule)) for rule in quant_cfg]
    for pattern, attributes in overrides.items():
        rules = [rule for rule in merged if rule.get("quantizer_name") == pattern and rule.get("cfg")]
        if not rules:
            raise SpecError.single(
                f"quant_granularity.{pattern}", "the format has no such quantizer", "choose another quant_pair"
            )
        for rule in rules:
            parts = rule["cfg"]
            rule["cfg"] = (
                [_overlay(part, attributes) for part in parts] if isinstance(parts, list) else _overlay(parts, attributes)
            )
    return merged


def _overlay(base: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in attributes.items():
        if name == "block_sizes" and value is not None:
            own = dict(base.get("block_sizes") or {})
            result["block_sizes"] = own | _block_keys(value)
            result.pop("axis", None)
        elif name == "axis":
            result["axis"] = value
            result.pop("block_sizes", None)
        else:
            result[name] = copy.deepcopy(value)
    return result
