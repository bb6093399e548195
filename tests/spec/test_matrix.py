from __future__ import annotations

from pathlib import Path

import pytest

from fewbits.core.errors import SpecError
from fewbits.spec.matrix import MAX_BYTES, read_document


def problems_of(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read_document(path)
    return str(caught.value)


def write(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    from_json = read_document(write(tmp_path, "a.json", '{"models": ["m"], "seed": 3, "threads": null}'))
    from_yaml = read_document(write(tmp_path, "a.yaml", "models: [m]\nseed: 3\nthreads: null\n"))
    assert from_json == from_yaml == {"models": ["m"], "seed": 3, "threads": None}


@pytest.mark.parametrize(("name", "text"), [("a.json", '{"seed": 1}'), ("a.yml", "seed: 1\n")])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, name: str, text: str) -> None:
    assert read_document(write(tmp_path, name, b"\xef\xbb\xbf" + text.encode())) == {"seed": 1}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '{"seed": 1, "seed": 1}', "'seed' is given twice"),
        ("a.yaml", "seed: 1\nseed: 1\n", "'seed' is given twice"),
        ("a.json", '{"quality_policy": {"name": "x", "name": "y"}}', "'name' is given twice"),
        ("a.yaml", "quality_policy: {name: x, name: y}\n", "'name' is given twice"),
        ("a.json", '{"temperature": NaN}', "temperature: nan is not a usable number"),
        ("a.json", '{"latency_ceiling": -Infinity}', "latency_ceiling: -inf is not"),
        ("a.json", '{"latency_ceiling": 1e999}', "latency_ceiling: inf is not"),
        ("a.json", '{"tiers": [1, NaN]}', "tiers[1]: nan is not"),
        ("a.yaml", "temperature: .nan\n", "temperature: nan is not"),
        ("a.yaml", "temperature: .inf\n", "temperature: inf is not"),
        ("a.json", "[1]", "expected an object of settings, got a list"),
        ("a.yaml", "", "expected an object of settings, got nothing"),
        ("a.json", "", "a.json:1:1: not JSON"),
        ("a.json", '{"a": 1,}', "not JSON"),
        ("a.yaml", "a: [1\n", "not YAML"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "not YAML"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("a.yaml", "a: &x [1]\nb: *x\n", "aliases are not used here"),
        ("a.yaml", "a: &x [*x]\n", "aliases are not used here"),
        ("a.yaml", "<<: {seed: 1}\nseed: 2\n", "a key must be plain text"),
        ("a.yaml", "1: x\n", "a key must be plain text"),
        ("a.yaml", "? [a, b]\n: x\n", "a key must be plain text"),
        ("a.json", '{"seed": ' + "9" * 5000 + "}", "not a usable JSON file"),
        ("a.yaml", "seed: " + "9" * 5000, "not a usable YAML file"),
        ("a.json", "[" * 50_000, "not a usable JSON file"),
        ("a.yaml", "[" * 1000, "not "),
        ("a.json", '{"a": ' + "[" * 50 + "]" * 50 + "}", "nested more than 32 deep"),
        ("a.toml", "", "unknown kind of file '.toml'"),
        ("a.json", b"\xff\xfe", "not UTF-8"),
        ("a.json", " " * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, text: str | bytes, expected: str) -> None:
    assert expected in problems_of(write(tmp_path, name, text))


def test_an_alias_bomb_ends_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "a.yaml:2:" in problems_of(write(tmp_path, "a.yaml", "\n".join(lines)))


def test_every_problem_of_the_text_at_once(tmp_path: Path) -> None:
    message = problems_of(write(tmp_path, "a.json", '{"seed": 1, "seed": 2, "temperature": NaN, "latency_ceiling": Infinity}'))
    assert message.startswith("3 problems:")


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "right.json", "{}")
    assert "beside it there are: right.json" in problems_of(tmp_path / "rihgt.json")
    assert "check the path" in problems_of(tmp_path / "nowhere" / "a.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    assert "cannot be read" in problems_of(tmp_path / "d.json")
