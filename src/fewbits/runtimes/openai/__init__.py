"""Any OpenAI-compatible HTTP server."""
