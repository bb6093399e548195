"""PyTorch side of the sensitivity runs: loading, batches, coverage. Shared by the scorers; imports torch on first use only."""
