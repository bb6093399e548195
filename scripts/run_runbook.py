"""Run every command block of the runbook, from top to bottom, as written: `make runbook`.

Exit code 0 when every block ended with 0; else that of the first that did not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNBOOK = ROOT / "docs" / "QUANT_SWEEP_RUNBOOK.md"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Run the blocks and say how long each took."""
    parser = argparse.ArgumentParser(description="Run every command block of the runbook.")
    parser.add_argument("--list", action="store_true", help="print the blocks and run nothing")
    arguments = parser.parse_args()
    started = time.monotonic()
    for number, block in enumerate(blocks(RUNBOOK.read_text(encoding="utf-8")), start=1):
        print(f"\n--- block {number} ---\n{block.strip()}", flush=True)
        if arguments.list:
            continue
        begun = time.monotonic()
        code = run_block(block, ROOT).returncode
        print(f"--- block {number}: exit code {code}, {time.monotonic() - begun:.1f} s ---", flush=True)
        if code:
            return code
    print(f"\nthe whole runbook: {time.monotonic() - started:.0f} s", flush=True)
    return 0


def blocks(text: str) -> list[str]:
    """Return the shell blocks of a Markdown text, in order."""
    return BLOCK.findall(text)


def run_block(
    block: str, cwd: Path, environment: Mapping[str, str] | None = None, *, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run one block under bash, strictly, with this Python's folder first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=cwd,
        env={**os.environ, **(environment or {}), "PATH": path},
        capture_output=capture,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    raise SystemExit(main())
