from pathlib import Path

import pytest

from fewbits.core.errors import StoreError
from fewbits.store.run_directory import RunDirectory


def test_two_sweeps_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run").locked(),
        pytest.raises(StoreError, match="in use by another sweep"),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass
    with RunDirectory(tmp_path / "run").locked():
        pass


def test_starting_over_keeps_every_earlier_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.set_aside() is None
    for number in (1, 2):
        directory.trials_path.write_text(f"run {number}\n")
        assert directory.set_aside() == tmp_path / "superseded" / str(number)
    assert not directory.holds_a_run()
    assert (tmp_path / "superseded" / "1" / "trials.jsonl").read_text() == "run 1\n"


def test_an_unwritable_folder_is_one_clear_message(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StoreError, match="is a file, not a folder"), RunDirectory(blocker / "run").locked():
        pass


def test_names_with_slashes_stay_inside_the_folder(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    path = directory.manifest_path("../../etc/passwd", "Q4/../K")
    assert path.resolve().is_relative_to(tmp_path.resolve())


def test_divergence_is_part_of_a_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.divergence_path.write_text("{}\n")
    assert directory.holds_a_run()
    directory.set_aside()
    assert (tmp_path / "superseded" / "1" / "divergence.jsonl").exists()
