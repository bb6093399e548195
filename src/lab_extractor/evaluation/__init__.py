"""See `metrics`."""
