"""The commit that a checkout is at, for provenance."""

from __future__ import annotations

from pathlib import Path

from fewbits.core.process import run_command


def commit_sha(folder: Path) -> str | None:
    """Full sha of HEAD, with `+dirty` appended when tracked files differ; `None` outside a checkout or without git."""
    try:
        head = run_command(["git", "-C", folder, "rev-parse", "HEAD"], timeout_seconds=10)
        status = run_command(["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"], timeout_seconds=10)
    except OSError:
        return None
    if not head.ok:
        return None
    return head.stdout.strip() + ("+dirty" if status.ok and status.stdout.strip() else "")
