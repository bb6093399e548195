"""What people write (matrix files, flags) becomes one SweepSpec; every problem is reported at once."""
