"""`fewbits kpis report` under the runbook's name."""

from _door import open_door

raise SystemExit(open_door("kpis", "report"))
