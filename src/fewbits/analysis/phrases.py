"""Phrases about a row that every explanation uses, whatever the policy."""

from __future__ import annotations

from fewbits.analysis.wording import listed
from fewbits.core.units import format_bytes
from fewbits.records.summary import QuantRow


def memory_words(row: QuantRow) -> str:
    """Say what a row needs: its peak memory, else the size of its file."""
    if row.peak_memory_rss is not None:
        return f"{format_bytes(row.peak_memory_rss)} of memory at its peak"
    return f"a file of {format_bytes(row.variant_bytes)}" if row.variant_bytes is not None else "size unknown"


def invalid_words(row: QuantRow) -> str:
    """List why a row is not valid; empty for a valid one."""
    return listed([reason.lower().replace("_", " ") for reason in row.invalid_reasons])
