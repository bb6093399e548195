"""NVIDIA ModelOpt: per-layer sensitivity by AutoQuant. Imports ModelOpt on first use only."""
