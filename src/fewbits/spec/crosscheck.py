"""Checks that need more than one value: duplicates, settings that contradict each other, limits of this machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fewbits.core.errors import Problem
from fewbits.records.plan import PolicyName, QualityPolicy
from fewbits.spec.affinity import parse_cores
from fewbits.spec.tags import OWN_RUNTIMES, RUNTIMES, SERVER_RUNTIMES, canonical_tag
from fewbits.spec.thresholds import split_key
from fewbits.spec.values import nearest, shown

CUSTOM_POLICY = "custom"
"""Name of a quality policy whose limits differ from the default's, unless the user names it."""
_IGNORED_THRESHOLD = "decides nothing under three-zone-v1"
_CANARY_SAMPLES = 3
"""As the canary's own rule (`analysis.canary`): two samples always look steady, so fewer than this could never pass."""


@dataclass(slots=True)
class Draft:
    """All settings, defaults filled in, before they become a spec. Checks may rewrite values (tags get one spelling).

    `broken` holds the keys without a usable value: no check looks at those.
    """

    values: dict[str, Any]
    paths: dict[str, str]
    broken: set[str]
    problems: list[Problem] = field(default_factory=list)
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By key: where each item of a list was written, where that is not simply its place in the list."""
    own_runtime: str | None = None
    """The only runtime of this kind of work (detectors, extraction), with tags of its own; `None` for text."""

    def usable(self, *keys: str) -> bool:
        """Whether every one of these settings has a value that can be looked at."""
        return not self.broken.intersection(keys)

    def given(self, key: str) -> bool:
        """Whether a person gave this setting (else it is a default)."""
        return key in self.paths

    def place(self, key: str, index: int) -> str:
        """Return where an item of a list was written: its place, and the ladder that it came from."""
        return self.places[key][index] if key in self.places else str(index)

    def refuse(self, key: str, message: str, hint: str = "", *, at: str = "") -> None:
        """Note a problem at the place where the setting was given."""
        self.problems.append(Problem(self.paths.get(key, key) + at, message, hint))


def check_draft(draft: Draft, available_cores: Collection[int] | None) -> None:
    """Run every check; problems and canonical spellings go into the draft."""
    for check in _CHECKS:
        check(draft)
    _check_machine(draft, available_cores)


def _check_runtime(draft: Draft) -> None:
    if not draft.usable("runtime"):
        return
    runtime = draft.values["runtime"]
    if draft.own_runtime is not None:
        draft.values["runtime"] = draft.own_runtime
        return
    if runtime not in RUNTIMES:
        hint = nearest(runtime, RUNTIMES) or f"one of {', '.join(RUNTIMES)}"
        hint = OWN_RUNTIMES.get(runtime, hint)
        draft.refuse("runtime", f"unknown runtime {shown(runtime)}", hint)
        draft.broken.add("runtime")
        return
    if draft.usable("base_url"):
        _check_base_url(draft, runtime, draft.values["base_url"])
    if draft.usable("script") and (draft.values["script"] is not None) != (runtime == "scripted"):
        if runtime == "scripted":
            draft.refuse("script", "the scripted runtime needs the file with its replies", "give script (--script)")
        else:
            draft.refuse("script", f"runtime {runtime} takes no script", "for runtime scripted only")


def _check_base_url(draft: Draft, runtime: str, url: str | None) -> None:
    if url is None:
        if runtime == "openai":
            draft.refuse("base_url", "the openai runtime needs a server", "for example http://127.0.0.1:8080/v1 (--base-url)")
    elif runtime not in SERVER_RUNTIMES:
        draft.refuse("base_url", f"runtime {runtime} has no server to address", f"for {' or '.join(SERVER_RUNTIMES)} only")
    elif not url.startswith(("http://", "https://")):
        draft.refuse("base_url", f"expected an http:// or https:// address, got {shown(url)}")


def _check_tags(draft: Draft) -> None:
    if not draft.usable("runtime"):
        return
    runtime = draft.values["runtime"]
    if draft.usable("quants"):
        path = draft.paths.get("quants", "quants")
        tags = [
            canonical_tag(tag, runtime, f"{path}[{draft.place('quants', index)}]")
            for index, tag in enumerate(draft.values["quants"])
        ]
        draft.problems += [problem for _, problem in tags if problem is not None]
        draft.values["quants"] = tuple(tag for tag, _ in tags)
    for key in ("reference_quant", "canary_quant_tag"):
        if not draft.usable(key, "quants") or draft.values[key] is None:
            continue
        tag, problem = canonical_tag(draft.values[key], runtime, draft.paths.get(key, key))
        draft.values[key] = tag
        if problem is not None:
            draft.problems.append(problem)
        elif tag not in draft.values["quants"]:
            have = ", ".join(draft.values["quants"])
            draft.refuse(key, f"{tag} is not among the quants of this sweep ({have})", f"add {tag} to quants")


def _check_duplicates(draft: Draft) -> None:
    for key in ("models", "quants", "task_ids", "buckets", "tiers"):
        if not draft.usable(key):
            continue
        items: Sequence[Any] = draft.values[key]
        for index, item in enumerate(items):
            if (first := items.index(item)) < index:
                message = f"{item!s} is listed twice (first at {draft.place(key, first)})"
                draft.refuse(key, message, "keep one of them", at=f"[{draft.place(key, index)}]")


def _check_selection(draft: Draft) -> None:
    low, high = draft.values["task_id_min"], draft.values["task_id_max"]
    if not draft.usable("task_id_min", "task_id_max") or low is None or high is None:
        return
    # ids that are all digits compare as numbers, as in the selection itself
    numeric = low.isdecimal() and high.isdecimal()
    if (int(low) > int(high)) if numeric else (low > high):
        draft.refuse("task_id_min", f"{low} comes after task_id_max {high}, so no task is left", "swap them")


def _check_lengths(draft: Draft) -> None:
    if draft.usable("max_tokens", "context_size") and draft.values["max_tokens"] >= draft.values["context_size"]:
        key = "max_tokens" if draft.given("max_tokens") or not draft.given("context_size") else "context_size"
        message = (
            f"max_tokens {draft.values['max_tokens']} leaves no room for a prompt in context_size {draft.values['context_size']}"
        )
        draft.refuse(key, message, "lower max_tokens or raise context_size")


def _check_canary(draft: Draft) -> None:
    if not draft.usable("canary_runs", "canary_drop_first_run"):
        return
    runs = draft.values["canary_runs"]
    left = runs - (1 if draft.values["canary_drop_first_run"] else 0)
    if runs > 0 and left < _CANARY_SAMPLES:
        message = f"{runs} repeats leave {left} to judge, and judging their variation needs {_CANARY_SAMPLES}"
        draft.refuse("canary_runs", message, "10 is the default; 0 switches the canary off")


def _check_quality_name(draft: Draft) -> None:
    """A named policy must have that policy's limits, or the name in the results would lie."""
    key, default = "quality_policy.name", QualityPolicy()
    limits = {
        name: value for name, value in msgspec.structs.asdict(default).items() if name != "name" and not name.startswith("rerun_")
    }
    keys = {name: _quality_key(name) for name in limits}
    if not draft.usable(key, *keys.values()):
        return
    changed = sorted(keys[name] for name, value in limits.items() if draft.values[keys[name]] != value)
    if not changed:
        return
    if not draft.given(key):
        draft.values[key] = CUSTOM_POLICY
    elif draft.values[key] == default.name:
        draft.refuse(key, f"{default.name} has other limits ({', '.join(changed)} differ)", "give the policy a name of its own")


def _check_verdicts(draft: Draft) -> None:
    """Error levels must nest, and a setting that its mode or policy would ignore is refused: a flag never does nothing."""
    if draft.usable("error_level", "divergence_error_level"):
        whole, part = draft.values["error_level"], draft.values["divergence_error_level"]
        if part >= whole:
            draft.refuse(
                "divergence_error_level" if draft.given("divergence_error_level") else "error_level",
                f"the divergence test would spend {part:g} of an error level of {whole:g}, leaving nothing for the paired test",
                "keep divergence_error_level below error_level",
            )
    if draft.usable("decide_minimum_items", "decide_maximum_items"):
        least, most = draft.values["decide_minimum_items"], draft.values["decide_maximum_items"]
        if most is not None and most < least:
            draft.refuse(
                "decide_maximum_items",
                f"at most {most} items, but every variant answers at least {least}",
                "lower decide_minimum_items, or allow more",
            )
    if not draft.usable("selection_policy", "decide"):
        return
    threshold = draft.values["selection_policy"] == PolicyName.THRESHOLD
    if not threshold and draft.given("adherence_threshold"):
        draft.refuse(
            "adherence_threshold",
            _IGNORED_THRESHOLD,
            "use equivalence_margin (--equivalence-margin), or selection_policy threshold-v1",
        )
    if threshold and draft.values["decide"]:
        draft.refuse("decide", "deciding needs statistical verdicts, and threshold-v1 has none", "use three-zone-v1")
    if draft.values["decide"] or draft.given("decide"):
        return
    for key in ("early_stop", "decide_minimum_items", "decide_maximum_items"):
        if draft.usable(key) and draft.given(key):
            draft.refuse(key, "does nothing without --decide", "add decide (--decide), or leave it out")


def _check_model_thresholds(draft: Draft) -> None:
    """A model's own limits need the model, and a policy that reads them."""
    unknown: set[str] = set()
    for key in list(draft.values):
        found = split_key(key)
        if found is None:
            continue
        model, limit = found
        if draft.usable("models") and model not in draft.values["models"] and model not in unknown:
            unknown.add(model)
            models = draft.values["models"]
            hint = nearest(model, models) or f"it has {', '.join(models)}"
            draft.refuse(key, f"{shown(model)} is no model of this sweep", hint)
        if (
            limit == "adherence_threshold"
            and draft.usable("selection_policy")
            and draft.values["selection_policy"] != PolicyName.THRESHOLD
        ):
            draft.refuse(key, _IGNORED_THRESHOLD, "use equivalence_margin, or selection_policy threshold-v1")


def _check_lab(draft: Draft) -> None:
    """Settings of a part that is switched off would do nothing, so they are refused."""
    needs = {
        "guard": ("cooldown_target_c", "cooldown_timeout_seconds", "max_throttle_events"),
        "hardware_sidecar_profile": ("sidecar_profiles_config", "hardware_sidecar_timeout_seconds"),
        "baselines": ("baseline_root", "baseline_ref"),
    }
    for switch, keys in needs.items():
        if not draft.usable(switch) or draft.values[switch]:
            continue
        for key in keys:
            if draft.usable(key) and draft.given(key):
                draft.refuse(key, f"does nothing without {switch}", f"add --{switch.replace('_', '-')}, or leave it out")


def _quality_key(name: str) -> str:
    if name == "max_orchestration_overhead_ratio":
        return "row_max_orchestration_overhead_ratio"
    return name if name.startswith("row_") else f"quality_policy.{name}"


def _check_affinity(draft: Draft) -> None:
    if not draft.usable("affinity_policy"):
        return
    try:
        cores = parse_cores(draft.values["affinity_policy"])
    except ValueError as error:
        draft.refuse("affinity_policy", str(error), "write cores:0,2-3, or auto, or none")
        draft.broken.add("affinity_policy")
        return
    if (
        draft.usable("threads")
        and cores is not None
        and (threads := draft.values["threads"]) is not None
        and threads > len(cores)
    ):
        draft.refuse("threads", f"{threads} threads on {len(cores)} pinned core(s) would wait for each other", "pin more cores")


_CHECKS: tuple[Callable[[Draft], None], ...] = (
    _check_runtime,
    _check_tags,
    _check_duplicates,
    _check_selection,
    _check_lengths,
    _check_canary,
    _check_quality_name,
    _check_verdicts,
    _check_model_thresholds,
    _check_lab,
    _check_affinity,
)


def _check_machine(draft: Draft, available_cores: Collection[int] | None) -> None:
    if available_cores is None or not draft.usable("runtime") or draft.values["runtime"] in SERVER_RUNTIMES:
        return  # a server's cores are not ours to count
    count = len(available_cores)
    if draft.usable("threads") and (threads := draft.values["threads"]) is not None and threads > count:
        draft.refuse(
            "threads", f"{threads} threads, but this process may use {count} core(s)", f"at most {count}, or auto for all"
        )
    if draft.usable("affinity_policy"):
        absent = sorted(set(parse_cores(draft.values["affinity_policy"]) or ()) - set(available_cores))
        if absent:
            have = ", ".join(str(core) for core in sorted(available_cores)[:32])
            draft.refuse(
                "affinity_policy", f"no such core for this process: {', '.join(map(str, absent[:8]))}", f"it may use {have}"
            )
