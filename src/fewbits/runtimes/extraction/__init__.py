"""Extraction engines, each variant in a child process of its own."""
