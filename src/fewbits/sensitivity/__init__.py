"""Per-layer scores, and what follows from them: a precision for every tensor."""
