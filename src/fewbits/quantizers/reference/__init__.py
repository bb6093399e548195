"""A small, readable quantizer and scorer in plain PyTorch: what the library's scores are checked against."""
