"""Bytes on disk: run directory, trial journal, artifact cache."""
