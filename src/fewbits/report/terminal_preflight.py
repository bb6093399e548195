"""A preflight as plain text: one line per check with its remedy, then what can run here and what to start with."""

from __future__ import annotations

from fewbits.records.preflight import EngineOutlook, Preflight
from fewbits.report.escape import visible


def render_preflight(preflight: Preflight) -> str:
    """Return the preflight's lines, ending in a newline."""
    lines = [f"preflight: {preflight.status.value}"]
    for check in preflight.checks:
        remedy = f" -> {visible(check.remedy)}" if check.remedy else ""
        lines.append(f"  {check.status.value:<4} {check.name}: {visible(check.found)}{remedy}")
    able = [outlook for outlook in preflight.engines if outlook.can_run]
    unable = [outlook for outlook in preflight.engines if not outlook.can_run]
    lines += ["can run here:", *(_lines(able) or ["  nothing"])]
    if unable:
        lines += ["cannot run here:", *_lines(unable)]
    chosen = preflight.recommended
    settings = [f"engine {chosen.engine}", f"device {chosen.device.value}"]
    settings += [f"{chosen.torch_dtype}"] if chosen.torch_dtype else []
    settings += [f"quantization {chosen.quantization}"] if chosen.quantization else []
    lines.append(f"to start with: {', '.join(settings)} ({visible(chosen.why)})")
    known = [f"{name} {version}" for name, version in sorted(preflight.versions.items()) if version is not None]
    lines.append(f"versions: {visible(', '.join(known))}")
    return "\n".join(lines) + "\n"


def _lines(outlooks: list[EngineOutlook]) -> list[str]:
    return [f"  {outlook.engine}: {visible(outlook.why)}" for outlook in outlooks]
