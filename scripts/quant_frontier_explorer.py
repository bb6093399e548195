"""`fewbits frontier` under the runbook's name."""

from _door import open_door

raise SystemExit(open_door("frontier"))
