"""Which cores an engine may use: reading the policy, pinning the child, reading the result back from the OS."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from fewbits.core.errors import SpecError

_WHERE = "--affinity-policy"
_MAX_CORES_NAMED = 4096


def allowed_cores() -> tuple[int, ...] | None:
    """The cores that this process may use, sorted; `None` where the OS does not tell (not Linux)."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return tuple(sorted(os.sched_getaffinity(0)))


def resolve_threads(requested: int | None) -> int:
    """The thread count to ask for: as requested, else the physical cores that this process may use.

    Raises `SpecError` when more threads are requested than the machine has logical cores.
    """
    logical = os.cpu_count() or 1
    allowed = allowed_cores()
    if requested is None:
        usable = logical if allowed is None else len(allowed)
        return max(1, min(psutil.cpu_count(logical=False) or usable, usable))
    if requested > logical:
        raise SpecError.single("--threads", f"{requested} threads on a machine with {logical} cores", f"use at most {logical}")
    return requested


def resolve_cores(policy: str, threads: int) -> tuple[int, ...] | None:
    """Turn an affinity policy into the cores to pin to; `None` = leave it to the OS.

    `auto` takes the first `threads` allowed cores. Raises `SpecError` for a malformed list, or for cores that do not exist
    or that this process may not use.
    """
    if policy == "none":
        return None
    allowed = allowed_cores()
    if policy == "auto":
        return None if allowed is None else allowed[:threads]
    if not policy.startswith("cores:"):
        raise SpecError.single(_WHERE, f"{policy!r} is not none, auto or cores:LIST", "for example cores:0,2-3")
    if allowed is None:
        raise SpecError.single(_WHERE, "this operating system cannot pin a process to cores", "use none")
    wanted = _parse_core_list(policy.removeprefix("cores:"))
    if missing := sorted(wanted - set(allowed)):
        raise SpecError.single(
            _WHERE,
            f"core {', '.join(map(str, missing))} does not exist or may not be used here",
            f"this process may use {', '.join(map(str, allowed))}",
        )
    return tuple(sorted(wanted))


def _parse_core_list(text: str) -> set[int]:
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or ("-" in part and not last.isdecimal()):
            raise SpecError.single(_WHERE, f"{text!r} is not a list of cores", "for example cores:0,2-3")
        low, high = int(first), int(last or first)
        if high < low or high - low >= _MAX_CORES_NAMED:
            raise SpecError.single(_WHERE, f"{part!r} is not a range of cores", "write the lower core first")
        cores.update(range(low, high + 1))
    return cores


@contextlib.contextmanager
def pinned(cores: tuple[int, ...] | None) -> Iterator[None]:
    """Pin the calling thread for the moment of a spawn: the child, and every thread that it starts, inherits the mask.

    Inheritance leaves no moment in which the child runs unpinned, and no Python code runs between fork and exec.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def process_cores(pid: int) -> tuple[int, ...] | None:
    """The cores that any thread of a process may use, read back from the OS; `None` where that cannot be read."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores: set[int] = set()
    try:
        threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        threads = [pid]
    for thread in threads:
        with contextlib.suppress(OSError):  # a thread may end between listing and asking
            cores |= os.sched_getaffinity(thread)
    return tuple(sorted(cores)) or None
