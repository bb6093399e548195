"""Pure: every number and verdict that anyone reads."""
