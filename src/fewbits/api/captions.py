"""Caption files for calibration: one per size, each a prefix of the next, from captions of training images only."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fewbits.core.codec import decode
from fewbits.core.errors import SpecError, StoreError
from fewbits.core.files import atomic_write, safe_name
from fewbits.records.base import OpenRecord
from fewbits.spec.captions import read_captions
from fewbits.spec.values import shown

SIZES = {"small": 16, "medium": 128, "large": 512}
"""Captions per size; the same numbers as in conf/dataset."""
SEED = 42
_HELD_OUT = re.compile(r"(?<![a-z])(val|validation|test)(?![a-z])")
"""`captions_val2017.json`, `.../val2017/000000000139.jpg`; not `latest`, not `value`."""


class _Annotation(OpenRecord, frozen=True, kw_only=True):
    image_id: int
    id: int
    caption: str


class _Image(OpenRecord, frozen=True, kw_only=True):
    coco_url: str = ""


class _CocoCaptions(OpenRecord, frozen=True, kw_only=True):
    """The part of COCO's `captions_train2017.json` that is needed."""

    annotations: tuple[_Annotation, ...]
    images: tuple[_Image, ...] = ()


def write_caption_files(
    source: Path, folder: Path, *, sizes: Mapping[str, int] = SIZES, seed: int = SEED, prefix: str = "coco2017_captions"
) -> dict[str, int]:
    """Write `<prefix>_<size>.txt` for every size into `folder`; returns how many captions each holds.

    `source` is a text file with one caption a line, which keeps its order, or COCO's captions JSON, which is shuffled with
    `seed`. A source with fewer captions than a size asks for gives all it has. The same source and seed give the same bytes.
    Raises `SpecError` (a source of validation or test images: calibration must not see them; nothing to read) and `StoreError`.
    """
    _refuse_held_out(source.name, source.name)
    for size in sizes:
        if safe_name(size) != size:
            raise SpecError.single("sizes", f"{size!r} cannot be part of a file name", "letters, digits, '_' and '-'")
    lines = _from_coco(source, seed) if source.suffix == ".json" else read_captions(source, None)
    counts = {}
    for size, cap in sizes.items():
        chosen = lines[:cap]
        atomic_write(folder / f"{prefix}_{size}.txt", "".join(f"{line}\n" for line in chosen).encode())
        counts[size] = len(chosen)
    return counts


def _refuse_held_out(text: str, what: str) -> None:
    if found := _HELD_OUT.search(text.lower()):
        hint = "calibrate on captions of the train images, evaluate on the others"
        raise SpecError.single("source", f"{what} is of the {found[1]!r} part", hint)


def _from_coco(source: Path, seed: int) -> tuple[str, ...]:
    try:
        document = decode(source.read_bytes(), _CocoCaptions, str(source))
    except OSError as error:
        raise SpecError.single("source", f"cannot read {source}: {error.strerror or error}", "check the path") from error
    except (StoreError, msgspec.MsgspecError) as error:
        raise SpecError.single("source", f"not COCO captions: {error}", "give captions_train2017.json, or a text file") from error
    for image in document.images:
        _refuse_held_out(image.coco_url, f"{source.name} has the image {shown(image.coco_url)}, which")
    ordered = sorted(document.annotations, key=lambda item: (item.image_id, item.id))
    random.Random(seed).shuffle(ordered)  # noqa: S311 - a reproducible order, not a secret
    # a caption is one line here, whatever its source wrote
    lines = tuple(text for item in ordered if (text := " ".join(item.caption.split())))
    if not lines:
        raise SpecError.single("source", f"{source} holds no captions", "give captions_train2017.json, or a text file")
    return lines
