"""What one page says, drawn from its seed, and the same as the truth. Whatever is drawn here is printed by every layout."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, replace

from fewbits.extraction.analytes import ANALYTES
from fewbits.records.extraction import LabReport, LabTest, PatientInfo, ReportType, Sex
from fewbits.workloads.extraction.generator import vocabulary
from fewbits.workloads.extraction.generator.printing import Printing, draw_printing, printed_date
from fewbits.workloads.extraction.generator.results import Row, draw_row
from fewbits.workloads.extraction.generator.seeds import stream

PANELS = (
    ReportType.CBC,
    ReportType.METABOLIC,
    ReportType.LIPID,
    ReportType.THYROID,
    ReportType.LIVER,
    ReportType.URINALYSIS,
)
FIRST_DAY, DAYS = datetime.date(2021, 1, 4), 1700
"""Reports are dated within these days."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a layout has room for: rows in all, panels, and characters in a test's name."""

    rows: int
    panels: tuple[int, ...]
    """Numbers of panels that it can show; one of them is drawn."""
    name: int


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows under one title."""

    kind: ReportType
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a page prints. `fields` are the labels and texts of the patient's block, in their order."""

    laboratory: tuple[str, str, str]
    title: str
    fields: tuple[tuple[str, str], ...]
    patient: PatientInfo
    report_date: str | None
    panels: tuple[Panel, ...]
    comments: tuple[str, ...]
    footnotes: tuple[str, ...]
    closing: str
    headings: dict[str, str]
    printing: Printing


def draw_content(seed: int, room: Room, attempt: int = 0) -> Content:
    """Draw the content of the page with this seed for a layout with this room; each attempt gives another one."""
    rng = stream(seed, f"content {attempt}")
    printing = draw_printing(rng)
    sex = rng.choice((Sex.FEMALE, Sex.MALE))
    fields, patient, report_date = _draw_fields(sex, printing, rng)
    panels = _draw_panels(sex, printing, room, rng)
    panels, footnotes = _footnoted(panels, rng)
    comments = tuple(rng.sample(vocabulary.COMMENTS, rng.choices((0, 1, 2), (45, 35, 20))[0]))
    legend = vocabulary.LEGENDS.get(printing.marks)
    if legend is not None and rng.random() < 0.4:
        comments = (*comments, legend)
    return Content(
        laboratory=rng.choice(vocabulary.LABORATORIES),
        title=rng.choice(vocabulary.TITLES),
        fields=fields,
        patient=patient,
        report_date=report_date,
        panels=panels,
        comments=comments,
        footnotes=footnotes,
        closing=rng.choice(vocabulary.CLOSINGS),
        headings={key: rng.choice(words) for key, words in vocabulary.HEADINGS.items()},
        printing=printing,
    )


def truth(content: Content) -> LabReport:
    """Return the report as printed, without flags: `extraction.flags.flag_report` adds what follows from it."""
    tests = tuple(
        LabTest(
            test_name=row.name,
            value=row.value,
            unit=row.unit,
            reference_range=row.reference,
            printed_flag=row.mark,
            analyte=row.analyte,
        )
        for panel in content.panels
        for row in panel.rows
    )
    return LabReport(
        report_type=content.panels[0].kind,
        patient_info=content.patient,
        lab_name=content.laboratory[0],
        report_date=content.report_date,
        tests=tests,
    )


def _draw_fields(sex: Sex, printing: Printing, rng: random.Random) -> tuple[tuple[tuple[str, str], ...], PatientInfo, str | None]:
    """Draw the patient's block: what is printed, and the same as the truth; any of its fields may be left out."""
    label = {key: rng.choice(words) for key, words in vocabulary.LABELS.items()}
    reported = FIRST_DAY + datetime.timedelta(days=rng.randrange(DAYS))
    birth = reported - datetime.timedelta(days=rng.randrange(19 * 366, 92 * 365))
    age = reported.year - birth.year - ((reported.month, reported.day) < (birth.month, birth.day))
    name = _person(sex, rng)
    number = _patient_number(rng) if rng.random() < 0.85 else None
    show_birth, show_age, show_sex = rng.choice(
        ((True, True, True), (True, False, True), (False, True, True), (True, True, False))
    )
    birth_text, birth_truth = printed_date(birth, printing)
    sex_text = {"long": sex.value.capitalize(), "short": sex.value[0].upper()}[rng.choice(("long", "short"))]
    fields = [(label["name"], name)]
    if number is not None:
        fields.append((label["id"], number))
    if show_birth:
        fields.append((label["birth"], birth_text))
    if show_age and show_sex and rng.random() < 0.4:
        fields.append((label["age_sex"], rng.choice(("{} / {}", "{} Y / {}", "{} years / {}")).format(age, sex_text)))
    else:
        fields += [(label["age"], rng.choice(("{}", "{} years", "{} Y")).format(age))] * show_age + [
            (label["sex"], sex_text)
        ] * show_sex
    dated, report_date = _draw_dates(reported, label, printing, rng)
    extra = [
        (label["specimen"], f"{rng.choice('ABCSX')}{rng.randrange(10**6, 10**7)}"),
        (label["physician"], rng.choice(vocabulary.PHYSICIANS)),
    ]
    fields += [*dated, *rng.sample(extra, rng.choice((0, 1, 2)))]
    patient = PatientInfo(
        name=name,
        age=age if show_age else None,
        gender=sex if show_sex else None,
        patient_id=number,
        date_of_birth=birth_truth if show_birth else None,
    )
    return tuple(fields), patient, report_date


def _patient_number(rng: random.Random) -> str:
    """Draw a patient's number in one of several forms."""
    form = rng.choice(("{:07d}", "P-{:06d}", "MR{:08d}", "{:03d}-44-{:04d}"))
    return form.format(rng.randrange(10**3, 10**6), rng.randrange(10**4))


def _person(sex: Sex, rng: random.Random) -> str:
    """Draw a name, in one of the orders in which laboratories print it."""
    given, family = rng.choice(vocabulary.GIVEN_NAMES[sex]), rng.choice(vocabulary.FAMILY_NAMES)
    form = rng.choice(("{given} {family}", "{family}, {given}", "{given} {initial}. {family}", "{given} {family}"))
    name = form.format(given=given, family=family, initial=rng.choice("ABCDEFGHJKLMNPRSTW"))
    return name.upper() if rng.random() < 0.2 else name


def _draw_dates(
    reported: datetime.date, label: dict[str, str], printing: Printing, rng: random.Random
) -> tuple[list[tuple[str, str]], str | None]:
    """Draw the dates that are printed, and the report's own: it alone, or with the day of collection before or after it."""
    text, report_date = printed_date(reported, printing)
    collected, _ = printed_date(reported - datetime.timedelta(days=rng.randrange(4)), printing)
    # with a time behind it, a date that can be read in two ways would be printed in two ways as well
    plain = report_date == reported.isoformat()
    clock = f" {rng.randrange(6, 19):02}:{rng.randrange(60):02}" if plain and rng.random() < 0.3 else ""
    if rng.random() < 0.35:
        return [(label["date"] if rng.random() < 0.5 else label["reported"], text)], report_date
    both = [(label["collected"], collected + clock), (label["reported"], text + (clock and " 21:40"))]
    return both if rng.random() < 0.75 else both[::-1], report_date


def _draw_panels(sex: Sex, printing: Printing, room: Room, rng: random.Random) -> tuple[Panel, ...]:
    """Draw the panels, the first with the most rows (the report's type: no draws); now and then a test is there twice."""
    kinds = rng.sample(PANELS, rng.choice(room.panels))
    panels: list[Panel] = []
    for kind in kinds:
        known = [analyte for analyte in ANALYTES if analyte.panel is kind]
        count = min(room.rows // len(kinds), round(len(known) * rng.uniform(0.6, 1.0)))
        kept = [known[place] for place in sorted(rng.sample(range(len(known)), max(count, 2)))]
        rows = [draw_row(analyte, sex, printing, rng, name_room=room.name) for analyte in kept]
        if rng.random() < 0.04:
            place = rng.randrange(len(rows) - 1)
            again = draw_row(kept[place], sex, printing, rng, name_room=room.name)
            rows[place + 1] = replace(rows[place], value=again.value, mark=again.mark)
        panels.append(Panel(kind, rng.choice(vocabulary.PANEL_TITLES[kind]), tuple(rows)))
    first, *further = sorted(panels, key=lambda panel: -len(panel.rows))
    return (first, *(replace(panel, rows=panel.rows[: len(first.rows) - 1]) for panel in further))


def _footnoted(panels: tuple[Panel, ...], rng: random.Random) -> tuple[tuple[Panel, ...], tuple[str, ...]]:
    """Give some rows of some pages a remark below the table, by number."""
    if rng.random() > 0.25:
        return panels, ()
    remarks = tuple(rng.sample(vocabulary.FOOTNOTES, rng.choice((1, 2))))
    marked = []
    for panel in panels:
        chosen = {rng.randrange(len(panel.rows)): number for number in range(1, len(remarks) + 1)}
        marked.append(
            replace(panel, rows=tuple(replace(row, footnote=chosen.get(place)) for place, row in enumerate(panel.rows)))
        )
    return tuple(marked), remarks
