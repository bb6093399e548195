"""The published JSON Schemas: generated from the records, written to `schemas/`, used to check files.

What fewbits writes is described with room for fields to come, as additive growth needs; what people write is described strictly.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fewbits.analysis.gate_report import build_report
from fewbits.analysis.wording import count, listed
from fewbits.core.codec import encode_canonical, encode_pretty
from fewbits.core.errors import SpecError
from fewbits.core.files import atomic_write
from fewbits.records.base import Record
from fewbits.records.baseline import BaselineHistory, ResolvedBaselines
from fewbits.records.baseline_upkeep import BaselineHealth
from fewbits.records.context import ContextCeilingArtifact, ContextRollupArtifact
from fewbits.records.detector_run import AblationTable, BuildReport, CocoMetrics, DetectionLabels, StageLog
from fewbits.records.determinism import DeterminismReport
from fewbits.records.extraction import ExtractionDocument, LabelledReports
from fewbits.records.extraction_run import BenchmarkResults, PageLabels, PerRunRow
from fewbits.records.frontier_artifact import FrontierArtifact
from fewbits.records.gates import GateCheck, GateReport, GateStatus
from fewbits.records.kpis import KpiReport
from fewbits.records.plan import Plan
from fewbits.records.preflight import Preflight
from fewbits.records.provenance import SourceFile
from fewbits.records.recipe import ProbeRow, Recipe, RecipeManifest, RecipePlan
from fewbits.records.sensitivity import SensitivityAgreement, SensitivityManifest, SensitivityReport, SensitivityRollup
from fewbits.records.sidecar import SidecarProfiles, SidecarRun
from fewbits.records.summary import SUMMARY_SCHEMA, SweepSummary
from fewbits.records.task_run import TaskRun
from fewbits.records.thermal import ThermalArtifact
from fewbits.records.trial import Trial
from fewbits.store.history import HistoryFile
from fewbits.store.summaries import read_bounded

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SUMMARY_NAME = f"sweep_summary.v{SUMMARY_SCHEMA.split('.')[0]}"
_SHOWN_ERRORS = 5
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Published:
    """One schema. `name` is its file's stem and, but for the summary, the `schema_version` of its documents."""

    name: str
    title: str
    record: type[Record]
    strict: bool = False
    """People write these documents: an unknown key is a slip, not a field to come."""

    @property
    def file_name(self) -> str:
        """Name of the published file."""
        return f"{self.name}.schema.json"


def _own_version(record: type[Record]) -> str:
    """Return the `schema_version` that a record declares."""
    field = next(field for field in msgspec.structs.fields(record) if field.name == "schema_version")
    return str(field.default)


PUBLISHED: Mapping[str, Published] = {
    published.name: published
    for published in (
        Published(SUMMARY_NAME, f"sweep summary, up to {SUMMARY_SCHEMA}", SweepSummary),
        *(
            Published(_own_version(record), title, record, strict=record in (SidecarProfiles, LabelledReports))
            for title, record in (
                ("frontier explorer artifact", FrontierArtifact),
                ("thermal stability profile", ThermalArtifact),
                ("context ceiling", ContextCeilingArtifact),
                ("context sweep rollup", ContextRollupArtifact),
                ("history of explorer artifacts", HistoryFile),
                ("plan of a sweep", Plan),
                ("trial, a row of trials.jsonl and canary.jsonl", Trial),
                ("gate report", GateReport),
                ("KPI report", KpiReport),
                ("determinism report", DeterminismReport),
                ("single task run", TaskRun),
                ("history of baselines", BaselineHistory),
                ("baselines of a run", ResolvedBaselines),
                ("health of the baselines", BaselineHealth),
                ("sidecar profiles (written by people)", SidecarProfiles),
                ("sidecar run, a row of sidecar.jsonl", SidecarRun),
                ("sensitivity manifest", SensitivityManifest),
                ("layer sensitivity report", SensitivityReport),
                ("rollup of sensitivity runs", SensitivityRollup),
                ("agreement of a sensitivity ranking with measured ablation", SensitivityAgreement),
                ("recipe: a type for every tensor of a GGUF", Recipe),
                ("manifest of a recipe", RecipeManifest),
                ("plan of a recipe", RecipePlan),
                ("probe of a recipe's search, a row of probes.jsonl", ProbeRow),
                ("COCO metrics of one detector", CocoMetrics),
                ("labels of a detector sweep's images", DetectionLabels),
                ("stages of a detector sweep", StageLog),
                ("build of a detector, in its ONNX file's metadata", BuildReport),
                ("ablation of a detector's recipe", AblationTable),
                ("what `fewbits extract` read", ExtractionDocument),
                ("labelled set of lab reports (written by people too)", LabelledReports),
                ("pages of an extraction sweep", PageLabels),
                ("run of an extraction benchmark, a row of per_run.jsonl", PerRunRow),
                ("results of an extraction benchmark", BenchmarkResults),
                ("preflight of a machine", Preflight),
            )
        ),
    )
}
"""Every published schema, by name."""


def find(name: str) -> Published:
    """Return a schema by its name, or by the `schema_version` of a document. Raises `SpecError` naming what there is."""
    found = PUBLISHED.get(name) or published_for(name)
    if found is None:
        raise SpecError.single("NAME", f"there is no schema {name!r}", f"there are {', '.join(PUBLISHED)}")
    return found


def published_for(version: str) -> Published | None:
    """Return the schema of documents that declare `version`; `None` when it is not known, or newer than ours."""
    if (found := PUBLISHED.get(version)) is not None:
        return found if found.name != SUMMARY_NAME else None
    if not re.fullmatch(r"\d{1,5}\.\d{1,5}\.\d{1,5}", version, re.ASCII):
        return None
    numbers, ours = (tuple(map(int, text.split("."))) for text in (version, SUMMARY_SCHEMA))
    return PUBLISHED[SUMMARY_NAME] if numbers[0] == ours[0] and numbers <= ours else None


def export_schema(published: Published) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12), with every field's description."""
    schema: dict[str, Any] = msgspec.json.decode(encode_canonical(msgspec.json.schema(published.record)))
    definitions: dict[str, Any] = schema["$defs"]
    described = {kind.__name__: _descriptions(kind) for kind in _structs(published.record)}
    for name, definition in definitions.items():
        if not published.strict and definition.get("additionalProperties") is False:
            del definition["additionalProperties"]
        for field, text in described.get(name, {}).items():
            definition["properties"][field].setdefault("description", text)
    root = definitions[published.record.__name__]
    root["properties"]["schema_version"] = _version_schema(published)
    root["required"] = ["schema_version", *(name for name in root["required"] if name != "schema_version")]
    head = {"$schema": DIALECT, "$id": f"urn:fewbits:schema:{published.name}", "title": f"fewbits {published.title}"}
    return {**head, **schema}


def _version_schema(published: Published) -> dict[str, Any]:
    if published.name != SUMMARY_NAME:
        return {"const": published.name}
    major = SUMMARY_SCHEMA.split(".", maxsplit=1)[0]
    return {"type": "string", "pattern": rf"^{major}\.[0-9]+\.[0-9]+$"}


def _structs(root: type[Record]) -> set[type]:
    """Return every record that a record can hold, itself included."""
    found: set[type] = set()
    open_types: list[Any] = [msgspec.inspect.type_info(root)]
    while open_types:
        info = open_types.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                continue
            found.add(info.cls)
            open_types.extend(field.type for field in info.fields)
        inner = (getattr(info, name, None) for name in ("item_type", "key_type", "value_type", "type"))
        open_types.extend(one for one in inner if isinstance(one, msgspec.inspect.Type))
        open_types.extend(getattr(info, "types", ()))
    return found


@functools.cache
def _descriptions(record: type) -> dict[str, str]:
    """Return field -> the docstring below it, inherited ones included: units and what `null` means are written there."""
    texts: dict[str, str] = {}
    for base in reversed(record.__mro__):
        if base in {object, msgspec.Struct} or not issubclass(base, msgspec.Struct):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class is a class
        for statement, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and _is_text(after):
                texts[statement.target.id] = " ".join(inspect.cleandoc(after.value.value).split())  # type: ignore[attr-defined]
    return texts


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    )


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema into a folder; returns the files. Raises `StoreError`."""
    written = []
    for published in PUBLISHED.values():
        atomic_write(folder / published.file_name, encode_pretty(export_schema(published)))
        written.append(folder / published.file_name)
    return written


def check_files(paths: Sequence[Path]) -> GateReport:
    """Check each file against the schema that its `schema_version` names; `.jsonl` files line by line.

    A file that cannot be read, is no JSON, or declares an unknown version is a FAIL like any other.
    """
    checks, sources = [], []
    for path in paths:
        subject = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        try:
            data = read_bounded(path, subject, "give the path of a file that fewbits wrote")
        except SpecError as error:
            checks.append(_failed(subject, "UNREADABLE", error.problems[0].message))
            continue
        check, version = _check_lines(subject, data) if path.suffix == ".jsonl" else _check_document(subject, data)
        checks.append(check)
        sources.append(SourceFile(path=subject, sha256=hashlib.sha256(data).hexdigest(), schema_version=version))
    return build_report("schema", checks, sources=sources, thresholds={})


def _check_document(subject: str, data: bytes) -> tuple[GateCheck, str | None]:
    try:
        document = _object(data)
        published = _published(document)
        _validate(document, published, "")
        return _passed(subject, f"it follows {published.name}{_check_history(document)}"), document["schema_version"]
    except _Nonconforming as wrong:
        return _failed(subject, wrong.code, wrong.evidence), wrong.version


def _check_lines(subject: str, data: bytes) -> tuple[GateCheck, str | None]:
    if data and not data.endswith(b"\n"):
        last = data.count(b"\n") + 1
        why = f"line {last} was cut off while it was written; resuming the run drops it"
        return _failed(subject, "TORN_LINE", why), None
    rows: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            document = _object(line)
            published = _published(document)
            _validate(document, published, f"line {number}: ")
        except _Nonconforming as wrong:
            where = "" if wrong.code == "DOES_NOT_CONFORM" else f"line {number}: "
            return _failed(subject, wrong.code, f"{where}{wrong.evidence}"), wrong.version
        rows[published.name] = rows.get(published.name, 0) + 1
    if not rows:
        return _failed(subject, "EMPTY", "it holds no line"), None
    words = listed([f"{count(number, 'row')} of {name}" for name, number in sorted(rows.items())])
    return _passed(subject, words), next(iter(rows)) if len(rows) == 1 else None


class _Nonconforming(Exception):  # noqa: N818 - a value on its way to a check, caught in this module
    """Why a document fails."""

    def __init__(self, code: str, evidence: str, version: str | None = None) -> None:
        super().__init__(evidence)
        self.code, self.evidence, self.version = code, evidence, version


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Nonconforming("NOT_JSON", f"{error}: truncated, edited, or another kind of file") from error
    if not isinstance(document, dict):
        raise _Nonconforming("NOT_JSON", "it is JSON, but no object")
    return document


def _published(document: Mapping[str, Any]) -> Published:
    version = document.get("schema_version")
    known = f"known are {', '.join(PUBLISHED)}"
    if not isinstance(version, str):
        raise _Nonconforming("NO_VERSION", f"it declares no schema_version; {known}")
    found = published_for(version)
    if found is None:
        old = "; `fewbits import` converts the older summaries" if version.startswith("1.") else ""
        raise _Nonconforming(
            "UNKNOWN_VERSION", f"schema_version {version[:_SHOWN_CHARACTERS]!r} is not known{old}; {known}", version
        )
    return found


def _check_history(document: Mapping[str, Any]) -> str:
    """Check the artifacts inside a history too; those of another fewbits are kept as they are and only counted."""
    if document["schema_version"] != _own_version(HistoryFile):
        return ""
    unknown = 0
    for index, entry in enumerate(document["history"]):
        version = entry.get("schema_version")
        published = published_for(version) if isinstance(version, str) else None
        if published is None:
            unknown += 1
        else:
            _validate(entry, published, f"history[{index}]: ")
    others = f", {unknown} of a version that is not known here" if unknown else ""
    return f" ({count(len(document['history']), 'artifact')}{others})"


def _validate(document: Mapping[str, Any], published: Published, place: str) -> None:
    """Hold a document against its schema. What our own reader takes follows it, and that is known ten times sooner."""
    if _is_read(document, published):
        return
    errors = list(islice(_validator(published.name).iter_errors(document), _SHOWN_ERRORS + 1))
    if errors:
        words = "; ".join(map(_words, errors[:_SHOWN_ERRORS]))
        more = "; and more" if len(errors) > _SHOWN_ERRORS else ""
        version = document["schema_version"]
        raise _Nonconforming("DOES_NOT_CONFORM", f"{place}not {published.name}: {words}{more}", version)


def _is_read(document: Mapping[str, Any], published: Published) -> bool:
    try:
        msgspec.convert(document, published.record)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(export_schema(PUBLISHED[name]))


def _words(error: ValidationError) -> str:
    """Say where and what, from the innermost error: that of a union only says that nothing fits."""
    from jsonschema.exceptions import best_match

    inner = best_match(iter([error])) or error
    message = inner.message if len(inner.message) <= _SHOWN_CHARACTERS else f"{inner.message[: _SHOWN_CHARACTERS - 1]}…"
    return f"{inner.json_path}: {message}"


def _passed(subject: str, evidence: str) -> GateCheck:
    return GateCheck(name="schema", subject=subject, status=GateStatus.PASS, evidence=evidence)


def _failed(subject: str, code: str, evidence: str) -> GateCheck:
    return GateCheck(name="schema", subject=subject, status=GateStatus.FAIL, code=code, evidence=evidence)
