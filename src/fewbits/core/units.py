"""Numbers as people read them. Input units are in the parameter names."""

from __future__ import annotations

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def format_bytes(size_bytes: float | None) -> str:
    """Format bytes in binary units (`98.4 MiB`); `None` becomes an em dash."""
    if size_bytes is None:
        return "—"
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def format_seconds(seconds: float | None) -> str:
    """Format a duration (`0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`); `None` becomes an em dash."""
    if seconds is None:
        return "—"
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"
