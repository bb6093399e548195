"""The names that the benchmark runbook uses for parts of `fewbits.extraction`; nothing of its own."""
