"""A gate's report as JUnit XML and as plain text: whole XML, honest counts, and nothing in a name that could do harm."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.analysis.gate_report import build_report
from fewbits.records.gates import GateCheck, GateReport, GateStatus
from fewbits.report.junit import render_junit
from fewbits.report.terminal_gates import render_gate

PASS, FAIL, SKIP = GateStatus.PASS, GateStatus.FAIL, GateStatus.SKIP

GOLDEN = """\
<?xml version='1.0' encoding='utf-8'?>
<testsuite name="fewbits.lab_guards" tests="3" failures="1" errors="0" skipped="1">
  <testcase classname="fewbits.lab_guards.vram_profile" name="summary">
    <system-out>measured under 'safe', judged as 'safe'</system-out>
  </testcase>
  <testcase classname="fewbits.lab_guards.cooldown" name="smollm2-135m Q8_0">
    <failure message="CPU package 61.0 °C at the start, target 50 °C" type="COOLDOWN_TARGET_NOT_MET" />
  </testcase>
  <testcase classname="fewbits.lab_guards.memory" name="smollm2-135m Q8_0">
    <skipped message="MEMORY_NO_SENSOR: neither RAM nor GPU memory in use was recorded" />
  </testcase>
</testsuite>
"""
GOLDEN_TEXT = """\
lab_guards: FAIL
  FAIL cooldown COOLDOWN_TARGET_NOT_MET · smollm2-135m Q8_0: CPU package 61.0 °C at the start, target 50 °C
  SKIP memory MEMORY_NO_SENSOR · smollm2-135m Q8_0: neither RAM nor GPU memory in use was recorded
  PASS vram_profile · summary: measured under 'safe', judged as 'safe'
"""


def check(status: GateStatus, name: str = "rule", subject: str = "m Q8_0", code: str = "", evidence: str = "3 of 4") -> GateCheck:
    return GateCheck(name=name, subject=subject, status=status, code=code, evidence=evidence)


def gate(*checks: GateCheck, name: str = "lab_guards", allow_skip: bool = False) -> GateReport:
    return build_report(name, checks, sources=[], thresholds={}, allow_skip=allow_skip)


def small_report() -> GateReport:
    return gate(
        check(PASS, "vram_profile", "summary", evidence="measured under 'safe', judged as 'safe'"),
        check(
            FAIL,
            "cooldown",
            "smollm2-135m Q8_0",
            "COOLDOWN_TARGET_NOT_MET",
            "CPU package 61.0 °C at the start, target 50 °C",
        ),
        check(SKIP, "memory", "smollm2-135m Q8_0", "MEMORY_NO_SENSOR", "neither RAM nor GPU memory in use was recorded"),
    )


def test_golden_shape() -> None:
    assert render_junit(small_report()).decode() == GOLDEN
    assert render_junit(small_report()) == render_junit(small_report())


def test_golden_text() -> None:
    assert render_gate(small_report()) == GOLDEN_TEXT


def test_a_report_without_checks() -> None:
    suite = ET.fromstring(render_junit(gate()))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped"), list(suite)) == ("0", "0", "0", [])
    assert render_gate(gate()) == "lab_guards: SKIP\n  nothing could be checked\n"


def test_an_allowed_skip_stays_a_skip() -> None:
    report = gate(check(SKIP, code="NO_SENSOR"), allow_skip=True)
    assert render_gate(report).startswith("lab_guards: SKIP (allowed)\n")
    assert ET.fromstring(render_junit(report)).get("skipped") == "1"


def test_text_gathers_the_subjects_of_one_finding() -> None:
    report = gate(*(check(SKIP, subject=f"m Q{n}", code="NO_SENSOR", evidence="no sensor") for n in range(3)))
    assert render_gate(report) == "lab_guards: SKIP\n  SKIP rule NO_SENSOR · m Q0, m Q1, m Q2: no sensor\n"


HOSTILE = [
    "<script>alert(1)</script>",
    '"\' onload="x',
    "]]>",
    "<!-- --><![CDATA[x]]>",
    "&amp; &lt; &#0; &bomb;",
    "\x00\x01\x08\x0b\x1b[31mred\x1b[0m\x7f\x9b",
    "line\nbreak\r\n\ttab",
    "\ud800 lone \udfff",
    "\ufffe\uffff",
    "\u202edesrever\u2066",
    "zero\u200bwidth\ufeff",
    "\U0001f600 astral \U000e0041",
    "x" * 100_000,
    "",
    " ",
]


def words_of(suite: ET.Element) -> list[str]:
    return [word for element in suite.iter() for word in (element.text, *element.attrib.values()) if word]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("status", GateStatus)
def test_hostile_words_are_only_words(text: str, status: GateStatus) -> None:
    report = gate(check(status, name=text, subject=text, code=text, evidence=text), name=text)
    suite = ET.fromstring(render_junit(report))
    assert [element.tag for element in suite.iter()] == [
        "testsuite",
        "testcase",
        {PASS: "system-out", FAIL: "failure", SKIP: "skipped"}[status],
    ]
    assert suite.get("tests") == "1"
    for word in words_of(suite):
        assert word.isprintable() or not word.strip()
    lines = render_gate(report).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    lines[1].encode()


def test_angle_brackets_come_back_as_they_were() -> None:
    report = gate(check(FAIL, subject='<script>"&', code="X", evidence="a < b & c > \"d\" 'e'"))
    (case,) = ET.fromstring(render_junit(report))
    assert case.get("name") == '<script>"&'
    assert case[0].get("message") == "a < b & c > \"d\" 'e'"


CHECKS = st.lists(
    st.builds(
        GateCheck,
        name=st.text(max_size=8),
        subject=st.text(st.characters(), max_size=12),
        status=st.sampled_from(GateStatus),
        code=st.text(max_size=8),
        evidence=st.text(st.characters(), max_size=20),
        measured=st.none(),
        limit=st.none(),
    ),
    max_size=6,
)


@given(checks=CHECKS)
def test_it_is_always_xml_and_the_counts_agree(checks: Sequence[GateCheck]) -> None:
    report = gate(*checks)
    suite = ET.fromstring(render_junit(report))
    tags = [case[0].tag for case in suite]
    assert int(suite.attrib["tests"]) == len(checks) == len(tags)
    assert int(suite.attrib["failures"]) == tags.count("failure") == len(report.failures)
    assert int(suite.attrib["skipped"]) == tags.count("skipped") == len(report.skip_reasons)
    assert suite.attrib["errors"] == "0"
    assert (report.status is PASS) == (bool(checks) and not report.failures and not report.skip_reasons)
    assert all(line.isprintable() for line in render_gate(report).splitlines())
