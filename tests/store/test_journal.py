import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.errors import StoreError
from fewbits.store.journal import JournalWriter, read_journal, read_rows_at


class Row(msgspec.Struct, frozen=True):
    n: int
    text: str = ""


def write(path: Path, rows: list[Row]) -> None:
    writer = JournalWriter(path)
    for row in rows:
        writer.append(row)
    writer.close()


def test_a_missing_journal_is_empty(tmp_path: Path) -> None:
    content = read_journal(tmp_path / "none.jsonl", Row)
    assert content.rows == ()
    assert content.torn_bytes == 0


@settings(max_examples=30)
@given(
    rows=st.lists(
        st.builds(Row, n=st.integers(0, 9), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40)), max_size=8
    ),
    cut=st.integers(0, 200),
)
def test_a_journal_cut_anywhere_loses_at_most_the_row_in_flight(
    rows: list[Row], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "trials.jsonl"
    write(path, rows)
    data = path.read_bytes()
    keep = max(0, len(data) - cut)
    path.write_bytes(data[:keep])
    survivors = data[:keep].count(b"\n")
    assert read_journal(path, Row).rows == tuple(rows[:survivors])
    write(path, [Row(n=99)])
    assert read_journal(path, Row).rows == (*rows[:survivors], Row(n=99))


def test_the_digest_does_not_depend_on_order(tmp_path: Path) -> None:
    rows = [Row(n=n) for n in range(5)]
    write(tmp_path / "a", rows)
    write(tmp_path / "b", rows[::-1])
    write(tmp_path / "c", rows[:4])
    digests = {name: read_journal(tmp_path / name, Row).digest for name in "abc"}
    assert digests["a"] == digests["b"] != digests["c"]


def test_damage_in_the_middle_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"n":1}\n{"n":"x"}\n{"n":3}\n')
    with pytest.raises(StoreError, match=r"trials.jsonl:2: .*--fresh"):
        read_journal(path, Row)


def test_kill_9_while_writing_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\nfrom fewbits.store.journal import JournalWriter\n"
        "w=JournalWriter(Path(sys.argv[1]))\nn=0\nwhile True:\n w.append({'n':n,'text':'x'*5000}); n+=1; print(n,flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 20:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    rows = read_journal(path, Row).rows
    assert len(rows) >= acknowledged
    assert [row.n for row in rows] == list(range(len(rows)))


def test_a_full_disk_is_explained_and_leaves_no_half_row() -> None:
    writer = JournalWriter(Path("/dev/full"))
    with pytest.raises(StoreError, match="cannot write /dev/full"):
        writer.append(Row(n=1))


def test_a_few_rows_are_read_again_from_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writer = JournalWriter(path)
    for number in range(5):
        writer.append({"number": number, "text": "ä" * number})
    writer.close()
    with path.open("ab") as stream:
        stream.write(b'{"number": 9, "te')  # torn
    content = read_journal(path, dict[str, Any])
    assert len(content.offsets) == len(content.rows) == 5
    again = read_rows_at(path, [content.offsets[3], content.offsets[1]], dict[str, Any])
    assert again == [content.rows[3], content.rows[1]]
    with pytest.raises(StoreError, match="cannot read"):
        read_rows_at(tmp_path / "absent.jsonl", [0], dict[str, Any])
