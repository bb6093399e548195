"""The affinity policy's list of cores: `cores:0,2-3`."""

from __future__ import annotations

PREFIX = "cores:"
_LARGEST_CORE = 65_535


def parse_cores(policy: str) -> tuple[int, ...] | None:
    """Return the logical cores that a policy lists, sorted, each once; `None` for `none` and `auto`.

    Raises `ValueError` with one sentence for an empty list, an item that is neither `3` nor `2-5`, or a reversed range.
    """
    if not policy.startswith(PREFIX):
        return None
    cores: set[int] = set()
    for item in policy.removeprefix(PREFIX).split(","):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            msg = f"{item!r} is neither a core nor a range of cores"
            raise ValueError(msg)
        low, high = int(first), int(last if dash else first)
        if high < low or high > _LARGEST_CORE:
            msg = f"{item!r} is not a range from a smaller to a larger core (at most {_LARGEST_CORE})"
            raise ValueError(msg)
        cores.update(range(low, high + 1))
    return tuple(sorted(cores))
