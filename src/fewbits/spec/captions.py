"""Calibration text on disk: one caption a line, UTF-8, empty lines skipped."""

from __future__ import annotations

from pathlib import Path

from fewbits.core.errors import SpecError

PLACE = "dataset.captions_path"
_HINT = (
    "give a text file with one caption per line; scripts/qwen/make_caption_files.py makes one per size from COCO captions of the "
    "train images"
)


def read_captions(path: Path, limit: int | None) -> tuple[str, ...]:
    """Read the first `limit` non-empty lines of a text file (`None`: all). Raises `SpecError`: absent, empty, not UTF-8."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if text := line.strip().removeprefix("\ufeff").strip():
                    lines.append(text)
                    if len(lines) == limit:
                        break
    except UnicodeDecodeError as error:
        raise SpecError.single(PLACE, f"{path} is not UTF-8 text ({error.reason})", "convert it to UTF-8") from error
    except OSError as error:
        raise SpecError.single(PLACE, f"cannot read {path}: {error.strerror or error}", _HINT) from error
    if not lines:
        raise SpecError.single(PLACE, f"{path} holds no text", _HINT)
    return tuple(lines)
