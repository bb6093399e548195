"""Detectors as ONNX files, each in a child process of its own (ONNX Runtime).

- `runtime`, `session`: the parent's side of the seam.
- `worker`: the child: opens an image, runs the graph between two clock reads, answers with detections.
- `decode`: from a graph's raw output to detections, for the forms that detectors come in.
"""
