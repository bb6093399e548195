"""Text tasks: banks, typed checks, sandboxed execution."""
