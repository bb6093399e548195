"""The sidecar around a sweep: llama-bench on each variant after the matrix, kept apart, read back for the summary.

It is diagnostics: nothing here decides anything, and nothing that goes wrong here ends a sweep.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fewbits.core.errors import Problem, SpecError
from fewbits.records.plan import Plan, SidecarRequest, SweepSpec
from fewbits.records.sidecar import (
    SIDECAR_PROFILES_SCHEMA,
    SidecarBlock,
    SidecarProfile,
    SidecarProfiles,
    SidecarRun,
    SidecarStatus,
)
from fewbits.records.variant import Variant
from fewbits.store.journal import JournalWriter
from fewbits.store.run_directory import RunDirectory
from fewbits.sweep.progress import SweepObserver

if TYPE_CHECKING:
    from fewbits.probes.sidecar import SidecarOutcome

_PLACEHOLDER = re.compile(r"\{[A-Za-z_]*\}")
_KNOWN_PLACEHOLDERS = ("{model}", "{threads}")
_LINE_LIMIT = 1024 * 1024
"""A row is at most a few tens of KB; a longer line is not ours."""


def check_sidecar(spec: SweepSpec) -> None:
    """Check that the profile asked for exists and can be used. Raises `SpecError`; looks at nothing when there is none."""
    if spec.sidecar.profile is not None:
        load_profile(spec.sidecar)


def load_profile(request: SidecarRequest) -> SidecarProfile:
    """Read the profiles file (looked for here, then in the checkout) and return the profile. Raises `SpecError`."""
    from fewbits.spec.load import find_input, repository_root
    from fewbits.spec.matrix import read_document

    bases = [base for base in (Path(), repository_root()) if base is not None]
    found = find_input(request.profiles_config, bases)
    if found is None or not Path(found).is_file():
        looked = " and in ".join(dict.fromkeys(str(base.resolve()) for base in bases))
        message = f"no such file of sidecar profiles: {request.profiles_config}"
        raise SpecError.single("sidecar_profiles_config", message, f"looked in {looked}")
    try:
        profiles = msgspec.convert(read_document(Path(found)), SidecarProfiles)
    except msgspec.ValidationError as error:
        raise SpecError.single(found, f"not a file of sidecar profiles: {error}", "see docs/sidecar.md") from error
    problems = _problems(profiles, found)
    name = request.profile or ""
    if name not in profiles.profiles:
        known = ", ".join(sorted(profiles.profiles))
        problems.append(Problem("hardware_sidecar_profile", f"no profile {name!r} in {found}", f"it has: {known}"))
    if problems:
        raise SpecError(problems)
    return profiles.profiles[name]


def _problems(profiles: SidecarProfiles, where: str) -> list[Problem]:
    """Everything that the types alone do not catch."""
    problems = []
    if profiles.schema_version != SIDECAR_PROFILES_SCHEMA:
        remedy = f"this fewbits reads {SIDECAR_PROFILES_SCHEMA}"
        problems.append(Problem(where, f"schema_version is {profiles.schema_version!r}", remedy))
    for name, profile in sorted(profiles.profiles.items()):
        place = f"{where}: profiles.{name}.argv"
        unknown = {found for word in profile.argv for found in _PLACEHOLDER.findall(word)} - set(_KNOWN_PLACEHOLDERS)
        if unknown:
            known = ", ".join(_KNOWN_PLACEHOLDERS)
            problems.append(Problem(place, f"unknown placeholder {', '.join(sorted(unknown))}", f"known are {known}"))
        if not any("{model}" in word for word in profile.argv[1:]):
            problems.append(Problem(place, "no argument holds {model}", "add -m {model}"))
        if not profile.argv[0].strip() or _PLACEHOLDER.search(profile.argv[0]):
            problems.append(Problem(place, f"{profile.argv[0]!r} is not a program", "begin with llama-bench"))
        if any("\0" in word for word in profile.argv):
            problems.append(Problem(place, "a word holds a zero byte", "no program can be given one"))
    return problems


def run_sidecar(
    plan: Plan, variants: Mapping[tuple[str, str], Variant], directory: RunDirectory, observer: SweepObserver
) -> None:
    """Measure what `sidecar.jsonl` lacks, in the plan's order: one row per variant, whatever happened to the tool.

    Raises `StoreError` only, when a row cannot be written.
    """
    from fewbits.probes.sidecar import command_of

    request = plan.spec.sidecar
    if request.profile is None:
        return
    profile: SidecarProfile | SpecError
    try:
        profile = load_profile(request)
        command = command_of(profile, _threads(plan))
    except SpecError as error:
        profile, command = error, ()
    done, _ = _read_rows(directory.sidecar_path, plan)
    todo = [
        variants[key]
        for key in plan.spec.variant_keys
        if key in variants and not any(_stands(row, variants[key], request.profile, command) for row in done)
    ]
    if not todo:
        return
    writer = JournalWriter(directory.sidecar_path)
    try:
        for variant in todo:
            row = _measure_row(plan, variant, profile, command)
            writer.append(row)
            observer.notice(_notice(row))
    finally:
        writer.close()


def _stands(row: SidecarRun, variant: Variant, profile: str, command: tuple[str, ...]) -> bool:
    """Whether a row makes another run of this variant needless."""
    artifact = variant.artifact
    same = (row.model_id, row.quant_tag, row.variant_sha256) == (artifact.model_id, artifact.scheme, artifact.sha256)
    if not same or row.block.profile != profile:
        return False
    if variant.path is None:
        return row.block.status is SidecarStatus.NOT_APPLICABLE
    return row.block.status is SidecarStatus.OK and row.command == command


def _measure_row(plan: Plan, variant: Variant, profile: SidecarProfile | SpecError, command: tuple[str, ...]) -> SidecarRun:
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    outcome = _outcome(plan, variant, profile)
    return SidecarRun(
        plan_digest=plan.digest,
        model_id=variant.artifact.model_id,
        quant_tag=variant.artifact.scheme,
        variant_sha256=variant.artifact.sha256,
        started_at=started_at,
        command=command,
        returncode=outcome.returncode,
        stdout_head=outcome.stdout_head,
        stderr_tail=outcome.stderr_tail,
        tool_sha256=outcome.tool_sha256,
        block=outcome.block,
    )


def _outcome(plan: Plan, variant: Variant, profile: SidecarProfile | SpecError) -> SidecarOutcome:
    from fewbits.analysis.sidecar import unmeasured
    from fewbits.probes.sidecar import SidecarJob, SidecarOutcome, measure

    request = plan.spec.sidecar
    name = request.profile or ""
    if isinstance(profile, SpecError):
        lost = "; ".join(str(problem) for problem in profile.problems)
        return SidecarOutcome(unmeasured(SidecarStatus.NOT_RUN, f"its profile can no longer be used: {lost}", profile=name))
    if variant.path is None:
        detail = "a server holds this model: there is no file that the tool could load"
        return SidecarOutcome(unmeasured(SidecarStatus.NOT_APPLICABLE, detail, profile=name, backend=profile.backend))
    timeout_seconds = request.timeout_seconds or profile.timeout_seconds
    try:
        return measure(SidecarJob(name, profile, variant.path, _threads(plan), timeout_seconds))
    except Exception as error:  # noqa: BLE001 - diagnostics must never cost a finished matrix its summary
        detail = f"the sidecar itself failed: {type(error).__name__}: {error}"
        return SidecarOutcome(unmeasured(SidecarStatus.TOOL_FAILED, detail, profile=name, backend=profile.backend))


def _threads(plan: Plan) -> int:
    from fewbits.probes.machine import default_threads

    return plan.controls.threads or default_threads()


def _notice(row: SidecarRun) -> str:
    from fewbits.report.escape import visible
    from fewbits.report.formats import rate

    block = row.block
    said = f"{block.status}: {block.detail}"
    if block.status is SidecarStatus.OK:
        prefill, decode = rate(block.prefill_tokens_per_second), rate(block.decode_tokens_per_second)
        said = f"prefill {prefill} tokens/s, decode {decode} tokens/s"
    return visible(f"sidecar: {row.quant_tag} of {row.model_id}: {said}", 400)


def read_sidecars(plan: Plan, directory: RunDirectory) -> dict[tuple[str, str], SidecarBlock]:
    """Read what was measured, by (model id, quant tag): the newest row of each variant of this plan.

    Empty when nothing was asked for and nothing is there; a variant without a row is `NOT_RUN` then. A file that cannot be
    read is a status, never an error: `sidecar.jsonl` holds diagnostics, and no summary depends on it.
    """
    from fewbits.analysis.sidecar import unmeasured

    rows, damage = _read_rows(directory.sidecar_path, plan)
    name = plan.spec.sidecar.profile
    if name is None and not rows and not damage:
        return {}
    digests = {key: manifest.sha256 for key, manifest in directory.read_manifests().items()}
    newest = {
        (row.model_id, row.quant_tag): row
        for row in rows
        if digests.get((row.model_id, row.quant_tag), row.variant_sha256) == row.variant_sha256
    }
    if damage:
        lacking = unmeasured(SidecarStatus.PARSE_ERROR, damage, profile=name)
    else:
        detail = "the run ended before its turn: the same command continues"
        lacking = unmeasured(SidecarStatus.NOT_RUN, detail, profile=name or rows[-1].block.profile)
    return {key: newest[key].block if key in newest else lacking for key in plan.spec.variant_keys}


def _read_rows(path: Path, plan: Plan) -> tuple[list[SidecarRun], str]:
    """Return this plan's rows in file order, and one sentence about what could not be read (empty: nothing).

    A last line without its newline is a write that was cut off, as in every journal.
    """
    decoder = msgspec.json.Decoder(SidecarRun)
    rows: list[SidecarRun] = []
    damage, number = "", 0
    try:
        with path.open("rb") as stream:
            while (line := stream.readline(_LINE_LIMIT)).endswith(b"\n"):
                number += 1
                try:
                    rows.append(decoder.decode(line))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    damage = damage or f"line {number} of {path.name} is damaged: {error}"
            if len(line) == _LINE_LIMIT:
                damage = damage or f"line {number + 1} of {path.name} is longer than {_LINE_LIMIT} bytes"
    except FileNotFoundError:
        pass  # nothing was measured yet
    except OSError as error:
        damage = f"{path.name} cannot be read: {error.strerror or error}"
    return [row for row in rows if row.plan_digest == plan.digest], damage
