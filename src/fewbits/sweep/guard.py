"""The live guard: cool down before a block, load only what fits, stop on throttling. Acts between trials, never during one."""

from __future__ import annotations

import time
from collections.abc import Callable

from fewbits.analysis.guards import MEMORY_LIMITS
from fewbits.analysis.memory_need import memory_need
from fewbits.analysis.wording import count, percent
from fewbits.core.errors import GuardStopError
from fewbits.core.units import format_bytes, format_seconds
from fewbits.records.plan import Plan
from fewbits.records.trial import EnvironmentSample, Trial
from fewbits.records.variant import Variant

_LOOK_SECONDS = 1.0
_GO_ON = "What was measured is in the journal; the same command goes on from there."


class Guard:
    """Holds one sweep to its `GuardPolicy`. `sample` reads the machine; `notice` tells people; `sleep` waits (seconds)."""

    def __init__(
        self,
        plan: Plan,
        sample: Callable[[], EnvironmentSample],
        notice: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._plan = plan
        self._policy = plan.spec.guard
        self._limit = MEMORY_LIMITS[plan.spec.vram_profile]
        self._sample = sample
        self._notice = notice
        self._sleep = sleep
        self._told = False

    def before_block(self, block: int) -> None:
        """Wait until no sensor reads more than the target. Raises `GuardStopError` at the timeout.

        A machine without sensors is told once and not held up: the recorded rows then say `NO_SENSOR`, and `fewbits guards` SKIP.
        """
        if not self._policy.enabled:
            return
        waited = 0.0
        while (hottest := _hottest(self._sample())) is not None and hottest > self._policy.cooldown_target_c:
            if waited >= self._policy.cooldown_timeout_seconds:
                msg = (
                    f"the guard waited {format_seconds(waited)} before block {block}, and the machine is still at "
                    f"{hottest:.1f} °C (target {self._policy.cooldown_target_c:g} °C). {_GO_ON}"
                )
                raise GuardStopError(msg)
            if waited == 0.0:
                target = self._policy.cooldown_target_c
                self._notice(f"guard: {hottest:.1f} °C before block {block}, waiting for {target:g} °C")
            self._sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
        if hottest is None and not self._told:
            self._told = True
            self._notice("guard: this machine shows no temperature, so cooldown is not enforced")

    def refuses(self, variant: Variant, resident: tuple[Variant, ...]) -> str:
        """Say why a variant must not be loaded beside those that are open; empty when it fits (or nobody can tell).

        Counts what the machine has in use, less the caches of open models, plus weights and KV caches of open models and the new
        one: mapped weights count as available memory although they are needed.
        """
        if not self._policy.enabled:
            return ""
        sample = self._sample()
        total, available = sample.memory_total_bytes, sample.memory_available_bytes
        needs = [memory_need(each.artifact, self._plan.controls.context_size) for each in (*resident, variant)]
        known = [need.total_bytes for need in needs if need.total_bytes is not None]
        if not total or available is None or needs[-1].total_bytes is None:
            return ""
        caches = sum(need.kv_cache_bytes or 0 for need in needs[:-1])
        others = max(0, total - available - caches)
        ratio = (others + sum(known)) / total
        if ratio <= self._limit:
            return ""
        new = needs[-1]
        return (
            f"{variant.artifact.scheme} of {variant.artifact.model_id} needs {format_bytes(new.weights_bytes)} of weights and "
            f"{format_bytes(new.kv_cache_bytes)} of KV cache at {self._plan.controls.context_size} tokens: with what is in use "
            f"that is {percent(ratio)} of {format_bytes(total)}, and the {self._plan.spec.vram_profile.value} profile allows "
            f"{percent(self._limit)}"
        )

    def after_load(self, variant: Variant) -> None:
        """Check the GPU's memory, which only the engine decides to use. Raises `GuardStopError`."""
        if not self._policy.enabled:
            return
        sample = self._sample()
        if sample.gpu_memory_used_bytes is None or not sample.gpu_memory_total_bytes:
            return
        ratio = sample.gpu_memory_used_bytes / sample.gpu_memory_total_bytes
        if ratio > self._limit:
            msg = (
                f"with {variant.artifact.scheme} of {variant.artifact.model_id} loaded, {percent(ratio)} of the GPU's memory is "
                f"in use; the {self._plan.spec.vram_profile.value} profile allows {percent(self._limit)}. {_GO_ON}"
            )
            raise GuardStopError(msg)

    def after_trial(self, trial: Trial) -> None:
        """Raise `GuardStopError` when the machine throttled during a trial, which is in the journal by now."""
        if not self._policy.enabled or trial.environment is None:
            return
        events = trial.environment.during.throttle_events
        if events is not None and events > self._policy.max_throttle_events:
            msg = (
                f"the machine throttled during {trial.quant_tag} · {trial.task_id} ({count(events, 'event')}; "
                f"{self._policy.max_throttle_events} tolerated): let it cool down. {_GO_ON}"
            )
            raise GuardStopError(msg)


def _hottest(sample: EnvironmentSample) -> float | None:
    return max((value for value in (sample.temperature_c, sample.gpu_temperature_c) if value is not None), default=None)
