"""Keep libraries quiet, ask for them by name, and turn their out-of-memory errors into ours."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator

from fewbits.core.errors import BackendError, PrerequisiteError

EXTRA = "pip install 'fewbits[sensitivity]'"

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "bad alloc", "cannot allocate memory")


def require(*modules: str) -> None:
    """Raise `PrerequisiteError` when one of the importable `modules` is not installed. Imports none of them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise PrerequisiteError(f"{' and '.join(missing)} not installed", f"Install with: {EXTRA}")


@contextlib.contextmanager
def quiet_library(*, show: bool) -> Iterator[None]:
    """Keep stdout clean: what a library prints goes to stderr with `show`, nowhere without. Its warnings go nowhere."""
    target = sys.stderr if show else io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(target))
        if not show:
            stack.enter_context(contextlib.redirect_stderr(target))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def is_memory_error(error: BaseException) -> bool:
    """Tell from an error's words whether a library ran out of memory."""
    return any(words in str(error).lower() for words in _MEMORY_WORDS)


@contextlib.contextmanager
def memory_errors(tool: str, remedy: str) -> Iterator[None]:
    """Turn a library's out-of-memory error into a `BackendError` that ends with `remedy`."""
    try:
        yield
    except MemoryError as error:
        raise BackendError(tool, f"out of memory. {remedy}") from error
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_memory_error(error):
            raise
        first_line = str(error).strip().splitlines()[0]
        raise BackendError(tool, f"out of memory ({first_line}). {remedy}") from error
