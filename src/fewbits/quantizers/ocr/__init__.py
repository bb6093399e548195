"""OCR engines: the networks of rapidocr's wheel as INT8 variants of ONNX Runtime, each engine in one archive.

- `archive`: three networks and a manifest in one file with one sha256.
- `integers`: ONNX Runtime's dynamic and static quantization of one network.
- `calibration`: what the engine's own preparation hands to its networks.
- `precision`: weights and bits of a quantized network, and what the runtime computes with integers.
- `worker`: one build, in a process of its own.
- `quantizer`: scheme in, archive out, through the artifact cache.
"""
