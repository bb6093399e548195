"""A control profile: how a machine is held still while it measures, under a name that a matrix file or a flag can give."""

from __future__ import annotations

from typing import Any

from fewbits.records.base import Record
from fewbits.records.variant import Sha256

_SHOWN_DIGITS = 12


class ControlProfile(Record, frozen=True, kw_only=True):
    """A profile as it was read from its file."""

    name: str
    sha256: Sha256
    """Of the file's bytes, so that an edited profile never passes for the old one."""
    settings: dict[str, Any]
    """Keys as in matrix files -> values, checked and converted."""
    description: str = ""

    def reference(self, overridden: tuple[str, ...] = ()) -> str:
        """Return what a plan records: `lab@1a2b3c4d5e6f`, and which of its settings were given otherwise."""
        told = f"{self.name}@{self.sha256[:_SHOWN_DIGITS]}"
        return f"{told} except {', '.join(overridden)}" if overridden else told
