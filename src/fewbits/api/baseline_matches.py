"""Baselines around a sweep: looked up before its first trial, kept in its folder, read back for the summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from fewbits.analysis.baselines import BaselineQuery, find_baseline, plan_revision, sweep_test_id
from fewbits.core.codec import encode_pretty, storable
from fewbits.core.errors import StoreError
from fewbits.core.files import atomic_write
from fewbits.records.baseline import BaselineMatch, BaselineStatus, ResolvedBaselines
from fewbits.records.plan import Plan
from fewbits.records.variant import Variant
from fewbits.store.baselines import BaselineStore, check_test_id
from fewbits.store.documents import read_document
from fewbits.store.run_directory import RunDirectory

_REMEDY = "The file is damaged or was edited. Move it away: the sweep's command then looks the baselines up again."


def resolve_baseline(
    root: Path, query: BaselineQuery, *, model_id: str = "", quant_tag: str = "", variant_hash: str = ""
) -> BaselineMatch:
    """Find the record for a run. A damaged file is an answer too: `STORE_UNREADABLE`, with the reason."""
    try:
        history = BaselineStore(root).read(check_test_id(query.test_id))
    except StoreError as error:
        return BaselineMatch(
            model_id=model_id,
            quant_tag=quant_tag,
            test_id=query.test_id,
            status=BaselineStatus.STORE_UNREADABLE,
            detail=storable(str(error)),
            variant_hash=variant_hash,
        )
    match = find_baseline(history, query, model_id=model_id, quant_tag=quant_tag, variant_hash=variant_hash)
    if match.record is None or model_id:
        return match
    known = match.record.baseline_metadata
    return msgspec.structs.replace(match, model_id=known.model_id, quant_tag=known.quant_tag)


def remember_baselines(plan: Plan, variants: Mapping[tuple[str, str], Variant], directory: RunDirectory) -> None:
    """Look up each variant's baseline, once, and write `baselines.json`.

    A run that goes on keeps what it found when it began, so its summary does not change with the store. A damaged history is
    remembered as such and stops nothing. Raises `StoreError` when the run's own file is damaged.
    """
    if not plan.spec.baselines.enabled:
        return
    revision = plan_revision(plan)
    present = read_document(directory.baselines_path, ResolvedBaselines, _REMEDY)
    if present is not None and present.task_revision == revision:
        return
    matches = tuple(_match(plan, key, revision, variants.get(key)) for key in plan.spec.variant_keys)
    atomic_write(directory.baselines_path, encode_pretty(ResolvedBaselines(task_revision=revision, matches=matches)))


def _match(plan: Plan, key: tuple[str, str], revision: str, variant: Variant | None) -> BaselineMatch:
    request = plan.spec.baselines
    artifact = variant.artifact if variant is not None else None
    query = BaselineQuery(sweep_test_id(*key), plan.hardware_fingerprint, revision, request.ref)
    return resolve_baseline(
        Path(request.storage_root),
        query,
        model_id=key[0],
        quant_tag=key[1],
        variant_hash=(artifact.sha256 or artifact.server_digest or "") if artifact is not None else "",
    )


def read_baselines(directory: RunDirectory) -> dict[tuple[str, str], BaselineMatch]:
    """Read what was found, by (model id, quant tag); empty when nothing was looked up. Raises `StoreError` for a damaged file."""
    resolved = read_document(directory.baselines_path, ResolvedBaselines, _REMEDY)
    if resolved is None:
        return {}
    plan = directory.read_plan()
    if plan is not None and resolved.task_revision != plan_revision(plan):
        msg = f"{directory.baselines_path} was made for other tasks than this run's. {_REMEDY}"
        raise StoreError(msg)
    return {(match.model_id, match.quant_tag): match for match in resolved.matches}
