"""A sensitivity run's folder: reading strictly, claiming, and never losing an earlier run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sensitivity_samples as samples
from fewbits.core.codec import encode_pretty
from fewbits.core.errors import SpecError, StoreError
from fewbits.records.sensitivity import SensitivityManifest
from fewbits.store.folders import hold_folder, set_aside
from fewbits.store.sensitivity_runs import (
    SensitivityFolder,
    find_manifest,
    find_manifests_below,
    read_finished_manifest,
    read_manifest,
    refuse_finished_run,
    write_documents,
)

NAME = "wint8_aint8_autoquant_lm_quant_manifest.json"


def put(folder: Path, manifest: SensitivityManifest | None = None, name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(encode_pretty(manifest or samples.sample_manifest()))
    return path


class TestReading:
    def test_what_was_written_comes_back(self, tmp_path: Path) -> None:
        loaded = read_manifest(put(tmp_path))
        assert loaded.manifest == samples.sample_manifest()
        assert len(loaded.sha256) == 64

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "not a JSON object of ours"),
            (b'{"schema_version": "fewbits.sensi', "truncated"),
            (b"[1, 2]", "not a JSON object of ours"),
            (b"{}", "no schema_version"),
            (b'{"schema_version": "explorer.frontier.v1"}', "no sensitivity manifest of ours"),
            (b'{"schema_version": "fewbits.sensitivity_manifest.v7"}', "made by another version of fewbits"),
            (b'{"schema_version": "fewbits.sensitivity_manifest.v1", "status": "OK"}', "no whole manifest"),
            (b"\xff\xfe\x00", "not a JSON object of ours"),
            (b"[" * 100_000, "not a JSON object of ours"),
        ],
    )
    def test_what_is_no_manifest_of_ours_is_named(self, tmp_path: Path, data: bytes, words: str) -> None:
        path = tmp_path / NAME
        path.write_bytes(data)
        with pytest.raises(StoreError, match=words) as caught:
            read_manifest(path)
        assert NAME in str(caught.value)

    def test_an_edited_manifest_is_refused(self, tmp_path: Path) -> None:
        path = put(tmp_path)
        document = json.loads(path.read_bytes())
        document["surprise"] = 1
        path.write_text(json.dumps(document))
        with pytest.raises(StoreError, match="surprise"):
            read_manifest(path)

    def test_a_failed_run_has_no_scores_to_read(self, tmp_path: Path) -> None:
        path = put(tmp_path, samples.failed_manifest())
        assert read_manifest(path).manifest.failure
        with pytest.raises(StoreError, match=r"that run failed.*out of memory"):
            read_finished_manifest(path)

    def test_an_absent_one_is_an_error_of_the_caller(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="cannot read"):
            read_manifest(tmp_path / NAME)


class TestFinding:
    def test_the_only_one_needs_no_name(self, tmp_path: Path) -> None:
        path = put(tmp_path)
        assert find_manifest(tmp_path) == find_manifest(tmp_path, "wint8_aint8_autoquant_lm") == path

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="holds no"):
            find_manifest(tmp_path)
        with pytest.raises(SpecError, match="does not exist"):
            find_manifest(tmp_path / "absent")

    def test_two_need_the_scheme(self, tmp_path: Path) -> None:
        put(tmp_path)
        other = put(tmp_path, name="int8_quant_manifest.json")
        with pytest.raises(SpecError, match="schemes: int8, wint8_aint8_autoquant_lm"):
            find_manifest(tmp_path)
        assert find_manifest(tmp_path, "int8") == other
        with pytest.raises(SpecError, match=r"'int9'.*int8, wint8"):
            find_manifest(tmp_path, "int9")

    def test_a_scheme_cannot_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        put(tmp_path / "other", name="x_quant_manifest.json")
        (tmp_path / "here").mkdir()
        with pytest.raises(SpecError):
            find_manifest(tmp_path / "here", "../other/x")

    def test_below(self, tmp_path: Path) -> None:
        wanted = [put(tmp_path / "a" / "x"), put(tmp_path / "b")]
        put(tmp_path / "b" / "superseded" / "1")
        (tmp_path / "c").mkdir()
        assert find_manifests_below([tmp_path]) == wanted
        assert find_manifests_below([tmp_path / "b", tmp_path, wanted[0]]) == [wanted[1], wanted[0]]
        with pytest.raises(SpecError, match=r"c.*absent"):
            find_manifests_below([tmp_path, tmp_path / "c", tmp_path / "absent"])


class TestWriting:
    def test_a_run_is_written_and_a_second_one_refused(self, tmp_path: Path) -> None:
        folder = SensitivityFolder(tmp_path / "run")
        with folder.claimed(overwrite=False):
            written = folder.write(samples.sample_manifest())
        assert read_manifest(written.path) == written
        assert (tmp_path / "run" / "composed-config.yaml").read_text() == samples.COMPOSED
        with pytest.raises(StoreError, match=r"runner\.overwrite=true"), folder.claimed(overwrite=False):
            pytest.fail("a finished run was given away")

    def test_another_scheme_does_not_make_the_folder_free(self, tmp_path: Path) -> None:
        put(tmp_path, name="int8_quant_manifest.json")
        with pytest.raises(StoreError, match=r"int8_quant_manifest\.json"):
            refuse_finished_run(tmp_path, overwrite=False)

    def test_overwriting_keeps_every_earlier_run(self, tmp_path: Path) -> None:
        folder = SensitivityFolder(tmp_path)
        for score in (1.0, 2.0, 3.0):
            with folder.claimed(overwrite=True):
                folder.write(samples.sample_manifest(selected_score=score))
            write_documents(tmp_path, {"layer-sensitivity-report.md": f"{score}"})
        shelf = tmp_path / "superseded"
        assert sorted(path.name for path in shelf.iterdir()) == ["1", "2"]
        for number, score in (("1", 1.0), ("2", 2.0)):
            assert read_manifest(shelf / number / NAME).manifest.selected_score == score
            assert (shelf / number / "layer-sensitivity-report.md").read_text() == f"{score}"
        assert read_manifest(tmp_path / NAME).manifest.selected_score == 3.0

    def test_a_failed_run_is_replaced_without_asking(self, tmp_path: Path) -> None:
        folder = SensitivityFolder(tmp_path)
        with folder.claimed(overwrite=False):
            folder.write(samples.failed_manifest("wint8_aint8"))
        with folder.claimed(overwrite=False):
            folder.write(samples.sample_manifest())
        assert read_finished_manifest(tmp_path / NAME)
        assert not (tmp_path / "superseded").exists()

    def test_a_manifest_that_cannot_be_read_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / NAME).write_text("{")
        folder = SensitivityFolder(tmp_path)
        with pytest.raises(StoreError, match="holds a finished run"), folder.claimed(overwrite=False):
            pytest.fail("nobody knows what it was")
        with folder.claimed(overwrite=True):
            folder.write(samples.sample_manifest())
        assert (tmp_path / "superseded" / "1" / NAME).read_text() == "{"

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(StoreError, match="is a file, not a folder"),
            SensitivityFolder(tmp_path / "file" / "x").claimed(overwrite=False),
        ):
            pytest.fail("claimed")

    @pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
    def test_names_never_become_paths(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="no file name"):
            write_documents(tmp_path, {name: ""})


class TestClaim:
    def test_two_runs_collide_loudly(self, tmp_path: Path) -> None:
        """flock(2) belongs to the open file, so two opens in one process collide as two processes do."""
        folder = SensitivityFolder(tmp_path)
        with folder.claimed(overwrite=False):
            with pytest.raises(StoreError, match="in use by another sensitivity run"), folder.claimed(overwrite=True):
                pytest.fail("claimed twice")
            with hold_folder(tmp_path / "beside", "busy"):
                pass
        with folder.claimed(overwrite=False):
            pass

    def test_of_many_at_once_one_wins(self, tmp_path: Path) -> None:
        barrier = threading.Barrier(8)
        won: list[int] = []
        lost: list[int] = []

        def claim() -> None:
            barrier.wait()
            try:
                with SensitivityFolder(tmp_path).claimed(overwrite=False):
                    won.append(1)
                    done.wait(5)
            except StoreError:
                lost.append(1)
                if len(lost) == 7:
                    done.set()

        done = threading.Event()
        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)

    def test_a_killed_run_is_taken_over(self, tmp_path: Path) -> None:
        program = (
            "import sys, time, pathlib\n"
            "from fewbits.store.sensitivity_runs import SensitivityFolder\n"
            "with SensitivityFolder(pathlib.Path(sys.argv[1])).claimed(overwrite=False):\n"
            "    print('held', flush=True)\n"
            "    time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match="in use"), SensitivityFolder(tmp_path).claimed(overwrite=False):
                pytest.fail("claimed from a living process")
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        with SensitivityFolder(tmp_path).claimed(overwrite=False):
            pass


def test_set_aside_moves_what_is_there(tmp_path: Path) -> None:
    assert set_aside(tmp_path, [tmp_path / "absent"]) is None
    for number in ("1", "2"):
        (tmp_path / "a").write_text(number)
        assert set_aside(tmp_path, [tmp_path / "a", tmp_path / "absent"]) == tmp_path / "superseded" / number
    assert (tmp_path / "superseded" / "2" / "a").read_text() == "2"
