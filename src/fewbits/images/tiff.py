"""Pages of TIFF files: each page as a file of its own, so that one reader with one set of limits opens all of them.

Source of the layout: TIFF 6.0, section 2 (header, chain of image file directories); BigTIFF has the same with wider numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_NEW_SUBFILE_TYPE = 254
_REDUCED, _MASK = 0b001, 0b100
"""Bits of NewSubfileType: a smaller copy of another page, a transparency mask. Source: TIFF 6.0, section 8."""
_ENTRIES_LIMIT = 65535
_DIRECTORIES_LIMIT = 10_000
"""More pages than anybody scans into one file: the chain may lead anywhere."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where numbers stand: `order` of bytes, place of the first directory's offset, struct codes and sizes in bytes."""

    order: str
    first_at: int
    offset_code: str
    count_code: str
    entry_bytes: int
    value_at: int

    @property
    def offset_bytes(self) -> int:
        return struct.calcsize(self.offset_code)

    def number(self, code: str, data: bytes, at: int) -> int:
        """Read one number. Raises `struct.error` behind the end of the file."""
        if at > len(data):
            msg = "behind the end of the file"
            raise struct.error(msg)
        return int(struct.unpack_from(self.order + code, data, at)[0])


def _layout(data: bytes) -> _Layout:
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in {b"+\0", b"\0+"}:
        return _Layout(order, 8, "Q", "Q", entry_bytes=20, value_at=12)
    return _Layout(order, 4, "I", "H", entry_bytes=12, value_at=8)


def page_offsets(data: bytes) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return where each page's directory stands (previews and masks are no pages), and notes on what is damaged.

    Empty where not even the first directory can be followed: then a reader has to say what is wrong.
    """
    layout = _layout(data)
    found: list[int] = []
    seen: set[int] = set()
    try:
        offset = layout.number(layout.offset_code, data, layout.first_at)
        while offset:
            if offset in seen or len(seen) >= _DIRECTORIES_LIMIT:
                return tuple(found), ("the list of its pages runs in a circle: read up to there",)
            seen.add(offset)
            kind, following = _directory(layout, data, offset)
            if not kind & (_REDUCED | _MASK):
                found.append(offset)
            offset = layout.number(layout.offset_code, data, following)
    except struct.error:
        return tuple(found), ("the pages after the last one are damaged or cut off",) if found else ()
    return tuple(found), ()


def _directory(layout: _Layout, data: bytes, offset: int) -> tuple[int, int]:
    """Return the kind of page (NewSubfileType) of the directory at `offset`, and where the next directory's offset stands."""
    count = layout.number(layout.count_code, data, offset)
    if count > _ENTRIES_LIMIT:
        msg = "more entries than a directory can have"
        raise struct.error(msg)
    entries = offset + struct.calcsize(layout.count_code)
    following = entries + count * layout.entry_bytes
    layout.number(layout.offset_code, data, following)
    for at in range(entries, following, layout.entry_bytes):
        tag = layout.number("H", data, at)
        if tag == _NEW_SUBFILE_TYPE:
            return layout.number("I", data, at + layout.value_at), following
        if tag > _NEW_SUBFILE_TYPE:
            break  # entries are in the order of their tags
    return 0, following


def single_page(data: bytes, offset: int) -> bytes:
    """Return the file with the page whose directory stands at `offset` as its only one."""
    layout = _layout(data)
    _, following = _directory(layout, data, offset)
    changed = bytearray(data)
    struct.pack_into(layout.order + layout.offset_code, changed, layout.first_at, offset)
    struct.pack_into(layout.order + layout.offset_code, changed, following, 0)
    return bytes(changed)
