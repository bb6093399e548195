"""The child's side of `worker_process`: load, tell what was loaded, answer line by line until stdin ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol


class Worker(Protocol):
    """What a child holds."""

    @property
    def description(self) -> dict[str, Any]:
        """What was loaded; its first answer."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request. Never raises: `{"problem": ...}` for a request that cannot be answered, `{"failure": ...}` else."""


def serve(load: Callable[[dict[str, Any]], Worker]) -> int:
    """Load with the options of the command line and answer. Returns the exit code: 1 when it cannot be loaded."""
    options = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # compiled libraries print there as they like
    try:
        worker = load(options)
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is one sentence for the parent
        sys.stderr.write(f"worker: {error}\n")
        return 1
    _tell(answers, worker.description)
    for line in sys.stdin:
        _tell(answers, worker.answer(json.loads(line)))
    return 0


def _tell(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
