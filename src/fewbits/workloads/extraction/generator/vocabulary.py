"""What reports are made of besides results: invented laboratories and people, labels, remarks."""

from __future__ import annotations

from fewbits.records.extraction import ReportType, Sex

LABORATORIES = (
    ("Northgate Clinical Laboratories", "1480 Harbor View Road, Suite 200, Millbrook", "Tel (555) 010-4471   CLIA 99D0000001"),
    ("Meridian Diagnostics", "27 Queen Anne Terrace, Ashford", "Telephone 01632 960 118"),
    ("St. Brigid's Hospital Laboratory", "Department of Pathology, Level 2 East", "Director: R. Calloway, MD"),
    ("Labor Dr. Weidner & Partner", "Lindenstrasse 14, 99998 Altfeld", "Tel. 0800 555 0142"),
    ("Sunrise Path Labs", "Plot 18, Lake Road, Navapur", "NABL MC-00000   Helpline 1800 555 0199"),
    ("Laboratorio Central San Telmo", "Av. de la Ribera 231, Villanueva", "Tel. 900 555 014"),
    ("Cedar Valley Medical Center", "Core Laboratory, 900 Cedar Valley Parkway", "Phone 555-0163   Fax 555-0164"),
    ("PrairieLab Reference Services", "P.O. Box 5500, Fort Landing", "CAP 0000000   CLIA 99D0000002"),
    ("Kestrel Biomedical", "Unit 6, Orchard Business Park", "www.kestrel.example"),
    ("Hanseong Medical Laboratory", "3F, 52 Dongmun-ro, Seoha-gu", "Tel 02-555-0170"),
    ("Bluewater Pathology Associates", "310 Marina Crescent, Port Ellery", "Accreditation no. 00000"),
    ("University Hospital Eastmoor", "Clinical Chemistry and Haematology", "Eastmoor EM1 0AA"),
)
"""Name and two lines below it."""

GIVEN_NAMES = {
    Sex.FEMALE: (
        "Amara", "Ingrid", "Mei", "Priya", "Fatima", "Lucia", "Hannah", "Aoife", "Yuki", "Chidinma", "Zofia", "Leila", "Grace",
        "Marisol", "Thandiwe", "Elena", "Soo-jin", "Noor", "Birgit", "Claire", "Rebecca", "Ananya", "Katarzyna", "Inés",
    ),
    Sex.MALE: (
        "Kwame", "Lars", "Wei", "Arjun", "Omar", "Mateo", "Jonas", "Cormac", "Haruto", "Emeka", "Piotr", "Darius", "Samuel",
        "Diego", "Sipho", "Nikolai", "Min-ho", "Yusuf", "Dieter", "Luc", "Daniel", "Rohan", "Tomasz", "José",
    ),
}  # fmt: skip

FAMILY_NAMES = (
    "Okafor", "Lindqvist", "Zhang", "Raman", "Haddad", "Fuentes", "Baumann", "O'Donnell", "Tanaka", "Adeyemi", "Nowak",
    "Karimi", "Whitfield", "Castillo", "Dlamini", "Petrov", "Park", "Rahman", "Vogel", "Moreau", "Goldberg", "Iyer",
    "Santos-Reyes", "van der Berg", "Kowalski", "Brennan", "Muñoz", "Nguyen", "Abernathy", "Sorensen",
)  # fmt: skip

PHYSICIANS = ("Dr. H. Marlowe", "Dr. S. Iqbal", "T. Brandt, MD", "Dr. Y. Ono", "L. Fontaine, NP", "Dr. P. Achebe")

LABELS = {
    "name": ("Patient", "Patient Name", "Name"),
    "birth": ("DOB", "Date of Birth", "Birth date"),
    "age": ("Age",),
    "sex": ("Sex", "Gender"),
    "age_sex": ("Age/Sex", "Age / Gender"),
    "id": ("Patient ID", "MRN", "Patient No."),
    "reported": ("Report date", "Reported", "Date reported", "Date of report"),
    "date": ("Date",),
    "collected": ("Collected", "Collection date", "Specimen collected"),
    "specimen": ("Specimen ID", "Accession", "Lab No."),
    "physician": ("Physician", "Ordered by", "Referring doctor"),
}

HEADINGS = {
    "test": ("Test", "Test Name", "Analyte", "Component", "Investigation"),
    "value": ("Result", "Value", "Results"),
    "unit": ("Units", "Unit"),
    "range": ("Reference Range", "Ref. Range", "Reference Interval", "Normal Range"),
    "flag": ("Flag", "Abn", "Flags"),
}

PANEL_TITLES = {
    ReportType.CBC: ("Complete Blood Count", "CBC with Differential", "Haematology", "Full Blood Count"),
    ReportType.METABOLIC: ("Comprehensive Metabolic Panel", "Metabolic Panel", "Chemistry", "Renal and Electrolytes"),
    ReportType.LIPID: ("Lipid Panel", "Lipid Profile"),
    ReportType.THYROID: ("Thyroid Function Tests", "Thyroid Panel", "Thyroid Profile"),
    ReportType.LIVER: ("Hepatic Function Panel", "Liver Function Tests", "Liver Panel"),
    ReportType.URINALYSIS: ("Urinalysis", "Urinalysis, Complete", "Urine Routine Examination"),
    ReportType.OTHER: ("Additional Tests", "Other Tests"),
}

COMMENTS = (
    "Specimen received at room temperature. No hemolysis seen.",
    "Results relate only to the sample as received. Please correlate clinically.",
    "Non-fasting specimen. Repeat after a fast of 12 hours if clinically indicated.",
    "Slight hemolysis noted; potassium may be falsely raised.",
    "For patients at high risk, a target below the printed limit may apply.",
    "Critical results are called to the ordering provider on the day of testing.",
    "Estimates are less reliable in pregnancy and at extremes of body size.",
    "This report replaces any preliminary report issued earlier.",
    "Reference intervals are those of adults, unless stated otherwise.",
)

FOOTNOTES = (
    "Repeated and confirmed.",
    "Measured on a second specimen.",
    "Calculated, not measured.",
    "Performed at a partner laboratory.",
    "Interpret with caution: sample older than 24 hours.",
)

LEGENDS = {"letters": "H = high, L = low, HH / LL = critical, A = abnormal", "star": "* outside of the reference range"}

CLOSINGS = ("*** End of report ***", "Electronically signed. Valid without signature.", "End of Report", "Page 1 of 1")

TITLES = ("Laboratory Report", "LABORATORY REPORT", "Final Report", "Clinical Laboratory Results", "Test Report")
