"""Which models an Ollama server holds, and which of them is (model, scheme)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fewbits.core.errors import IdentityError, PrerequisiteError, ProtocolError
from fewbits.runtimes.http_stream import Endpoint, ask_json


class Details(msgspec.Struct, frozen=True):
    """What Ollama read from the model file."""

    quantization_level: str | None = None
    parameter_size: str | None = None
    family: str | None = None


class Model(msgspec.Struct, frozen=True):
    """One pulled model: `size` in bytes, all layers."""

    name: str
    digest: str | None = None
    size: int | None = None
    details: Details = Details()
    context_length: int | None = None


class Listing(msgspec.Struct, frozen=True):
    """The answer of `/api/tags` and of `/api/ps`."""

    models: tuple[Model, ...] | None = None


def parse_listing(answer: object, tool: str, route: str) -> tuple[Model, ...]:
    """Read a listing. Raises `ProtocolError` naming the route."""
    try:
        return msgspec.convert(answer, Listing).models or ()
    except msgspec.ValidationError as error:
        msg = f"{tool}: the answer to {route} is not what the protocol says: {error}"
        raise ProtocolError(msg) from error


def list_models(endpoint: Endpoint, tool: str, timeout_seconds: float) -> tuple[Model, ...]:
    """Ask for the pulled models. Raises like `ask_json`."""
    answer = ask_json(endpoint, "GET", "/api/tags", tool=tool, timeout_seconds=timeout_seconds)
    return parse_listing(answer, tool, "/api/tags")


def find_model(models: Sequence[Model], model_id: str, scheme: str) -> Model:
    """Pick the pulled model that is `model_id` at `scheme`.

    The very name wins when it has that quantization; else the one model whose name begins like it (`qwen2.5-coder:7b` finds
    `qwen2.5-coder:7b-instruct-q8_0`) and whose reported quantization is the scheme. Names of one digest count once.

    Raises `IdentityError` when the very name promises the scheme but is reported as another, `PrerequisiteError` when none or
    several fit.
    """
    exact = next((model for model in models if model.name in {model_id, f"{model_id}:latest"}), None)
    if exact is not None:
        if _is_scheme(exact, scheme):
            return exact
        if scheme.lower() in exact.name.partition(":")[2].lower():
            level = exact.details.quantization_level or "of unknown quantization"
            msg = f"Ollama reports {exact.name!r} as {level}, although its name says {scheme}"
            raise IdentityError(msg)
    fitting = [model for model in models if _belongs(model.name, model_id) and _is_scheme(model, scheme)]
    distinct = {model.digest or model.name: model for model in sorted(fitting, key=_shortest_last)}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if distinct:
        names = ", ".join(sorted(model.name for model in distinct.values()))
        raise PrerequisiteError(f"several pulled models are {model_id} at {scheme}: {names}", "Name one with its full tag.")
    base = model_id if ":" in model_id else f"{model_id}:TAG"
    raise PrerequisiteError(
        f"Ollama has no {model_id} at {scheme}{_what_there_is(models, model_id)}",
        f"Pull it, for example `ollama pull {base}-{scheme.lower()}`, with the tag as the model's library page spells it.",
    )


def _is_scheme(model: Model, scheme: str) -> bool:
    level = model.details.quantization_level
    return level is not None and level.upper() == scheme.upper()


def _belongs(name: str, model_id: str) -> bool:
    """Whether a name is the model or one of its tags: a boundary must follow, so that 7b does not find 70b or 7b2."""
    if not name.startswith(model_id):
        return False
    rest = name[len(model_id) :]
    return not rest or rest[0] in ("-" if ":" in model_id else ":")


def _shortest_last(model: Model) -> tuple[int, str]:
    return (-len(model.name), model.name)


def _what_there_is(models: Sequence[Model], model_id: str) -> str:
    there = sorted(f"{m.name} ({m.details.quantization_level or 'unknown'})" for m in models if _belongs(m.name, model_id))
    return f"; pulled: {', '.join(there)}" if there else ""
