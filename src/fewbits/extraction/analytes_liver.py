"""Liver panel, with the proteins of serum.

Ranges: American Board of Internal Medicine, Laboratory Test Reference Ranges; the albumin/globulin ratio has no range here
(sources differ by more than their width). Critical limit of bilirubin: Kost GJ, JAMA 1990;263:704-707 (adults).
SI factors: AMA Manual of Style, 11th ed., 17.5.10 (bilirubin 17.1 umol/L for 1 mg/dL; enzymes: 1 U/L = 1/60 ukat/L, exactly).
"""

from __future__ import annotations

from fewbits.extraction.analyte import Analyte, Limits, both, by_sex
from fewbits.records.extraction import ReportType, Sex

_KATAL = {"ukat/L": 60.0}
_GRAMS = {"g/L": 0.1}
_BILIRUBIN = {"umol/L": 1 / 17.1, "mg/L": 0.1}
_ABIM = "range: ABIM, Laboratory Test Reference Ranges"


def _enzyme(key: str, name: str, synonyms: tuple[str, ...], ranges: dict[Sex | None, Limits], source: str) -> Analyte:
    """An enzyme, by its activity."""
    return Analyte(
        key=key,
        name=name,
        panel=ReportType.LIVER,
        unit="U/L",
        synonyms=synonyms,
        convertible=_KATAL,
        ranges=ranges,
        plausible=Limits(0, 50000),
        decimals=0,
        source=source,
    )


def _protein(key: str, name: str, synonyms: tuple[str, ...], low: float, high: float) -> Analyte:
    """A protein of serum, by its mass."""
    return Analyte(
        key=key,
        name=name,
        panel=ReportType.LIVER,
        unit="g/dL",
        synonyms=synonyms,
        convertible=_GRAMS,
        ranges=both(low, high),
        plausible=Limits(0.2, 20),
        source=_ABIM,
    )


LIVER_ANALYTES: tuple[Analyte, ...] = (
    _enzyme(
        "alt",
        "ALT",
        (
            "SGPT",
            "ALT (SGPT)",
            "SGPT (ALT)",
            "SGPT/ALT",
            "Alanine Aminotransferase",
            "Alanine Transaminase",
            "Alanine Aminotransferase (ALT)",
            "ALT (Alanine Aminotransferase)",
            "Alanine Transaminase (ALT)",
            "GPT",
            "ALAT",
        ),
        both(10, 40),
        _ABIM,
    ),
    _enzyme(
        "ast",
        "AST",
        (
            "SGOT",
            "AST (SGOT)",
            "SGOT (AST)",
            "SGOT/AST",
            "Aspartate Aminotransferase",
            "Aspartate Transaminase",
            "Aspartate Aminotransferase (AST)",
            "AST (Aspartate Aminotransferase)",
            "Aspartate Transaminase (AST)",
            "GOT",
            "ASAT",
        ),
        both(10, 40),
        _ABIM,
    ),
    _enzyme(
        "alp",
        "Alkaline Phosphatase",
        ("ALP", "Alk Phos", "Alk Phosphatase", "ALKP", "Alkaline Phosphatase (ALP)", "ALP (Alkaline Phosphatase)"),
        both(30, 120),
        _ABIM,
    ),
    _enzyme(
        "ggt",
        "GGT",
        (
            "Gamma GT",
            "Gamma-Glutamyl Transferase",
            "Gamma Glutamyltransferase",
            "Gamma-Glutamyl Transpeptidase",
            "GGTP",
            "Gamma-Glutamyl Transferase (GGT)",
            "GGT (Gamma-Glutamyl Transferase)",
            "y-GT",
        ),
        by_sex((8, 40), (9, 50)),
        _ABIM,
    ),
    _enzyme(
        "ldh",
        "LDH",
        ("Lactate Dehydrogenase", "LD", "Lactic Dehydrogenase", "Lactate Dehydrogenase (LDH)", "LDH (Lactate Dehydrogenase)"),
        both(80, 225),
        _ABIM,
    ),
    Analyte(
        key="total_bilirubin",
        name="Total Bilirubin",
        panel=ReportType.LIVER,
        unit="mg/dL",
        synonyms=(
            "Bilirubin, Total",
            "Bilirubin Total",
            "T. Bilirubin",
            "T Bili",
            "T. Bili",
            "TBIL",
            "Bilirubin",
            "Bilirubin (Total)",
            "Total Bili",
            "Bilirubin T",
        ),
        convertible=_BILIRUBIN,
        ranges=both(0.3, 1.0),
        critical=Limits(None, 15),
        plausible=Limits(0, 100),
        source=f"{_ABIM}; critical: Kost 1990, JAMA 263:704",
    ),
    Analyte(
        key="direct_bilirubin",
        name="Direct Bilirubin",
        panel=ReportType.LIVER,
        unit="mg/dL",
        synonyms=(
            "Bilirubin, Direct",
            "D. Bilirubin",
            "D Bili",
            "D. Bili",
            "DBIL",
            "Bilirubin (Direct)",
            "Conjugated Bilirubin",
            "Bilirubin, Conjugated",
            "Bilirubin D",
        ),
        convertible=_BILIRUBIN,
        ranges=both(0.1, 0.3),
        plausible=Limits(0, 80),
        source=_ABIM,
    ),
    _protein("albumin", "Albumin", ("ALB", "Albumin Level"), 3.5, 5.5),
    _protein("total_protein", "Total Protein", ("Protein, Total", "Protein Total", "TP", "Protein", "Protein (Total)"), 5.5, 9.0),
    _protein(
        "globulin",
        "Globulin",
        ("Globulin, Total", "Globulins", "Globulin, Calculated", "Total Globulin", "Globulin (Calculated)"),
        2.0,
        3.5,
    ),
    Analyte(
        key="albumin_globulin_ratio",
        name="A/G Ratio",
        panel=ReportType.LIVER,
        unit="",
        synonyms=("Albumin/Globulin Ratio", "Albumin Globulin Ratio", "AG Ratio", "A:G Ratio", "Albumin/Globulin (A/G) Ratio"),
        convertible={"ratio": 1.0},
        plausible=Limits(0.05, 15),
        source="no range: sources differ",
    ),
)
