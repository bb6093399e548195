"""Loaded models, kept open while memory allows, so that interleaved trials do not reload weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

from fewbits.core.errors import BackendError, GuardStopError, ProtocolError, TrialTimeoutError
from fewbits.records.plan import Controls
from fewbits.records.runtime import GenerateRequest
from fewbits.records.variant import ServedIdentity, Variant
from fewbits.runtimes.base import Runtime, RuntimeSession

VariantKey = tuple[str, str]
"""(model id, quant tag)"""

_WARMUP_PROMPT = "Say hello."
_WARMUP_TOKENS = 8
_RESIDENT_FACTOR = 1.25
"""Weights plus compute buffers and KV cache, as a multiple of the file: a bound to decide eviction by, never reported."""
_LOAD_ATTEMPTS = 3


def _not_ready(key: VariantKey, what: str, error: BackendError | ProtocolError | TrialTimeoutError) -> BackendError:
    """Name the variant that could not be loaded or warmed up; what was measured before stays in the journal."""
    tool = error.tool if isinstance(error, BackendError) else "engine"
    return BackendError(tool, f"{key[1]} of {key[0]} could not be made ready ({what}). {error}")


class LoadGuard(Protocol):
    """What may forbid a load. `sweep.guard.Guard` is the real one."""

    def refuses(self, variant: Variant, resident: tuple[Variant, ...]) -> str:
        """Say why a variant must not be loaded beside those that are open; empty when it may."""

    def after_load(self, variant: Variant) -> None:
        """Look at the machine once more. Raises `GuardStopError`."""


class OpenModel:
    """A session whose identity was proved, with what was read back from it."""

    def __init__(self, session: RuntimeSession, identity: ServedIdentity) -> None:
        self.session = session
        self.identity = identity
        self.effective = session.effective_controls()
        self.process_ids = session.process_ids()


class ModelPool:
    """Opens variants on demand, warms them up, and closes the least recently used ones when memory runs short.

    `available_bytes` is asked before each load; `on_change` hears the process ids of all open models after each change.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        variants: Mapping[VariantKey, Variant],
        controls: Controls,
        load_timeout_seconds: float,
        request_timeout_seconds: float,
        available_bytes: Callable[[], int | None],
        on_change: Callable[[tuple[int, ...]], None],
        guard: LoadGuard,
    ) -> None:
        self._runtime = runtime
        self._variants = variants
        self._controls = controls
        self._load_timeout_seconds = load_timeout_seconds
        self._request_timeout_seconds = request_timeout_seconds
        self._available_bytes = available_bytes
        self._on_change = on_change
        self._guard = guard
        self._open: OrderedDict[VariantKey, OpenModel] = OrderedDict()

    def get(self, key: VariantKey) -> OpenModel:
        """Return the model, loading it when it is not open or no longer alive.

        Raises what the runtime raises on opening; a load or warm-up that dies is tried three times before it counts as broken,
        and `BackendError` then names the variant.
        """
        model = self._open.get(key)
        if model is not None and model.session.is_alive():
            self._open.move_to_end(key)
            return model
        self.discard(key)
        self._make_room(self._variants[key])
        self._ask_guard(self._variants[key])
        model = self._load(key)
        self._open[key] = model
        self._announce()
        self._guard.after_load(self._variants[key])
        return model

    def discard(self, key: VariantKey) -> None:
        """Close one model, if open: after a crash, or when a timed-out request may still be computing."""
        model = self._open.pop(key, None)
        if model is not None:
            model.session.close()
            self._announce()

    def close(self) -> None:
        """Close every model."""
        for key in list(self._open):
            self.discard(key)

    def _load(self, key: VariantKey) -> OpenModel:
        for attempt in range(1, _LOAD_ATTEMPTS + 1):
            try:
                return self._open_warm(key)
            except BackendError as error:
                if attempt == _LOAD_ATTEMPTS:
                    raise _not_ready(key, f"{attempt} attempts failed", error) from error
            except (ProtocolError, TrialTimeoutError) as error:  # trying again would only wait again
                raise _not_ready(key, "not tried again", error) from error
        msg = "unreachable: the last attempt either returned or raised"
        raise AssertionError(msg)

    def _open_warm(self, key: VariantKey) -> OpenModel:
        session = self._runtime.open(self._variants[key], self._controls, self._load_timeout_seconds)
        try:
            identity = session.identity()
            self._warm_up(session)
            return OpenModel(session, identity)  # reads the controls back, which engines tell after a generation
        except BaseException:
            session.close()
            raise

    def _warm_up(self, session: RuntimeSession) -> None:
        """Run the unrecorded generations that fault the weights in and settle the clocks."""
        request = GenerateRequest(
            prompt=_WARMUP_PROMPT, seed=self._controls.seed, temperature=self._controls.temperature, max_tokens=_WARMUP_TOKENS
        )
        for _ in range(self._controls.warmup_steps):
            session.generate(request, self._request_timeout_seconds)

    def _make_room(self, variant: Variant) -> None:
        """Close the least recently used models until the new one is expected to fit."""
        size = variant.artifact.bytes
        if size is None or not self._runtime.capabilities.local_process:
            return
        while self._open:
            available = self._available_bytes()
            if available is None or available > size * _RESIDENT_FACTOR:
                return
            oldest = next(iter(self._open))
            self.discard(oldest)

    def _ask_guard(self, variant: Variant) -> None:
        """Close what is open, oldest first, until the guard agrees. Raises `GuardStopError` when it never does."""
        while refusal := self._guard.refuses(variant, tuple(self._variants[key] for key in self._open)):
            if not self._open:
                msg = f"the guard refuses to load it: {refusal}. Choose fewer bits, a smaller context, or another --vram-profile."
                raise GuardStopError(msg)
            self.discard(next(iter(self._open)))

    def _announce(self) -> None:
        self._on_change(tuple(pid for model in self._open.values() for pid in model.process_ids))
