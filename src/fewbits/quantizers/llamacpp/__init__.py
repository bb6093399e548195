"""GGUF variants made by llama.cpp."""
