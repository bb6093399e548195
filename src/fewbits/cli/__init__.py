"""argv to use-case to exit code; one module per command."""
