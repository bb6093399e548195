"""A recipe as a picture: layers downwards, kinds of tensors across, each field coloured by its bits and named by its type."""

from __future__ import annotations

from collections.abc import Sequence

from fewbits.records.recipe import RecipeGroup, RecipeManifest
from fewbits.report.drawing import INK, QUIET, svg_document, text
from fewbits.report.escape import xml_text
from fewbits.report.formats import bits, nats

KIND_ORDER = ("attn_q", "attn_k", "attn_v", "attn_output", "attn_qkv", "ffn_gate", "ffn_up", "ffn_down")
"""Order in which a layer's tensors are read when it is computed; others follow by name."""
_LEFT, _TOP, _COLUMN, _ROW, _BAR = 64, 96, 92, 24, 30
_TITLE_LIMIT, _NAME_LIMIT = 60, 14
_LINE_LIMIT = 110
_MIN_WIDTH = 640
# Lightness falls evenly with the bits, so the order survives grey print and every colour vision
_LIGHT, _DARK = (0xF1, 0xF6, 0xFB), (0x08, 0x3A, 0x6B)
_FEW_BITS, _MANY_BITS = 2.0, 8.5
_LEGEND_BITS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.5)
_MIXED = "#dddddd"
_SHOW_NATS_FROM = 2 * _ROW
"""Height from which a field has room for a second line."""


def render_layers_svg(manifest: RecipeManifest) -> str:
    """Return the picture of a recipe as an SVG document. Names are escaped."""
    layered = [group for group in manifest.groups if group.first_layer is not None and group.last_layer is not None]
    single = [group for group in manifest.groups if group not in layered]
    kinds = _kinds(layered)
    width = max(_MIN_WIDTH, _LEFT + _COLUMN * len(kinds) + 20)
    top = _TOP + _BAR * len(single) + (22 if layered else 0)
    layers = 1 + max((group.last_layer or 0 for group in layered), default=-1)
    height = top + _ROW * layers + 64
    parts = _heading(manifest)
    for place, group in enumerate(single):
        parts += _field(group, (_LEFT, _TOP + _BAR * place, width - _LEFT - 20, _BAR), group.kind)
    parts += [
        text(_LEFT + _COLUMN * (place + 0.5), top - 7, xml_text(kind, _NAME_LIMIT), anchor="middle", size_px=12)
        for place, kind in enumerate(kinds)
    ]
    parts += [
        text(_LEFT - 8, top + _ROW * layer + 16, str(layer), anchor="end", size_px=11, fill=QUIET) for layer in range(layers)
    ]
    if layers:
        parts.append(text(8, top - 7, "layer", size_px=12, fill=QUIET))
    for group in layered:
        first, last = int(group.first_layer or 0), int(group.last_layer or 0)
        box = (_LEFT + _COLUMN * kinds.index(group.kind), top + _ROW * first, _COLUMN, _ROW * (last - first + 1))
        parts += _field(group, box, "")
    parts += _legend(height - 34)
    return svg_document(width, height, f"Recipe of {xml_text(manifest.model_id, _TITLE_LIMIT)}, type of every tensor", parts)


def _kinds(groups: Sequence[RecipeGroup]) -> list[str]:
    places = {kind: place for place, kind in enumerate(KIND_ORDER)}
    return sorted({group.kind for group in groups}, key=lambda kind: (places.get(kind, len(places)), kind))


def _heading(manifest: RecipeManifest) -> list[str]:
    title = f"{xml_text(manifest.model_id, _TITLE_LIMIT)}: {bits(manifest.bits_per_weight)} bits per weight"
    line = f"{manifest.budget.asked}; darker is more bits; small numbers: divergence of this field alone, nats per token"
    return [
        text(_LEFT, 32, title, size_px=17, weight="600"),
        text(_LEFT, 52, xml_text(line, _LINE_LIMIT), size_px=12, fill=QUIET),
    ]


def _field(group: RecipeGroup, box: tuple[float, float, float, float], label: str) -> list[str]:
    """Draw one group as a field with its type; `label` names groups that stand outside the grid."""
    x, y, width, height = box
    option = next((one for one in group.options if one.ggml_type == group.chosen), None)
    density = 8 * option.bytes / group.weights if option is not None and group.weights else None
    fill = _MIXED if density is None else _colour(density)
    ink = "#ffffff" if density is not None and _shade(density) > 0.6 else INK
    words = xml_text(" ".join(word for word in (label, group.chosen or "mixed") if word), 40)
    centre = x + width / 2
    divergence = None if option is None else option.kl_nats
    two_lines = divergence is not None and height >= _SHOW_NATS_FROM
    middle = y + height / 2 + (-3 if two_lines else 4)
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" stroke="#ffffff" '
        'stroke-width="2"/>',
        text(centre, middle, words, anchor="middle", size_px=12, weight="600", fill=ink),
    ]
    if two_lines:
        parts.append(text(centre, middle + 15, nats(divergence), anchor="middle", size_px=10, fill=ink))
    return parts


def _shade(density: float) -> float:
    return min(1.0, max(0.0, (density - _FEW_BITS) / (_MANY_BITS - _FEW_BITS)))


def _colour(density: float) -> str:
    share = _shade(density)
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(_LIGHT, _DARK, strict=True))


def _legend(y: float) -> list[str]:
    parts = [text(_LEFT, y + 13, "bits per weight", size_px=12, fill=QUIET)]
    for place, value in enumerate(_LEGEND_BITS):
        x = _LEFT + 104 + place * 62
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="20" height="18" fill="{_colour(value)}" stroke="#b0b7bf"/>')
        parts.append(text(x + 26, y + 13, f"{value:g}", size_px=12))
    return parts
