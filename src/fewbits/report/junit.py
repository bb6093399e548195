"""A gate's report as JUnit XML, which every CI server shows. Source of the shape: the JUnit schema of Jenkins' xUnit plugin."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from fewbits.records.gates import GateReport, GateStatus
from fewbits.report.escape import visible


def render_junit(report: GateReport) -> bytes:
    """Return one `testsuite` with one `testcase` per check; no times, so the same report gives the same bytes."""
    name = f"fewbits.{visible(report.gate)}"
    counts = {status: sum(check.status is status for check in report.checks) for status in GateStatus}
    suite = ET.Element(
        "testsuite",
        name=name,
        tests=str(len(report.checks)),
        failures=str(counts[GateStatus.FAIL]),
        errors="0",
        skipped=str(counts[GateStatus.SKIP]),
    )
    for check in report.checks:
        case = ET.SubElement(suite, "testcase", classname=f"{name}.{visible(check.name)}", name=visible(check.subject))
        if check.status is GateStatus.PASS:
            ET.SubElement(case, "system-out").text = visible(check.evidence)
        elif check.status is GateStatus.FAIL:
            ET.SubElement(case, "failure", message=visible(check.evidence), type=visible(check.code))
        else:
            ET.SubElement(case, "skipped", message=visible(f"{check.code}: {check.evidence}"))
    ET.indent(suite)
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True)) + b"\n"
