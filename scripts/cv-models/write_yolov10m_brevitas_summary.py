"""A detector run's summary.md, again: `fewbits detect summary` under the runbook's name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _door import open_door

raise SystemExit(open_door("detect", "summary"))
