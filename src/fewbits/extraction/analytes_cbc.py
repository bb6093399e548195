"""Complete blood count with differential.

Ranges of adults: American Board of Internal Medicine, Laboratory Test Reference Ranges; red cells by sex and absolute counts:
Henry's Clinical Diagnosis and Management by Laboratory Methods, 22nd ed., as eCampusOntario and Labcorp reprint it; RDW up to
14.0 %: CDC, MMWR 1998;47(RR-3).
Critical limits: Kost GJ, "Critical limits for urgent clinician notification at US medical centers", JAMA 1990;263:704-707 (means
over the centers); hemoglobin below 7.0 g/dL: Houston Methodist, Critical Values; neutrophils: Mayo Clinic, DLMP Critical Values.
SI factors: AMA Manual of Style, 11th ed., 17.5.10 (hemoglobin in mmol/L by the molar mass of one chain, 16,114 g/mol).
"""

from __future__ import annotations

from fewbits.extraction.analyte import Analyte, Limits, both, by_sex
from fewbits.records.extraction import ReportType

THOUSANDS = {"10^9/L": 1.0, "/uL": 1e-3}
"""Cells: factors to 10^3/uL."""
_HENRY = "range: Henry's Clinical Diagnosis, 22nd ed."
_ABIM = "range: ABIM, Laboratory Test Reference Ranges"
_KOST = "critical: Kost 1990, JAMA 263:704"


def _share(key: str, name: str, synonyms: tuple[str, ...], low: float, high: float) -> Analyte:
    """One kind of white cell, as percent of all."""
    return Analyte(
        key=f"{key}_percent",
        name=f"{name} %",
        panel=ReportType.CBC,
        unit="%",
        synonyms=(*synonyms, *(f"{each} %" for each in synonyms), *(f"% {each}" for each in (name, *synonyms)), name),
        ranges=both(low, high),
        plausible=Limits(0, 100),
        source=_ABIM,
    )


def _count(key: str, name: str, synonyms: tuple[str, ...], limits: Limits, critical: float | None) -> Analyte:
    """One kind of white cell, as a count; `critical` is the low limit."""
    spellings = (name, *synonyms)
    return Analyte(
        key=f"{key}_absolute",
        name=f"{name}, Absolute",
        panel=ReportType.CBC,
        unit="10^3/uL",
        synonyms=(
            *spellings,
            *(f"{prefix} {each}" for each in spellings for prefix in ("Absolute", "Abs", "Abs.")),
            *(f"{each} {suffix}" for each in spellings for suffix in ("Absolute", "Abs", "#", "Count", "(Absolute)")),
            *(f"Absolute {each} Count" for each in (name, name.removesuffix("s"))),
            *(f"# {each}" for each in spellings),
        ),
        convertible=THOUSANDS,
        ranges={None: limits},
        critical=Limits(critical, None),
        plausible=Limits(0, 500),
        decimals=2,
        source=_HENRY + ("; critical: Mayo Clinic, DLMP Critical Values" if critical else ""),
    )


_KINDS = {
    "neutrophils": ("Neutrophils", ("Neut", "Neutrophil", "Segmented Neutrophils", "Polys", "PMN", "Segs")),
    "lymphocytes": ("Lymphocytes", ("Lymph", "Lymphs", "Lymphocyte", "LYM")),
    "monocytes": ("Monocytes", ("Mono", "Monos", "Monocyte")),
    "eosinophils": ("Eosinophils", ("Eos", "Eosinophil")),
    "basophils": ("Basophils", ("Baso", "Basos", "Basophil")),
}
# Percent: ABIM (segmented neutrophils 50-70, lymphocytes 30-45, monocytes 0-6, eosinophils 0-3, basophils 0-1).
_SHARES = {"neutrophils": (50, 70), "lymphocytes": (30, 45), "monocytes": (0, 6), "eosinophils": (0, 3), "basophils": (0, 1)}
# 10^3/uL: Henry; critical neutrophils: Mayo Clinic, DLMP Critical Values (0.5 x10^9/L).
_COUNTS = {
    "neutrophils": Limits(1.8, 7.8),
    "lymphocytes": Limits(1.0, 4.8),
    "monocytes": Limits(0, 0.8),
    "eosinophils": Limits(0, 0.45),
    "basophils": Limits(0, 0.2),
}

_CELLS: tuple[Analyte, ...] = (
    Analyte(
        key="wbc",
        name="White Blood Cells",
        panel=ReportType.CBC,
        unit="10^3/uL",
        synonyms=(
            "WBC",
            "White Blood Cell Count",
            "WBC Count",
            "White Blood Cell",
            "White Cell Count",
            "Leukocytes",
            "Leucocytes",
            "Leukocyte Count",
            "Leucocyte Count",
            "Total Leukocyte Count",
            "Total Leucocyte Count",
            "Total WBC Count",
            "Total WBC",
            "TLC",
            "White Blood Cells (WBC)",
            "White Blood Cell Count (WBC)",
            "WBC (White Blood Cells)",
        ),
        convertible=THOUSANDS,
        ranges=both(4.0, 11.0),
        critical=Limits(2.0, 37.0),
        plausible=Limits(0, 1000),
        source=f"{_ABIM}; {_KOST}",
    ),
    Analyte(
        key="rbc",
        name="Red Blood Cells",
        panel=ReportType.CBC,
        unit="10^6/uL",
        synonyms=(
            "RBC",
            "Red Blood Cell Count",
            "RBC Count",
            "Red Blood Cell",
            "Red Cell Count",
            "Erythrocytes",
            "Erythrocyte Count",
            "Total RBC Count",
            "Total RBC",
            "Red Blood Cells (RBC)",
            "Red Blood Cell Count (RBC)",
            "RBC (Red Blood Cells)",
        ),
        convertible={"10^12/L": 1.0, "/uL": 1e-6},
        ranges=by_sex((4.1, 5.1), (4.5, 5.9)),
        plausible=Limits(0.2, 12),
        decimals=2,
        source=_HENRY,
    ),
    Analyte(
        key="hemoglobin",
        name="Hemoglobin",
        panel=ReportType.CBC,
        unit="g/dL",
        synonyms=(
            "Hgb",
            "Hb",
            "Haemoglobin",
            "HGB",
            "Hemoglobin (Hgb)",
            "Hemoglobin (Hb)",
            "Haemoglobin (Hb)",
            "Hb (Hemoglobin)",
        ),
        convertible={"g/L": 0.1, "mmol/L": 1.6114},
        ranges=by_sex((12, 16), (14, 18)),
        critical=Limits(7.0, 19.9),
        plausible=Limits(1, 30),
        source=f"{_ABIM}; critical: low Houston Methodist, Critical Values; high Kost 1990, JAMA 263:704",
    ),
    Analyte(
        key="hematocrit",
        name="Hematocrit",
        panel=ReportType.CBC,
        unit="%",
        synonyms=("Hct", "Haematocrit", "PCV", "Packed Cell Volume", "Hematocrit (Hct)", "Haematocrit (Hct)", "Hematocrit (PCV)"),
        convertible={"L/L": 100.0},
        ranges=by_sex((37, 47), (42, 50)),
        critical=Limits(18, 61),
        plausible=Limits(3, 85),
        source=f"{_ABIM}; {_KOST}",
    ),
    Analyte(
        key="mcv",
        name="MCV",
        panel=ReportType.CBC,
        unit="fL",
        synonyms=("Mean Corpuscular Volume", "Mean Cell Volume", "Mean Corpuscular Volume (MCV)", "Mean Cell Volume (MCV)"),
        convertible={"um3": 1.0},
        ranges=both(80, 98),
        plausible=Limits(40, 180),
        source=_ABIM,
    ),
    Analyte(
        key="mch",
        name="MCH",
        panel=ReportType.CBC,
        unit="pg",
        synonyms=(
            "Mean Corpuscular Hemoglobin",
            "Mean Corpuscular Haemoglobin",
            "Mean Cell Hemoglobin",
            "Mean Cell Haemoglobin",
            "Mean Corpuscular Hemoglobin (MCH)",
            "Mean Cell Hemoglobin (MCH)",
        ),
        ranges=both(28, 32),
        plausible=Limits(8, 70),
        source=_ABIM,
    ),
    Analyte(
        key="mchc",
        name="MCHC",
        panel=ReportType.CBC,
        unit="g/dL",
        synonyms=(
            "Mean Corpuscular Hemoglobin Concentration",
            "Mean Corpuscular Haemoglobin Concentration",
            "Mean Corpuscular Hemoglobin Conc",
            "Mean Cell Hemoglobin Concentration",
            "Mean Cell Hemoglobin Conc",
            "Mean Corpuscular Hemoglobin Concentration (MCHC)",
        ),
        convertible={"g/L": 0.1, "%": 1.0},
        ranges=both(33, 36),
        plausible=Limits(15, 50),
        source=_ABIM,
    ),
    Analyte(
        key="rdw",
        name="RDW",
        panel=ReportType.CBC,
        unit="%",
        synonyms=(
            "RDW-CV",
            "Red Cell Distribution Width",
            "Red Blood Cell Distribution Width",
            "Red Cell Distribution Width (RDW)",
            "Red Cell Distribution Width CV",
            "RDW (CV)",
        ),
        ranges=both(None, 14.0),
        plausible=Limits(0, 60),
        source="range: CDC, MMWR 1998;47(RR-3)",
    ),
    Analyte(
        key="platelets",
        name="Platelets",
        panel=ReportType.CBC,
        unit="10^3/uL",
        synonyms=(
            "Platelet Count",
            "PLT",
            "Platelet",
            "Thrombocytes",
            "Thrombocyte Count",
            "Platelets (PLT)",
            "Platelet Count (PLT)",
            "PLT Count",
        ),
        convertible={**THOUSANDS, "10^5/uL": 100.0},
        ranges=both(150, 450),
        critical=Limits(37, 910),
        plausible=Limits(0, 5000),
        decimals=0,
        source=f"{_ABIM}; {_KOST}",
    ),
    Analyte(
        key="mpv",
        name="MPV",
        panel=ReportType.CBC,
        unit="fL",
        synonyms=("Mean Platelet Volume", "Mean Platelet Volume (MPV)"),
        ranges=both(7, 9),
        plausible=Limits(3, 30),
        source=_ABIM,
    ),
)

CBC_ANALYTES: tuple[Analyte, ...] = (
    *_CELLS,
    *(_share(key, *names, *_SHARES[key]) for key, names in _KINDS.items()),
    *(_count(key, *names, _COUNTS[key], 0.5 if key == "neutrophils" else None) for key, names in _KINDS.items()),
)
