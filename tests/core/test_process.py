import os
import subprocess
import sys
import time
from pathlib import Path

from fewbits.core.process import run_command, spawn, stop


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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
