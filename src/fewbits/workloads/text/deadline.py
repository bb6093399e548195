"""A clock for pattern matching on hostile text: a catastrophic regular expression ends, instead of hanging the sweep."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fewbits.core.process import run_command


class DeadlineError(Exception):
    """Matching took longer than allowed."""


def _has_alarm() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Raise `DeadlineError` naming `what` when the block takes longer than `seconds` of wall time.

    Works through SIGALRM, which Python's `re` engine honours while matching; outside the main thread no signal can be
    taken, and the block runs without a clock (`search_within` has another way there). The handler and any timer that
    were set before are put back.
    """
    if not _has_alarm():
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        msg = f"{what} took longer than {seconds:g} s on this answer"
        raise DeadlineError(msg)

    previous = signal.signal(signal.SIGALRM, ring)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, remaining, interval)


_MATCHER = "import json,re,sys; p,f,t=json.load(sys.stdin); print(int(re.search(p,t,f) is not None))"


def search_within(pattern: str, flags: int, text: str, seconds: float) -> bool:
    """Whether `pattern` is found in `text`. Raises `DeadlineError` after `seconds`, `re.error` for a bad pattern."""
    what = f"the pattern {pattern!r}"
    if _has_alarm():
        with within(seconds, what):
            return re.search(pattern, text, flags) is not None
    return _search_in_child(pattern, flags, text, seconds, what)


def _search_in_child(pattern: str, flags: int, text: str, seconds: float, what: str) -> bool:
    import json

    re.compile(pattern, flags)
    result = run_command(
        [sys.executable, "-I", "-S", "-c", _MATCHER], timeout_seconds=seconds, stdin=json.dumps([pattern, flags, text])
    )
    if not result.ok:
        msg = f"{what} took longer than {seconds:g} s on this answer"
        raise DeadlineError(msg)
    return result.stdout.strip() == "1"
