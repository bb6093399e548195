import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewbits.core.process import STDERR_KEPT_BYTES, BoundedResult, run_bounded, run_command, spawn, stop

MIB = 1024 * 1024


def test_a_command_that_overruns_is_killed_with_its_children() -> None:
    code = (
        "import subprocess,sys,time; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    result = run_command([sys.executable, "-c", code], timeout_seconds=1.5)
    assert result.timed_out
    assert result.returncode is None
    grandchild = int(result.stdout.split()[0])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(grandchild):
        time.sleep(0.05)
    assert not _alive(grandchild)


def test_exit_code_and_tail_are_reported() -> None:
    result = run_command([sys.executable, "-c", "import sys; sys.stderr.write('why\\n'); sys.exit(7)"], timeout_seconds=20)
    assert (result.ok, result.returncode, result.tail) == (False, 7, "why")


def test_a_spawned_child_dies_with_its_parent() -> None:
    code = (
        "import sys,subprocess; from fewbits.core.process import spawn;"
        "p=spawn([sys.executable,'-c','import time; time.sleep(60)'],log=subprocess.DEVNULL); print(p.pid,flush=True);"
        "import os,signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = run_command([sys.executable, "-c", code], timeout_seconds=20)
    child = int(result.stdout.split()[0])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def test_stop_reaps() -> None:
    process = spawn([sys.executable, "-c", "import time; time.sleep(60)"], log=subprocess.DEVNULL)
    stop(process)
    assert process.returncode is not None


def bounded(code: str, *, timeout_seconds: float = 30, limit: int = MIB) -> BoundedResult:
    return run_bounded([sys.executable, "-c", code], timeout_seconds=timeout_seconds, output_limit_bytes=limit)


def test_a_bounded_command_gives_both_streams_and_its_exit_code() -> None:
    result = bounded("import sys; sys.stdout.write('out' * 1000); sys.stderr.write('err'); sys.exit(3)")
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out" * 1000, b"err")
    assert not result.timed_out
    assert not result.too_large
    assert 0 < result.wall_seconds < 30


def test_output_of_exactly_the_limit_is_whole() -> None:
    result = bounded(f"import sys; sys.stdout.write('x' * {MIB})")
    assert (result.returncode, len(result.stdout), result.too_large) == (0, MIB, False)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_hundred_megabytes_are_cut_off_and_the_writer_is_killed(stream: str) -> None:
    code = f"import sys\nfor _ in range(100): sys.{stream}.write('x' * {MIB})\nimport time; time.sleep(60)"
    result = bounded(code)
    assert result.too_large
    assert not result.timed_out
    assert result.returncode is None
    assert len(result.stdout) <= MIB
    assert len(result.stderr) <= STDERR_KEPT_BYTES
    assert result.wall_seconds < 30


def test_stderr_keeps_its_end() -> None:
    result = bounded("import sys; sys.stderr.write('x' * 200_000 + 'the end')")
    assert len(result.stderr) == STDERR_KEPT_BYTES
    assert result.stderr.endswith(b"the end")


def test_a_bounded_command_that_hangs_is_killed_with_its_children() -> None:
    code = (
        "import subprocess,sys,time; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    result = bounded(code, timeout_seconds=1.5)
    assert (result.timed_out, result.returncode) == (True, None)
    _wait_until_gone(int(result.stdout.split()[0]))


def test_a_command_that_closes_its_streams_and_hangs_is_killed_at_its_deadline() -> None:
    result = bounded("import os,time; os.close(1); os.close(2); time.sleep(60)", timeout_seconds=1)
    assert result.timed_out
    assert result.wall_seconds < 10


def test_a_grandchild_that_keeps_the_pipe_is_not_waited_for() -> None:
    code = (
        "import subprocess,sys; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)']); print(p.pid, flush=True)"
    )
    result = bounded(code)
    assert (result.returncode, result.timed_out) == (0, False)
    assert result.wall_seconds < 20
    _wait_until_gone(int(result.stdout.split()[0]))


def test_a_daemon_that_left_the_group_cannot_hold_us_up() -> None:
    code = (
        "import subprocess,sys,time; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(20)'],"
        "start_new_session=True); print(p.pid, flush=True); time.sleep(60)"
    )
    result = bounded(code, timeout_seconds=1.5)
    os.kill(int(result.stdout.split()[0]), 9)
    assert result.timed_out
    assert result.wall_seconds < 10


def test_a_bounded_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        run_bounded(["/nonexistent/tool"], timeout_seconds=1, output_limit_bytes=10)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
