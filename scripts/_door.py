"""The scripts are doors into the CLI: they find the project's environment when the calling Python lacks fewbits."""

import importlib.util
import os
import sys
from pathlib import Path


def open_door(*command: str) -> int:
    """Run `fewbits COMMAND [SUB-COMMAND]` with this script's arguments."""
    if importlib.util.find_spec("fewbits") is None:
        python = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
        if not python.exists() or Path(sys.executable) == python:
            print("fewbits is not installed: run `make install` in the checkout first.", file=sys.stderr)
            return 3
        os.execv(python, [str(python), *sys.argv])
    from fewbits.cli.main import main

    return main([*command, *sys.argv[1:]])


SAMPLES = Path("data/samples")


def draw_samples() -> None:
    """Draw the runbook's sample pages where its commands name them and nobody has drawn them yet: git holds no data."""
    if str(SAMPLES) not in sys.argv or SAMPLES.exists() or importlib.util.find_spec("fewbits") is None:
        return
    from fewbits.cli.main import main

    main(["extract", "samples", "--output", str(SAMPLES)])
