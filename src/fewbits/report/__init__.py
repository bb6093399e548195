"""Records become words and pictures; no arithmetic."""
