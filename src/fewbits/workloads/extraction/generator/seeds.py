"""Seeds: one number per page, and independent streams below it."""

from __future__ import annotations

import hashlib
import random

VERSION = "fewbits.lab_pages.v1"
"""Part of every seed: raised whenever the same seed would give another page."""

_SEED_BITS = 53
"""What a JSON number holds exactly in every reader."""


def page_seed(split: str, seed: int, level: str, index: int) -> int:
    """Return the seed (0 .. 2**53 - 1) of page `index` (0-based within its level).

    The first 53 bits of the sha256 of version, split, base seed, level and index, one a line. `split` is what the page is for
    (`samples`, `tuning`, `calibration`, `test`): pages of different splits are drawn independently, whatever their base seed.
    """
    return _number(VERSION, split, str(seed), level, str(index))


def stream(seed: int, purpose: str) -> random.Random:
    """Return a generator for one purpose of a page (`content`, `layout`, `degrade`), independent of the others."""
    return random.Random(_number(VERSION, str(seed), purpose))  # noqa: S311 - pages, not secrets


def _number(*parts: str) -> int:
    """Return 53 bits of the parts' digest."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)
