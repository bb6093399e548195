"""ONNX files of quantized models: what is in them, cleaning them up, and comparing them with what they were made from.

- `graph`: reading, writing, the input and output contract, metadata.
- `census`: how every weight and activation is stored, read from the file alone.
- `cleanup`: onnxoptimizer, held to keep every quantization node; what onnxslim would do beside it.
- `agreement`: outputs of a file against the model that it was exported from.
"""
