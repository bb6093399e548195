"""Runtimes: (artifact, request) becomes a Reply."""
