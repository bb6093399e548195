"""Plan (pure) and run: the only loop."""
