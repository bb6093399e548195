"""The table of analytes: names, units, ranges and limits, each with its source.

No medical advice: ranges are typical ones of adults, differ between laboratories and methods, and are used only where a page
prints none. A number without a source is left out. The sources are given in the modules of the panels.
"""

from __future__ import annotations

from functools import cache

from fewbits.extraction.analyte import Analyte, Limits
from fewbits.extraction.analytes_cbc import CBC_ANALYTES
from fewbits.extraction.analytes_lipid_thyroid import LIPID_ANALYTES, THYROID_ANALYTES
from fewbits.extraction.analytes_liver import LIVER_ANALYTES
from fewbits.extraction.analytes_metabolic import METABOLIC_ANALYTES
from fewbits.extraction.analytes_urine import URINE_ANALYTES

__all__ = ["ANALYTES", "Analyte", "Limits", "analyte_table"]

ANALYTES: tuple[Analyte, ...] = (
    *CBC_ANALYTES,
    *METABOLIC_ANALYTES,
    *LIPID_ANALYTES,
    *THYROID_ANALYTES,
    *LIVER_ANALYTES,
    *URINE_ANALYTES,
)


@cache
def analyte_table() -> dict[str, Analyte]:
    """Return every analyte by its key."""
    return {analyte.key: analyte for analyte in ANALYTES}
