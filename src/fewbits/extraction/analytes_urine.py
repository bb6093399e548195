"""Urinalysis: strip, look and microscope.

Ranges and normal words: Bronson Laboratory Services, test UA (specific gravity 1.005-1.030, strip negative,
urobilinogen below 2.0, red cells 0-3/hpf, white cells 0-2/hpf); pH 4.5-8.0: American Board of Internal Medicine, Laboratory
Test Reference Ranges. Colors and clearness: Davis's Laboratory and Diagnostic Tests, Urinalysis (light yellow to deep amber;
clear). The words of grades are those of strips (trace, 1+ to 4+). Critical limits: none is sourced.
"""

from __future__ import annotations

from fewbits.extraction.analyte import Analyte, Limits, below, both
from fewbits.records.extraction import ReportType

NEGATIVE = ("Negative", "Neg", "None", "Absent", "Not Detected", "Nil")
GRADES = ("Trace", "1+", "2+", "3+", "4+", "+", "++", "+++", "++++", "Small", "Moderate", "Large", "Positive", "Pos", "Present")
_BRONSON = "Bronson Laboratory Services, test UA"


def _strip(key: str, name: str, synonyms: tuple[str, ...], *, unit: str = "mg/dL", more_normal: tuple[str, ...] = ()) -> Analyte:
    """A field of the strip that is negative in health; some labs print its concentration."""
    return Analyte(
        key=f"urine_{key}",
        name=name,
        panel=ReportType.URINALYSIS,
        unit=unit,
        synonyms=(*synonyms, *(f"{each} {suffix}" for each in (name, *synonyms) for suffix in ("Urine", "UA", "Qual", "Ur"))),
        words=(*NEGATIVE, *more_normal, *GRADES),
        normal_words=(*NEGATIVE, *more_normal),
        decimals=0,
        source=f"normal words: {_BRONSON}",
    )


def _cells(key: str, name: str, synonyms: tuple[str, ...], high: float) -> Analyte:
    """Cells of a high-power field."""
    return Analyte(
        key=f"urine_{key}",
        name=name,
        panel=ReportType.URINALYSIS,
        unit="/hpf",
        synonyms=(*synonyms, *(f"{each} {suffix}" for each in (name, *synonyms) for suffix in ("Urine", "UA", "HPF", "/HPF"))),
        ranges=both(0, high),
        plausible=Limits(0, 10000),
        words=(*NEGATIVE, "None Seen", "Rare", "Few", "Moderate", "Many", "Occasional", "TNTC"),
        normal_words=(*NEGATIVE, "None Seen"),
        decimals=0,
        source=f"range: {_BRONSON}",
    )


URINE_ANALYTES: tuple[Analyte, ...] = (
    Analyte(
        key="urine_specific_gravity",
        name="Specific Gravity",
        panel=ReportType.URINALYSIS,
        unit="",
        synonyms=(
            "SG",
            "Sp. Gravity",
            "Sp Gr",
            "Specific Gravity Urine",
            "Specific Gravity, UA",
            "Urine Specific Gravity",
            "Spec Grav",
        ),
        ranges=both(1.005, 1.030),
        plausible=Limits(0.999, 1.080),
        decimals=3,
        source=f"range: {_BRONSON}",
    ),
    Analyte(
        key="urine_ph",
        name="pH",
        panel=ReportType.URINALYSIS,
        unit="",
        synonyms=("Urine pH", "pH Urine", "pH, UA", "Reaction (pH)", "pH (Urine)"),
        ranges=both(4.5, 8.0),
        plausible=Limits(3.5, 10),
        source="range: ABIM, Laboratory Test Reference Ranges",
    ),
    _strip("protein", "Protein", ("Urine Protein", "Albumin (Strip)", "Protein (Urine)")),
    _strip("glucose", "Glucose", ("Urine Glucose", "Urine Sugar", "Sugar", "Glucose (Urine)"), more_normal=("Normal",)),
    _strip("ketones", "Ketones", ("Ketone", "Urine Ketones", "Ketone Bodies", "Acetone", "Ketones (Urine)")),
    _strip("blood", "Blood", ("Occult Blood", "Urine Blood", "Blood (Urine)", "Hemoglobin (Strip)", "Blood, Occult"), unit="/uL"),
    _strip("nitrite", "Nitrite", ("Nitrites", "Urine Nitrite", "Nitrite (Urine)", "Nitrite, Urine")),
    _strip(
        "leukocyte_esterase",
        "Leukocyte Esterase",
        (
            "Leuk Esterase",
            "Leukocyte Est",
            "WBC Esterase",
            "Leucocyte Esterase",
            "LE",
            "Urine Leukocyte Esterase",
            "Leukocyte Esterase (Urine)",
        ),
        unit="/uL",
    ),
    _strip("bilirubin", "Bilirubin", ("Urine Bilirubin", "Bilirubin (Urine)")),
    Analyte(
        key="urine_urobilinogen",
        name="Urobilinogen",
        panel=ReportType.URINALYSIS,
        unit="mg/dL",
        synonyms=(
            "Urine Urobilinogen",
            "Urobilinogen, Semi-Qn",
            "Urobilinogen Urine",
            "Urobilinogen, UA",
            "Urobilinogen (Urine)",
            "UBG",
        ),
        convertible={"EU/dL": 1.0},
        ranges=both(None, below(2)),
        plausible=Limits(0, 100),
        words=(*NEGATIVE, "Normal", *GRADES),
        normal_words=(*NEGATIVE, "Normal"),
        source=f"range: {_BRONSON} (below 2.0)",
    ),
    Analyte(
        key="urine_color",
        name="Color",
        panel=ReportType.URINALYSIS,
        unit="",
        synonyms=("Colour", "Urine Color", "Urine Colour", "Urine-Color", "Color, Urine", "Color, UA", "Color (Urine)"),
        words=(
            "Yellow",
            "Pale Yellow",
            "Light Yellow",
            "Dark Yellow",
            "Straw",
            "Amber",
            "Dark Amber",
            "Colorless",
            "Orange",
            "Red",
            "Pink",
            "Brown",
            "Green",
        ),
        normal_words=("Yellow", "Pale Yellow", "Light Yellow", "Straw", "Amber"),
        source="normal words: Davis's Laboratory and Diagnostic Tests, Urinalysis",
    ),
    Analyte(
        key="urine_appearance",
        name="Appearance",
        panel=ReportType.URINALYSIS,
        unit="",
        synonyms=(
            "Clarity",
            "Urine Appearance",
            "Turbidity",
            "Urine Clarity",
            "Appearance, Urine",
            "Appearance, UA",
            "Character",
            "Transparency",
        ),
        words=("Clear", "Hazy", "Slightly Hazy", "Slightly Cloudy", "Cloudy", "Turbid", "Bloody"),
        normal_words=("Clear",),
        source="normal words: Davis's Laboratory and Diagnostic Tests, Urinalysis",
    ),
    _cells("wbc", "WBC", ("Urine WBC", "White Blood Cells", "Pus Cells", "WBC (Urine)", "Leukocytes", "WBC, Urine"), 2),
    _cells("rbc", "RBC", ("Urine RBC", "Red Blood Cells", "RBC (Urine)", "Erythrocytes", "RBC, Urine"), 3),
)
