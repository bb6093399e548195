"""Checkpoints are read without their code: hostile ones run nothing, and every wrong file gets its own sentence."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fewbits.core.errors import SpecError  # noqa: E402
from fewbits.quantizers.brevitas import checkpoint as checkpoint_module  # noqa: E402
from fewbits.quantizers.brevitas.checkpoint import ModuleDescription, read_checkpoint  # noqa: E402
from quantizers.yolov10_samples import Sample, conv, foreign, make, make_model, save, write_checkpoint  # noqa: E402


class Bomb:
    """Calls a function with arguments as soon as it is unpickled without care."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def marking(marker: Path) -> Bomb:
    return Bomb(os.system, f"touch '{marker}'")


def walk(module: ModuleDescription) -> Iterator[ModuleDescription]:
    yield module
    for child in module.children.values():
        yield from walk(child)


def refused(path: Path, match: str) -> SpecError:
    with pytest.raises(SpecError, match=match) as caught:
        read_checkpoint(path)
    assert all(str(path) in problem.path for problem in caught.value.problems)
    return caught.value


@pytest.fixture(scope="module")
def sample_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sample") / "tiny.pt")


def test_a_checkpoint_is_read_whole(sample_path: Path) -> None:
    found = read_checkpoint(sample_path)
    assert found.sha256 == hashlib.sha256(sample_path.read_bytes()).hexdigest()
    assert found.bytes == sample_path.stat().st_size
    assert (found.names, found.strides, found.notes) == (("cat", "dog", "bird"), (8, 16, 32), ())
    assert found.head.class_name == "v10Detect"
    assert (found.head.attributes["nc"], found.head.attributes["f"]) == (3, (16, 19, 22))
    first = found.model.children["model"].children["0"]
    assert first.class_name == "Conv"
    assert first.children["conv"].attributes["kernel_size"] == (3, 3)
    assert tuple(first.children["conv"].parameters["weight"].shape) == (8, 3, 3, 3)
    assert set(first.children["bn"].buffers) == {"running_mean", "running_var", "num_batches_tracked"}


def test_the_same_numbers_as_in_the_model(sample_path: Path) -> None:
    original = make_model(Sample()).state_dict()

    def tensors(module: ModuleDescription, where: str = "") -> Iterator[tuple[str, Any]]:
        for name, tensor in (*module.parameters.items(), *module.buffers.items()):
            yield where + name, tensor
        for name, child in module.children.items():
            yield from tensors(child, f"{where}{name}.")

    found = dict(tensors(read_checkpoint(sample_path).model))
    assert set(found) == set(original)
    assert all(torch.equal(found[name], original[name]) for name in found)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_half_precision_is_read_as_float32(tmp_path: Path, sample_path: Path) -> None:
    path = save(tmp_path / "half.pt", {"model": make_model(Sample()).half()})
    found = read_checkpoint(path)
    assert found.notes == ("weights stored as float16, read as float32",)
    weight = found.head.children["cv2"].children["0"].children["2"].parameters["weight"]
    exact = read_checkpoint(sample_path).head.children["cv2"].children["0"].children["2"].parameters["weight"]
    assert weight.dtype == torch.float32
    assert 0 < float((weight - exact).abs().max()) < 1e-3


def test_the_averaged_weights_come_first(tmp_path: Path) -> None:
    averaged = make_model(Sample(seed=1))
    for content in ({"model": make_model(Sample()), "ema": averaged}, {"model": None, "ema": averaged}):
        found = read_checkpoint(save(tmp_path / "both.pt", {**content, "version": "8.1.34\x1b[31m"}))
        assert torch.equal(
            found.model.children["model"].children["0"].children["conv"].parameters["weight"], averaged.model[0].conv.weight
        )
        assert "averaged" in found.notes[0]
        assert found.notes[1] == "written by ultralytics 8.1.34?[31m"
    assert read_checkpoint(write_checkpoint(tmp_path / "none.pt", ema=None)).notes == ()


def test_a_model_that_was_saved_by_itself(tmp_path: Path) -> None:
    assert read_checkpoint(save(tmp_path / "bare.pt", make_model(Sample()))).head.class_name == "v10Detect"


def test_what_a_trainer_leaves_in_the_file_is_no_obstacle(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    model = make_model(Sample())
    settings = foreign("IterableSimpleNamespace")()
    settings.imgsz = 640
    model.args = settings
    model.criterion = nn.BCEWithLogitsLoss()
    path = write_checkpoint(tmp_path / "last.pt", model=model, epoch=3, best_fitness=numpy.float64(0.4), date="today")
    found = read_checkpoint(path)
    assert "args" not in found.model.attributes
    assert "criterion" in found.model.children


@pytest.mark.parametrize(
    ("names", "expected", "note"),
    [
        (["a", "b", "c"], ("a", "b", "c"), None),
        ({2: "c", 0: "a", 1: "b\n"}, ("a", "b?", "c"), None),
        ({0: "a"}, None, "1 class names do not fit its head of 3 classes"),
        ({1: "a", 2: "b", 3: "c"}, None, "do not fit"),
        (None, None, "names no classes"),
    ],
)
def test_class_names(tmp_path: Path, names: Any, expected: tuple[str, ...] | None, note: str | None) -> None:
    found = read_checkpoint(write_checkpoint(tmp_path / "names.pt", Sample(names=names)))
    assert found.names == expected
    assert [note in line for line in found.notes] == ([True] if note else []) if note else found.notes == ()


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "hostile.pt", {"model": marking(marker)})
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file is as hostile as it should be"
    marker.unlink()
    refused(path, r"no place in a detector: (posix|nt)\.system\. Nothing of it was executed")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["attribute", "parameter", "buffer", "module", "beside"])
def test_hidden_code_runs_nothing(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "marker"
    model = make_model(Sample())
    layer = model.model[22].m[0].cv1[2]
    if place == "attribute":
        layer.act.inplace = marking(marker)
    elif place == "parameter":
        layer.conv.conv._parameters["bias"] = marking(marker)
    elif place == "buffer":
        layer.conv.bn._buffers["running_mean"] = marking(marker)
    elif place == "module":
        layer._modules["hidden"] = marking(marker)
    entries: dict[str, Any] = {"date": marking(marker)} if place == "beside" else {}
    path = save(tmp_path / "hidden.pt", {"model": model, **entries})
    refused(path, r"\.system")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (builtins.eval, r"builtins\.eval"),
        (builtins.getattr, r"builtins\.getattr"),
        (__import__, r"builtins\.__import__"),
        (pickle.loads, r"pickle\.loads"),
        (torch.hub.load, r"torch\.hub\.load"),
        (io.open, r"\w*io\.open"),
    ],
)
def test_every_foreign_function_is_named(tmp_path: Path, function: Callable[..., Any], named: str) -> None:
    refused(save(tmp_path / "foreign.pt", {"model": make_model(Sample()), "x": Bomb(function, "1")}), named)


def test_objects_of_other_libraries_are_named(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    refused(
        save(tmp_path / "array.pt", {"model": make_model(Sample()), "x": numpy.ones(3)}), r"numpy\.\w*core\.\w+\._reconstruct"
    )


def pickle_of(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


def write_archive(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def test_a_function_under_an_allowed_name_is_never_looked_up(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    argument = f"touch '{marker}'".encode()
    # `torch.nn.modules.module` imports nothing of the sort, but attribute paths may lead anywhere: this one to `os.system`
    for name in (b"ctorch.nn.modules.utils\ncollections.abc.sys.modules\n", b"cultralytics.utils\nos.system\n"):
        call = pickle_of(name, b"X" + len(argument).to_bytes(4, "little") + argument, b"\x85R")
        refused(write_archive(tmp_path / "path.pt", call), "another architecture: a (modules|system)")
        assert not marker.exists()


def test_unknown_ways_of_pickling_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "protocol.pt", {"model": marking(marker)}, pickle_protocol=4)
    refused(path, "not read here.*Unsupported operand")
    assert not marker.exists()


def test_what_other_libraries_allowed_does_not_count(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "allowed.pt", {"model": Bomb(Path.touch, marker)})
    real = [(Path.touch, "builtins.getattr")]
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals(real):
        refused(path, r"builtins\.getattr")
        assert set(torch.serialization.get_safe_globals()) == {*before, *real}
    assert not marker.exists()


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "is a folder")
    refused(tmp_path / ("long" * 100), "cannot be read: File name too long")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "the file is empty")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "no such file")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, sample_path: Path, share: float) -> None:
    whole = sample_path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "cut.pt", "truncated or damaged.*copy it again")


def test_damaged_bytes_in_the_structure(tmp_path: Path, sample_path: Path) -> None:
    whole = bytearray(sample_path.read_bytes())
    start = whole.index(b"ultralytics")
    whole[start : start + 200] = b"\xff" * 200
    (tmp_path / "broken.pt").write_bytes(whole)
    refused(tmp_path / "broken.pt", "damaged")


def test_not_a_checkpoint_at_all(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(b"GIF89a and so on")
    refused(path, "no torch checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    refused(path, "not one that torch.save wrote")
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{member}", b"")
    refused(path, "TorchScript")


def test_the_old_format_is_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "old.pt", {"model": marking(marker)}, _use_new_zipfile_serialization=False)
    refused(path, "format of torch before 1.6")
    path.write_bytes(pickle.dumps({"model": marking(marker)}))
    refused(path, "bare pickle")
    assert not marker.exists()


def test_a_file_larger_than_any_detector(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    with path.open("wb") as handle:
        handle.write(b"PK\x03\x04")
        handle.truncate(checkpoint_module.FILE_LIMIT_BYTES + 1)
    refused(path, r"2\.0 GiB, more than any detector")


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_PICKLE_LIMIT_BYTES", 1024)
    path = write_archive(tmp_path / "bomb.pt", pickle_of(b"N") + b"\0" * 1_000_000, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    refused(path, r"unpacked, it claims 976\.6 KiB")


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    model = make_model(Sample())
    model.model[0].conv.weight = nn.Parameter(torch.zeros(1).expand(2_000_000_000))
    path = save(tmp_path / "claims.pt", {"model": model})
    assert path.stat().st_size < 2_000_000
    refused(path, "claim more numbers than the file has bytes")


def test_modules_nested_without_end(tmp_path: Path) -> None:
    model = make_model(Sample())
    model.model[9]._modules["again"] = model
    refused(save(tmp_path / "loop.pt", {"model": model}), "nested without end")
    wide: Any = nn.Identity()
    for _ in range(25):
        wide = make("Concat", one=wide, two=wide)
    model = make_model(Sample())
    model.model[9]._modules["again"] = wide
    refused(save(tmp_path / "wide.pt", {"model": model}), "too many of them")


def test_weights_without_structure(tmp_path: Path) -> None:
    state = make_model(Sample()).state_dict()
    for content in (state, dict(state), {"model": state}, {"state_dict": state, "epoch": 3}, {"model": None, "ema": state}):
        refused(save(tmp_path / "state.pt", content), "by name only")


@pytest.mark.parametrize(
    ("content", "match"),
    [([1, 2], "holds a list, no model"), ({}, r"found: nothing"), ({"epoch": 3, "\x1b[2J": 1}, r"found: epoch, \?\[2J")],
)
def test_files_without_a_model(tmp_path: Path, content: Any, match: str) -> None:
    refused(save(tmp_path / "other.pt", content), match)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    eight = make("DetectionModel", model=nn.Sequential(conv(3, 8), make("Detect", {"nc": 3})))
    refused(save(tmp_path / "eight.pt", {"model": eight}), "a DetectionModel that ends in a Detect, not a YOLOv10")
    classifier = make("ClassificationModel", model=nn.Sequential(conv(3, 8), make("Classify", linear=nn.Linear(8, 3))))
    refused(save(tmp_path / "classifier.pt", {"model": classifier}), "a ClassificationModel that ends in a Classify")
    refused(save(tmp_path / "plain.pt", nn.Sequential(nn.Linear(8, 3))), "another architecture: a Sequential, not")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    model = make_model(Sample())
    model.model[5].cv1.conv.weight.data[0, 0] = value
    model.model[23].one2one_cv2[0][0].bn.running_var[1] = value
    error = refused(save(tmp_path / "diverged.pt", {"model": model}), "not finite.*training diverged")
    assert [problem.path.rpartition(", ")[2] for problem in error.problems] == [
        "model.5.cv1.conv.weight",
        "model.23.one2one_cv2.0.0.bn.running_var",
    ]
    for parameter in model.parameters():
        parameter.data.fill_(value)
    problems = refused(save(tmp_path / "all.pt", {"model": model}), "more tensors").problems
    assert len(problems) == 6


@pytest.mark.parametrize(
    "stride", [None, torch.tensor([8.0, 16.5, 32.0]), torch.tensor([0.0, 16.0, 32.0]), torch.tensor([math.inf]), "8"]
)
def test_strides_that_are_no_pixels(tmp_path: Path, stride: Any) -> None:
    model = make_model(Sample())
    model.stride = model.model[23].stride = stride
    refused(save(tmp_path / "strides.pt", {"model": model}), "strides of the detection levels")


@pytest.mark.parametrize(
    ("table", "value", "match"),
    [
        ("_parameters", {"weight": torch.ones(2).to_sparse()}, "no plain tensor"),
        ("_parameters", {"weight": torch.ones(2, dtype=torch.complex64)}, "no plain tensor"),
        ("_parameters", {"weight": torch.ones(2, device="meta")}, "no data"),
        ("_parameters", {"weight": "none"}, "no plain tensor"),
        ("_parameters", {"../../etc": torch.ones(2)}, "unusable name"),
        ("_buffers", [1], "instead of a table"),
        ("_modules", {"x": 3}, "an int where a module should be|a int where"),
        ("_modules", {3: None}, "unusable name"),
    ],
)
def test_damaged_tables(tmp_path: Path, table: str, value: Any, match: str) -> None:
    model = make_model(Sample())
    setattr(model.model[0].conv, table, value) if table != "_modules" else model.model[0].__dict__.update({table: value})
    error = refused(save(tmp_path / "tables.pt", {"model": model}), match)
    assert "model.0" in error.problems[0].path


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_a_damaged_file_says_it_is_read_or_refused(sample_path: Path, data: st.DataObject) -> None:
    with zipfile.ZipFile(sample_path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    structure = next(name for name in members if name.endswith("/data.pkl"))
    content = bytearray(members[structure])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    path = sample_path.with_name("damaged.pt")
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, bytes(content) if name == structure else value)
    with contextlib.suppress(SpecError):
        assert read_checkpoint(path).head.class_name == "v10Detect"
