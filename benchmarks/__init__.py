"""Measurements behind the claims about speed: `python -m benchmarks.run` (`make bench`) takes all of them on this machine."""
