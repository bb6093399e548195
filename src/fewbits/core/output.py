"""Keep stdout for results: compiled libraries print there as they like, below Python's `sys.stdout`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_stdout_to_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 1 to stderr, child processes that start meanwhile included.

    For the whole process, so not for use while another thread prints results.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
