"""What people write (matrix files, flags) becomes one SweepSpec; every problem is reported at once."""

from __future__ import annotations

from fewbits.spec.flags import add_sweep_arguments, explicit_flags
from fewbits.spec.load import load_spec
from fewbits.spec.matrix import read_document

__all__ = ["add_sweep_arguments", "explicit_flags", "load_spec", "read_document"]
