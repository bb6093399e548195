"""`fewbits extract preflight` under the runbook's name."""

from _door import draw_samples, open_door

draw_samples()
raise SystemExit(open_door("extract", "preflight"))
