"""llama.cpp as a quantizer: GGUF in, GGUF out, through the user's own build or a prebuilt wheel."""
