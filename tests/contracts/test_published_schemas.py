"""`schemas/` is exactly what the code exports, describes what fewbits wrote, and grows only by addition.

`frozen/` holds what was published: schemas and documents as they were then. They are never edited; what a release publishes
anew is added (`fewbits schema write`). When a test here fails because a field, a type or an enum value is gone, the answer is a
new major version of that artifact, not a new frozen copy.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fewbits.api.schemas import PUBLISHED, Published, check_files, export_schema, published_for
from fewbits.core.codec import decode, encode_pretty

ROOT = Path(__file__).resolve().parents[2]
FROZEN = Path(__file__).parent / "frozen"
DOCUMENTS = sorted((FROZEN / "documents").glob("*.json"))
EARLIER_SUMMARY = "sweep_summary.2.1.0"
COMMON_FIELDS = {"schema_version", "generated_at", "execution_lane", "vram_profile", "provenance"}
LIMITS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
)
Schema = dict[str, Any]
Compared = tuple[str, str, str]


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
class TestPublished:
    def test_the_file_is_what_the_code_exports(self, published: Published) -> None:
        written = (ROOT / "schemas" / published.file_name).read_bytes()
        assert written == encode_pretty(export_schema(published)), "run `fewbits schema write schemas`"

    def test_it_is_a_schema_that_anybody_can_use(self, published: Published) -> None:
        schema = load(ROOT / "schemas" / published.file_name)
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"].endswith("2020-12/schema")
        assert schema["title"].startswith("fewbits ")
        root = definition(schema, schema)
        assert "schema_version" in root["required"]
        assert ("additionalProperties" in root) == published.strict

    def test_fields_are_described(self, published: Published) -> None:
        """Not every name needs words, but the docstrings of the records have to arrive."""
        schema = load(ROOT / "schemas" / published.file_name)
        assert any("description" in field for one in schema["$defs"].values() for field in one.get("properties", {}).values())

    def test_it_adds_to_what_was_frozen(self, published: Published) -> None:
        frozen = load(FROZEN / "schemas" / published.file_name)
        assert list(differences(frozen, load(ROOT / "schemas" / published.file_name))) == []

    def test_there_is_a_frozen_document(self, published: Published) -> None:
        versions = {load(path)["schema_version"] for path in DOCUMENTS}
        assert published in {published_for(version) for version in versions}


def test_nothing_else_is_published() -> None:
    expected = {published.file_name for published in PUBLISHED.values()}
    assert {path.name for path in (ROOT / "schemas").iterdir()} == expected
    assert {path.name for path in (FROZEN / "schemas").iterdir()} >= expected


def test_explorer_artifacts_have_the_five_common_fields() -> None:
    names = [name for name in PUBLISHED if name.startswith("explorer.")]
    assert len(names) == 4
    for name in names:
        schema = load(ROOT / "schemas" / PUBLISHED[name].file_name)
        root = definition(schema, schema)
        assert set(root["required"]) >= COMMON_FIELDS
        assert set(root["properties"]["provenance"]) == {"$ref"}


def test_the_summary_adds_to_the_version_before() -> None:
    """This one against 2.1.0. Rates were always between 0 and 1; now the schema says so."""
    frozen = load(FROZEN / "schemas" / f"{EARLIER_SUMMARY}.schema.json")
    found = list(differences(frozen, load(ROOT / "schemas" / PUBLISHED["sweep_summary.v2"].file_name)))
    rates = ("determinism_rate", "frontier_success_rate", "missing_telemetry_rate", "polluted_run_rate")
    expected = {f"$.stability_kpis.{name}: new limit {limit}" for name in rates for limit in ("minimum", "maximum")}
    assert set(found) == expected | {"$.schema_version: new limit pattern", "$.schema_version: newly required"}


@pytest.mark.parametrize("path", sorted((FROZEN / "schemas").glob("sweep_summary.2.[3-9]*.json")), ids=lambda path: path.stem)
def test_the_summary_adds_to_every_version_since_2_3(path: Path) -> None:
    """2.2.0 is the frozen `sweep_summary.v2`."""
    assert list(differences(load(path), load(ROOT / "schemas" / PUBLISHED["sweep_summary.v2"].file_name))) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_documents_of_the_past_are_still_read(path: Path) -> None:
    (check,) = check_files([path]).checks
    assert check.status == "PASS", check.evidence
    document = load(path)
    published = published_for(document["schema_version"])
    assert published is not None
    record = decode(path.read_bytes(), published.record, str(path))
    again = json.loads(encode_pretty(record))
    assert subset(document, again), "reading and writing lost something"


LEAVES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=3) | st.just([]) | st.just({})
)


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(DOCUMENTS), data=st.data())
def test_what_our_reader_takes_follows_the_schema(path: Path, data: st.DataObject) -> None:
    """`schema check` relies on it; unknown fields are the other way round: the schema lets them pass, the reader does not."""
    document = load(path)
    published = published_for(document["schema_version"])
    assert published is not None
    for _ in range(data.draw(st.integers(1, 3))):
        spoil(document, data)
    try:
        msgspec.convert(document, published.record)
    except msgspec.ValidationError:
        return
    errors = validator(published).iter_errors({"schema_version": published.name} | document)
    assert [error.message for error in errors if list(error.path) != ["schema_version"]] == []


@functools.cache
def validator(published: Published) -> Draft202012Validator:
    return Draft202012Validator(export_schema(published))


def spoil(value: Any, data: st.DataObject) -> None:
    """Replace, remove or add something at a random place."""
    while isinstance(value, dict | list) and value:
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 5)) == 0:
            if isinstance(value, dict) and data.draw(st.booleans()):
                del value[key]
            else:
                value[key] = data.draw(LEAVES)
            return
        value = inner


def subset(old: Any, new: Any) -> bool:
    """Whether everything in `old` is in `new`; new keys may have come."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and subset(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(old) == len(new) and all(map(subset, old, new))
    return bool(old == new)


def definition(schema: Schema, root: Schema) -> Schema:
    """The schema behind a reference."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def differences(old: Schema, new: Schema) -> Iterator[str]:
    """What a reader or a writer of `old` documents would trip over in `new`, one line each."""
    yield from Comparison(old, new).of(old, new, "$")


class Comparison:
    """Walks two schemas side by side, each with its own definitions."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self.old, self.new = old, new
        self.open: set[Compared] = set()

    def of(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        place = (json.dumps(old, sort_keys=True), json.dumps(new, sort_keys=True), path if "$ref" not in old else "")
        if place in self.open:
            return
        self.open.add(place)
        before, after = self.branches(old, self.old), self.branches(new, self.new)
        if set(before) != set(after):
            yield f"{path}: {' or '.join(sorted(before))} became {' or '.join(sorted(after))}"
        for kind in sorted(set(before) & set(after)):
            yield from self.one(before[kind], after[kind], path)

    @staticmethod
    def branches(schema: Schema, root: Schema) -> dict[str, Schema]:
        """The alternatives of a union by what tells them apart."""
        found: dict[str, Schema] = {}
        for branch in definition(schema, root).get("anyOf", [schema]):
            inner = definition(branch, root)
            values = inner.get("enum", [inner["const"]] if "const" in inner else None)
            kind = inner.get("type") or ({str: "string"}.get(type(values[0]), "number") if values else "anything")
            found[f"{kind} {inner['title']}" if kind == "object" and "anyOf" in schema and "title" in inner else kind] = inner
        return found

    def one(self, old: Schema, new: Schema, path: str) -> Iterator[str]:
        yield from self.limits(old, new, path)
        for name, field in old.get("properties", {}).items():
            if name not in new.get("properties", {}):
                yield f"{path}.{name}: gone"
            else:
                yield from self.of(field, new["properties"][name], f"{path}.{name}")
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
            yield f"{path}.{name}: newly required"
        for name in sorted(set(old.get("required", ())) - set(new.get("required", ()))):
            yield f"{path}.{name}: may be absent now"
        for name in ("items", "additionalProperties"):
            before, after = old.get(name), new.get(name)
            if isinstance(before, dict) and isinstance(after, dict):
                yield from self.of(before, after, f"{path}[]")
            elif before is None and after is not None:
                yield f"{path}: {name} newly restricted"

    @staticmethod
    def limits(old: Schema, new: Schema, path: str) -> Iterator[str]:
        before, after = old.get("enum", [old["const"]] if "const" in old else None), new.get("enum")
        after = [new["const"]] if "const" in new else after
        if before is None and after is not None:
            yield f"{path}: only some values now"
        if before is not None and after is None:
            yield f"{path}: any value now"
        if before is not None and after is not None:
            yield from (f"{path}: value {value!r} gone" for value in before if value not in after)
        yield from (f"{path}: new limit {name}" for name in LIMITS if name in new and new[name] != old.get(name))


THERMAL = export_schema(PUBLISHED["explorer.thermal_stability.v1"])


def root_of(schema: Schema) -> Schema:
    found: Schema = schema["$defs"]["ThermalArtifact"]
    return found


def rename_a_definition(schema: Schema) -> None:
    text = json.dumps(schema).replace("#/$defs/RisingRuns", "#/$defs/Stretch")
    schema.update(json.loads(text))
    schema["$defs"]["Stretch"] = schema["$defs"].pop("RisingRuns")


BREAKS: dict[str, tuple[Callable[[Schema], Any], str]] = {
    "a field is gone": (lambda s: root_of(s)["properties"].pop("points"), "$.points: gone"),
    "a nested field is gone": (lambda s: s["$defs"]["ThermalPoint"]["properties"].pop("polluted"), "$.points[].polluted: gone"),
    "a type changed": (
        lambda s: root_of(s)["properties"].update(recommendation={"type": "number"}),
        "$.recommendation: string became number",
    ),
    "null came": (
        lambda s: root_of(s)["properties"].update(recommendation={"anyOf": [{"type": "string"}, {"type": "null"}]}),
        "$.recommendation: string became null or string",
    ),
    "null went": (
        lambda s: root_of(s)["properties"].update(heat_soak_detected={"type": "boolean"}),
        "$.heat_soak_detected: boolean or null became boolean",
    ),
    "a field is required": (lambda s: root_of(s)["required"].append("samples"), "$.samples: newly required"),
    "a field may be absent": (lambda s: root_of(s)["required"].remove("points"), "$.points: may be absent now"),
    "an enum value is gone": (
        lambda s: s["$defs"]["ThermalDevice"]["enum"].remove("gpu"),
        "$.device: value 'gpu' gone",
    ),
    "a limit came": (
        lambda s: s["$defs"]["ThermalThresholds"]["properties"]["monotonic_window"].update(minimum=1),
        "$.thresholds.monotonic_window: new limit minimum",
    ),
    "unknown fields are refused": (
        lambda s: root_of(s).update(additionalProperties=False),
        "$: additionalProperties newly restricted",
    ),
    "text became a choice": (
        lambda s: root_of(s)["properties"].update(execution_lane={"enum": ["lab"]}),
        "$.execution_lane: only some values now",
    ),
    "another version": (
        lambda s: root_of(s)["properties"].update(schema_version={"const": "explorer.thermal_stability.v2"}),
        "$.schema_version: value 'explorer.thermal_stability.v1' gone",
    ),
}
ADDITIONS: dict[str, Callable[[Schema], Any]] = {
    "nothing": lambda s: s,
    "a field": lambda s: root_of(s)["properties"].update(later={"type": "string"}),
    "an enum value": lambda s: s["$defs"]["ThermalDevice"]["enum"].append("npu"),
    "other words": lambda s: root_of(s).update(description="other", title="Other"),
    "another name inside": rename_a_definition,
    "a definition": lambda s: s["$defs"].update(Later={"type": "object"}),
}


class TestTheComparisonItself:
    @pytest.mark.parametrize(("change", "said"), BREAKS.values(), ids=BREAKS)
    def test_it_sees_a_break(self, change: Callable[[Schema], Any], said: str) -> None:
        changed = copy.deepcopy(THERMAL)
        change(changed)
        assert said in list(differences(THERMAL, changed))

    @pytest.mark.parametrize("change", ADDITIONS.values(), ids=ADDITIONS)
    def test_it_lets_additions_pass(self, change: Callable[[Schema], Any]) -> None:
        changed = copy.deepcopy(THERMAL)
        change(changed)
        assert list(differences(THERMAL, changed)) == []
