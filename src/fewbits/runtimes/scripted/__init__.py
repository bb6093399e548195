"""A scripted runtime for tests and examples: replies come from a file, never from a model."""
