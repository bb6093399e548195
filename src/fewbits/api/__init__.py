"""The use-cases, each about a screen: what the CLI and other people's Python call.

`sweeps` runs and summarises; `gates` judges artifacts; the other modules hold one further job of the lab each. Names that people
use most are offered here.
"""

from fewbits.api.sweeps import (
    REPOSITORY_ROOT,
    PreparedSweep,
    build_summary,
    dry_run,
    prepare_sweep,
    render_report,
    run_sweep,
    summary_path_of,
    verify_run,
    write_results,
)

__all__ = [
    "REPOSITORY_ROOT",
    "PreparedSweep",
    "build_summary",
    "dry_run",
    "prepare_sweep",
    "render_report",
    "run_sweep",
    "summary_path_of",
    "verify_run",
    "write_results",
]
