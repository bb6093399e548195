"""The one tree of errors, and the exit codes they map to.

A failed gate, a polluted trial and missing telemetry are *values*, never exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, the same for every command."""

    OK = 0
    UNEXPECTED = 1
    FAILED_CHECK = 2
    """A check said FAIL, or the input is unusable."""
    PREREQUISITE = 3
    """Something that must be installed or running is missing, or a SKIP was not allowed."""
    INTERRUPTED = 130


class FewbitsError(Exception):
    """Base of every error that fewbits raises on purpose; carries the exit code of the command."""

    exit_code: ExitCode = ExitCode.UNEXPECTED


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with something a person wrote.

    `path` says where (`models[0]`, `--runs`, `tasks.json:12`), `message` what, `hint` what to do about it (may be empty).
    """

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """Render as `path: message (hint)`."""
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.path}: {self.message}{tail}"


class SpecError(FewbitsError):
    """What a person wrote cannot be used. Holds *all* problems found, each with its path."""

    exit_code = ExitCode.FAILED_CHECK

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        head = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{head}:", *(f"  - {problem}" for problem in self.problems)]))

    @classmethod
    def single(cls, path: str, message: str, hint: str = "") -> SpecError:
        """Build the error for one problem."""
        return cls([Problem(path, message, hint)])


class PrerequisiteError(FewbitsError):
    """Something the command needs is not there: `what` is missing, `remedy` says how to get it."""

    exit_code = ExitCode.PREREQUISITE

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}. {remedy}")


class BackendError(FewbitsError):
    """An external tool failed: which, with which command, exit code and last lines of output."""

    def __init__(self, tool: str, message: str, *, returncode: int | None = None, tail: str = "") -> None:
        self.tool = tool
        self.returncode = returncode
        self.tail = tail
        code = f" (exit code {returncode})" if returncode is not None else ""
        last = f"\n--- last lines of {tool} ---\n{tail}" if tail else ""
        super().__init__(f"{tool}: {message}{code}{last}")


class ProtocolError(FewbitsError):
    """A tool answered, but broke its contract (unparsable, wrong type, missing field)."""


class IdentityError(FewbitsError):
    """What the runtime serves is not the variant that was asked for. Stops the sweep: the labels would lie."""

    exit_code = ExitCode.FAILED_CHECK


class StoreError(FewbitsError):
    """Bytes on disk cannot be read, written, locked or trusted."""

    exit_code = ExitCode.FAILED_CHECK


class TrialTimeoutError(FewbitsError):
    """A trial did not end before its deadline. A value for the sweep (a failed trial), an exception only inside runtimes."""


class GuardStopError(FewbitsError):
    """The live guard ended the sweep: too hot, too little memory, or throttling. What was measured is in the journal."""

    exit_code = ExitCode.FAILED_CHECK


class CanaryBlockedError(FewbitsError):
    """The canary gate said no: the matrix must not run on this machine in this state."""

    exit_code = ExitCode.FAILED_CHECK
