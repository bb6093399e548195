"""Read a YOLOv10 checkpoint (`.pt`) without running any of the code that it names.

Such a file is a pickle of the trainer's own classes. Every class that it names is replaced by an inert stand-in that keeps the
state and has no methods; what is left is a plain description: class names, numbers and tensors.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbits.core.errors import PrerequisiteError, Problem, SpecError
from fewbits.core.files import sha256_file
from fewbits.core.units import GIB, MIB, format_bytes

FILE_LIMIT_BYTES = 2 * GIB
"""The largest file that is read. YOLOv10-x has 120 MB."""
HEAD_CLASS = "v10Detect"
"""Class of the last layer of every YOLOv10 detector, and of no other model."""

Plain = None | bool | int | float | str | tuple["Plain", ...]
"""An attribute that is kept: nothing that could refer to code."""

_PICKLE_LIMIT_BYTES = 64 * MIB
_DEPTH_LIMIT = 32
_MODULE_LIMIT = 20_000
_TEXT_LIMIT = 200
_SEQUENCE_LIMIT = 64

# The model's classes, and what a trainer hangs onto it (its settings, its loss).
_MODEL_CLASS = re.compile(r"(?:ultralytics|torch\.nn\.modules)(?:\.[A-Za-z_]\w*)+")
# Trainers write their metrics as NumPy numbers. They become stand-ins like everything else: NumPy is never called.
_METRIC_NAMES = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"})
_MEMBER_NAME = re.compile(r"\w{1,64}")
_REASON = re.compile(r"WeightsUnpickler error: (.+)")

# torch keeps one list of allowed names per process
_ALLOW_LIST = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class ModuleDescription:
    """One module of a checkpoint: what it is called, its numbers, its tensors and its parts, in the file's order.

    Floating point tensors are float32, on the CPU, finite. `attributes` holds plain values only (sequences as tuples, short
    tensors as tuples of numbers); anything else is left out.
    """

    class_name: str
    attributes: Mapping[str, Plain]
    parameters: Mapping[str, Any] = field(repr=False)
    buffers: Mapping[str, Any] = field(repr=False)
    children: Mapping[str, ModuleDescription] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class DetectorCheckpoint:
    """A YOLOv10 detector as its file describes it."""

    path: Path
    sha256: str
    bytes: int
    model: ModuleDescription
    names: tuple[str, ...] | None
    """Class names by class index; `None` where the file has none that fit its head (`notes` says why)."""
    strides: tuple[int, ...]
    """Pixels per cell of each detection level, in the head's order."""
    notes: tuple[str, ...]
    """What a reader of the results should know about the file, one sentence each."""

    @property
    def head(self) -> ModuleDescription:
        """The detection head."""
        return list(self.model.children["model"].children.values())[-1]


def read_checkpoint(path: Path) -> DetectorCheckpoint:
    """Read a YOLOv10 checkpoint of any size, running none of its code; the averaged weights (`ema`) where it has them.

    Raises `SpecError` for anything that is not such a file: missing, empty, truncated, too large, another format, another
    architecture, weights that are not finite, and files that name code which has no place in a detector (nothing of it ran).
    `PrerequisiteError` without torch.
    """
    if importlib.util.find_spec("torch") is None:
        raise PrerequisiteError("torch is not installed", "Install with: pip install 'fewbits[detection]'")
    try:
        file_bytes = _file_bytes(path)
        _require_torch_archive(path)
    except OSError as error:
        raise SpecError.single(
            str(path), f"cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from error
    model, notes = _select_model(path, _unpickle(path))
    reading = _Reading(path, elements_left=file_bytes)
    description = reading.describe(model, "", 0)
    head = _require_yolov10(path, description)
    _require_finite(path, description)
    names, names_note = _class_names(vars(model).get("names"), head.attributes.get("nc"))
    if reading.narrow_types:
        notes = (*notes, f"weights stored as {', '.join(sorted(reading.narrow_types))}, read as float32")
    return DetectorCheckpoint(
        path=path,
        sha256=sha256_file(path),
        bytes=file_bytes,
        model=description,
        names=names,
        strides=_strides(path, description, head),
        notes=(*notes, *names_note),
    )


class _StandIn:
    """Takes the place of whatever the file names: keeps the state that it is given and does nothing."""

    def __new__(cls, *_arguments: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        """Accept and drop the arguments of a constructor, or of a function that the file calls."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _file_bytes(path: Path) -> int:
    if path.is_dir():
        raise SpecError.single(str(path), "is a folder", "name the .pt file inside it")
    if not path.is_file():
        raise SpecError.single(str(path), "there is no such file", "check the path")
    size = path.stat().st_size
    if size == 0:
        raise SpecError.single(str(path), "the file is empty", "copy it again")
    if size > FILE_LIMIT_BYTES:
        msg = f"the file has {format_bytes(size)}, more than any detector ({format_bytes(FILE_LIMIT_BYTES)} are read at most)"
        raise SpecError.single(str(path), msg, "check that it is the weights file that you mean")
    return size


def _require_torch_archive(path: Path) -> None:
    """Look at the container before torch does, so that each kind of wrong file gets its own sentence."""
    with path.open("rb") as handle:
        start = handle.read(262)
    if not start.startswith(b"PK\x03\x04"):
        raise _not_an_archive(path, start)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:
        raise SpecError.single(
            str(path), "the file is truncated or damaged: its table of contents is missing", "copy it again"
        ) from error
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise SpecError.single(
            str(path), "the file is a TorchScript program, not a checkpoint", "use the .pt file of the training"
        )
    if len(pickles) != 1:
        raise SpecError.single(str(path), "a ZIP archive, but not one that torch.save wrote", "use the .pt file of the training")
    unpacked, structure = sum(member.file_size for member in members), pickles[0].file_size
    if unpacked > FILE_LIMIT_BYTES or structure > _PICKLE_LIMIT_BYTES:
        msg = f"unpacked, it claims {format_bytes(unpacked)}, {format_bytes(structure)} of it structure: more than any detector"
        raise SpecError.single(str(path), msg, "do not trust this file")


def _not_an_archive(path: Path, start: bytes) -> SpecError:
    if start.startswith(b"\x80") or start[257:262] == b"ustar":
        msg = "the file is a bare pickle or has the format of torch before 1.6, which cannot be checked before it is read"
        return SpecError.single(str(path), msg, "load it where you trust it, and save it again with a newer torch")
    return SpecError.single(str(path), "the file is no torch checkpoint", "use the .pt file of a YOLOv10 training")


def _unpickle(path: Path) -> Any:
    """Return what the file holds, with a stand-in for every class. Nothing that the file names is looked up or imported."""
    import torch

    with _empty_allow_list(), warnings.catch_warnings(), _readable(path):
        warnings.simplefilter("ignore")
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        _refuse_foreign_names(path, names)
        stand_ins = [(type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _empty_allow_list() -> Iterator[None]:
    """Set aside what other libraries of this process allowed: those would be the real classes. Not to be nested."""
    import torch

    with _ALLOW_LIST:
        allowed = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(allowed)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in one sentence that a file cannot be read, without torch's advice to trust it."""
    try:
        yield
    except SpecError:
        raise
    except Exception as error:
        said = _REASON.search(str(error))
        reason = said.group(1) if said else (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"the file is damaged, or written in a way that is not read here: {reason[:_TEXT_LIMIT]}"
        raise SpecError.single(str(path), msg, "copy it again; no code of it ran") from error


def _refuse_foreign_names(path: Path, names: list[str]) -> None:
    foreign = [name for name in names if not (_MODEL_CLASS.fullmatch(name) or name in _METRIC_NAMES)]
    if foreign:
        shown = ", ".join(_printable(name) for name in foreign[:5]) + (
            f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        )
        msg = f"the file asks for code that has no place in a detector: {shown}. Nothing of it was executed"
        raise SpecError.single(
            str(path), msg, "a hostile file, or one of another library: use a checkpoint that Ultralytics wrote"
        )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:_TEXT_LIMIT])


def _select_model(path: Path, root: Any) -> tuple[_StandIn, tuple[str, ...]]:
    """Pick the model out of what the file holds, the averaged one first; say what was picked."""
    if isinstance(root, _StandIn):
        return root, ()
    if not isinstance(root, dict):
        raise SpecError.single(
            str(path), f"the file holds a {type(root).__name__}, no model", "use the .pt file of a YOLOv10 training"
        )
    written = _written_by(root)
    if isinstance(root.get("ema"), _StandIn):
        return root["ema"], ("the averaged weights (ema) are used, as the trainer's own evaluation does", *written)
    if isinstance(root.get("model"), _StandIn):
        return root["model"], written
    if any(_is_state_dict(root.get(key)) for key in ("ema", "model", "state_dict")) or _is_state_dict(root):
        msg = "the file holds weights by name only (a state_dict), without the structure that they belong to"
        raise SpecError.single(str(path), msg, "save the whole checkpoint as the trainer does")
    keys = ", ".join(_printable(str(key)) for key in list(root)[:5]) or "nothing"
    raise SpecError.single(str(path), f"the file holds no model (found: {keys})", "use the .pt file of a YOLOv10 training")


def _written_by(root: Mapping[Any, Any]) -> tuple[str, ...]:
    version = root.get("version")
    return (f"written by ultralytics {_printable(version)[:40]}",) if isinstance(version, str) and version else ()


def _is_state_dict(value: object) -> bool:
    import torch

    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


@dataclass(slots=True)
class _Reading:
    """The walk over one file's modules, with what it may still take from a hostile one."""

    path: Path
    elements_left: int
    """An element takes a byte at least, so a file cannot hold more elements than it has bytes; views could claim to."""
    modules_left: int = _MODULE_LIMIT
    narrow_types: set[str] = field(default_factory=set)
    """Floating types other than float32 that were met."""

    def describe(self, source: object, where: str, depth: int) -> ModuleDescription:
        """Describe one module and its parts. `where` is its path inside the model."""
        self.modules_left -= 1
        if depth > _DEPTH_LIMIT or self.modules_left < 0:
            raise self._bad(where, "the modules are nested without end, or there are too many of them")
        if not isinstance(source, _StandIn):
            raise self._bad(where, f"a {type(source).__name__} where a module should be")
        state = vars(source)
        tensors = {kind: self._members(state, kind, where) for kind in ("_parameters", "_buffers")}
        return ModuleDescription(
            class_name=_printable(type(source).__name__),
            attributes=_attributes(state),
            parameters={name: self._tensor(value, f"{where}{name}") for name, value in tensors["_parameters"].items()},
            buffers={name: self._tensor(value, f"{where}{name}") for name, value in tensors["_buffers"].items()},
            children={
                name: self.describe(child, f"{where}{name}.", depth + 1)
                for name, child in self._members(state, "_modules", where).items()
            },
        )

    def _members(self, state: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
        """Return the named parts of one kind that are not `None`."""
        found = state.get(kind) or {}
        if not isinstance(found, dict):
            raise self._bad(where, f"{kind} is a {type(found).__name__} instead of a table")
        for name in found:
            if not (isinstance(name, str) and _MEMBER_NAME.fullmatch(name)):
                raise self._bad(where, f"{kind} has an unusable name: {_printable(str(name))!r}")
        return {name: value for name, value in found.items() if value is not None}

    def _tensor(self, value: Any, where: str) -> Any:
        import torch

        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise self._bad(where, "no plain tensor of numbers")
        if value.device.type != "cpu":
            raise self._bad(where, "the tensor has no data")
        self.elements_left -= value.numel()
        if self.elements_left < 0:
            raise self._bad(where, "the tensors claim more numbers than the file has bytes")
        value = value.detach()
        if value.is_floating_point() and value.dtype != torch.float32:
            self.narrow_types.add(str(value.dtype).removeprefix("torch."))
            return value.float()
        return value

    def _bad(self, where: str, message: str) -> SpecError:
        at = where.removesuffix(".")
        return SpecError.single(f"{self.path}{f', {at}' if at else ''}", message, "the file is damaged or hostile")


def _attributes(state: Mapping[str, Any]) -> dict[str, Plain]:
    """Return the public attributes with plain values."""
    found: dict[str, Plain] = {}
    for name, value in state.items():
        if isinstance(name, str) and _MEMBER_NAME.fullmatch(name) and not name.startswith("_"):
            with contextlib.suppress(TypeError):
                found[name] = _plain(value, 0)
    return found


def _plain(value: Any, depth: int) -> Plain:
    """Return a plain value as it is kept. Raises `TypeError` for anything else, or anything long."""
    import torch

    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _TEXT_LIMIT):
        return value
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() == 1 and value.numel() <= _SEQUENCE_LIMIT:
        value = value.tolist()
    if isinstance(value, (list, tuple)) and len(value) <= _SEQUENCE_LIMIT and depth < 2:
        return tuple(_plain(item, depth + 1) for item in value)
    raise TypeError


def _last_layer(model: ModuleDescription) -> ModuleDescription | None:
    layers = model.children.get("model")
    return list(layers.children.values())[-1] if layers is not None and layers.children else None


def _require_yolov10(path: Path, model: ModuleDescription) -> ModuleDescription:
    """Return the head, which tells the architecture: the model's own class changed its name between releases."""
    last = _last_layer(model)
    if last is None or last.class_name != HEAD_CLASS:
        ending = f" that ends in a {last.class_name}" if last is not None else ""
        msg = f"the file holds another architecture: a {model.class_name}{ending}, not a YOLOv10 detector"
        raise SpecError.single(str(path), msg, f"YOLOv10 ends in a {HEAD_CLASS}")
    return last


def _require_finite(path: Path, model: ModuleDescription) -> None:
    broken = list(_not_finite(model, ""))
    hint = "training diverged, or the file is damaged: use an earlier checkpoint"
    problems = [Problem(f"{path}, {name}", "holds values that are not finite", hint) for name in broken[:5]]
    if len(broken) > 5:
        problems.append(Problem(str(path), f"{len(broken) - 5} more tensors hold values that are not finite"))
    if problems:
        raise SpecError(problems)


def _not_finite(model: ModuleDescription, where: str) -> Iterator[str]:
    for name, tensor in (*model.parameters.items(), *model.buffers.items()):
        if not bool(tensor.isfinite().all()):
            yield where + name
    for name, child in model.children.items():
        yield from _not_finite(child, f"{where}{name}.")


def _strides(path: Path, model: ModuleDescription, head: ModuleDescription) -> tuple[int, ...]:
    found = model.attributes.get("stride") or head.attributes.get("stride")
    values = found if isinstance(found, tuple) else ()
    strides = tuple(int(value) for value in values if isinstance(value, (int, float)) and value in range(1, 1025))
    if not strides or len(strides) != len(values):
        msg = f"the strides of the detection levels are missing or no whole numbers of pixels: {found}"
        raise SpecError.single(str(path), msg, "use the .pt file of a finished YOLOv10 training")
    return strides


def _class_names(found: object, classes: Plain) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the class names by index, or `None` and a note that says why there are none."""
    table = dict(enumerate(found)) if isinstance(found, (list, tuple)) else found
    if not isinstance(table, dict) or not table:
        return None, ("the file names no classes",)
    if len(table) != classes or set(table) != set(range(len(table))):
        return None, (f"the file's {len(table)} class names do not fit its head of {classes} classes and are left out",)
    return tuple(_printable(str(table[index])) for index in range(len(table))), ()
