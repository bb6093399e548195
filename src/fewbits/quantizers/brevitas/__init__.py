"""Detectors: YOLOv10 checkpoints read without their code, quantized with Brevitas. Loads torch on first use only."""
