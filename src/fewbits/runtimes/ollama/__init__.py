"""An Ollama server."""
