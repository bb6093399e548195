"""The sandbox against hostile code: each attack is contained, and the next example still scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.core.errors import BackendError, PrerequisiteError
from fewbits.records.base import Bucket
from fewbits.records.task import NumberCheck, PythonTestCheck, Task
from fewbits.workloads.text import sandbox
from fewbits.workloads.text.sandbox import (
    CallJob,
    ExtraImports,
    JobOutcome,
    JobStatus,
    Limits,
    Strength,
    TestJob,
    require_sandbox,
    run_jobs,
    sandbox_strength,
)
from fewbits.workloads.text.sandbox_filter import seccomp_program

needs_namespaces = pytest.mark.skipif(sandbox_strength() is not Strength.NAMESPACES, reason="needs user namespaces")
AFTER = CallJob("def g():\n    return 'alive'\n", "g")
QUICK = Limits(example_seconds=1.0, total_seconds=6.0)


def body(*lines: str) -> CallJob:
    return CallJob("import os, sys\ndef f():\n" + "\n".join(f"    {line}" for line in lines), "f")


def attack(*lines: str) -> JobOutcome:
    first, second = run_jobs([body(*lines), AFTER], QUICK)
    assert second == JobOutcome(JobStatus.RETURNED, "alive"), "the next example must still score"
    return first


@needs_namespaces
class TestContained:
    @pytest.mark.parametrize(
        ("lines", "status", "detail"),
        [
            (("os._exit(0)",), JobStatus.DIED, "exit code 0"),
            (("sys.exit(0)",), JobStatus.RAISED, "SystemExit"),
            (("import ctypes", "ctypes.string_at(0)"), JobStatus.DIED, "signal 11"),
            (("os.abort()",), JobStatus.DIED, "signal"),
            (("while True: pass",), JobStatus.TIMEOUT, "still running"),
            (("while True:", "    try:", "        while True: pass", "    except BaseException: pass"), JobStatus.TIMEOUT, ""),
            (("import time", "time.sleep(60)"), JobStatus.TIMEOUT, "still running"),
            (("return len('a' * 10**9)",), JobStatus.RAISED, "MemoryError"),
            (("return len(bytearray(10**12))",), JobStatus.RAISED, "MemoryError"),
            (("import mmap", "mmap.mmap(-1, 2**30)"), JobStatus.RAISED, "OSError"),
            (("while True: os.fork()",), JobStatus.RAISED, "PermissionError"),
            (("import subprocess", "subprocess.run(['/bin/sh', '-c', 'id'])"), JobStatus.RAISED, "PermissionError"),
            (("os.execv('/bin/sh', ['sh'])",), JobStatus.RAISED, "PermissionError"),
            (("import multiprocessing as m", "m.Process(target=print).start()"), JobStatus.RAISED, "PermissionError"),
            (("import socket", "socket.create_connection(('127.0.0.1', 22))"), JobStatus.RAISED, "PermissionError"),
            (("import urllib.request", "urllib.request.urlopen('http://127.0.0.1')"), JobStatus.RAISED, "not permitted"),
            (("return open('/etc/passwd').read()",), JobStatus.RAISED, "FileNotFoundError"),
            (("return os.listdir(os.path.expanduser('~/.ssh'))",), JobStatus.RAISED, "FileNotFoundError"),
            (("return os.listdir('/proc')",), JobStatus.RAISED, "FileNotFoundError"),
            (("return os.listdir('/home')",), JobStatus.RAISED, "FileNotFoundError"),
            (("import shutil", "shutil.rmtree('/')"), JobStatus.RAISED, ""),
            (("os.remove(os.__file__)",), JobStatus.RAISED, "Read-only file system"),
            (("open(os.path.dirname(os.__file__) + '/x.py', 'w')",), JobStatus.RAISED, "Read-only file system"),
            (("os.mkdir('/x')",), JobStatus.RAISED, "Read-only file system"),
            (("os.chmod('/dev/null', 0)",), JobStatus.RAISED, "Read-only file system"),
            (("open('big', 'w').write('x' * 5_000_000)",), JobStatus.RAISED, "File too large"),
            (("os.kill(os.getppid(), 9)",), JobStatus.RAISED, "PermissionError"),
            (("os.kill(-1, 9)",), JobStatus.RAISED, "PermissionError"),
            (("import resource", "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"), JobStatus.RAISED, "ValueError"),
            (("os.setuid(0)",), JobStatus.RAISED, "Error"),
            (("import signal", "signal.raise_signal(9)"), JobStatus.RAISED, "PermissionError"),
            (("def g(): return g()", "return g()"), JobStatus.RAISED, "RecursionError"),
            (("return 'x' * 10**6",), JobStatus.RAISED, "more data"),
            (("return input()",), JobStatus.RAISED, "EOFError"),
            (("raise KeyboardInterrupt",), JobStatus.RAISED, "KeyboardInterrupt"),
        ],
    )
    def test_attack(self, lines: tuple[str, ...], status: JobStatus, detail: str) -> None:
        outcome = attack(*lines)
        assert outcome.status is status, outcome
        assert detail in outcome.detail
        assert outcome.value is None

    def test_printing_a_lot_costs_nothing_and_returns(self) -> None:
        outcome = attack("for _ in range(100): print('x' * 1_000_000)", "sys.stderr.write('y' * 1_000_000)", "return 1")
        assert outcome.value == 1

    def test_growing_list_ends(self) -> None:
        assert attack("x = [0] * 1000", "while True: x += x").status in {JobStatus.RAISED, JobStatus.DIED, JobStatus.TIMEOUT}

    def test_thread_bomb_ends(self) -> None:
        lines = (
            "import threading, time",
            "for _ in range(10**6):",
            "    threading.Thread(target=time.sleep, args=(60,)).start()",
        )
        assert attack(*lines).status in {JobStatus.RAISED, JobStatus.TIMEOUT, JobStatus.DIED}

    def test_nothing_of_the_machine_shows(self) -> None:
        outcome = attack("return [sorted(os.listdir('/dev')), os.listdir('.'), os.getcwd(), sorted(os.environ), os.getuid()]")
        assert outcome.value == [
            ["null", "urandom", "zero"], [], "/tmp",
            ["HOME", "LC_CTYPE", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "PYTHONUTF8"], 65534,
        ]  # fmt: skip
        checkout = str(Path(__file__).resolve().parents[2])
        assert attack(f"return os.path.exists({checkout!r})").value is False
        # of the home folder at most the way to the interpreter shows
        interpreter = Path(sys.base_prefix).resolve()
        hidden = [str(path) for path in Path.home().iterdir() if not interpreter.is_relative_to(path)]
        assert attack(f"return [path for path in {hidden!r} if os.path.lexists(path)]").value == []

    def test_environment_secrets_are_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEWBITS_TEST_SECRET", "s3cret")
        assert attack("return 'FEWBITS_TEST_SECRET' in os.environ").value is False

    def test_files_do_not_reach_the_next_example(self) -> None:
        write = body("os.makedirs('d/e'); open('d/e/f', 'w').write('x')", "os.chmod('d', 0o500)", "return os.listdir('.')")
        first, second = run_jobs([write, body("return os.listdir('.')")], QUICK)
        assert (first.value, second.value) == (["d"], [])

    def test_patched_modules_do_not_reach_the_next_example(self) -> None:
        poison = body("import json", "json.dumps = lambda *a: '\"forged\"'", "sys.modules['os'] = None", "return 'mine'")
        assert [outcome.value for outcome in run_jobs([poison, AFTER], QUICK)] == ["mine", "alive"]

    def test_descriptors_hold_no_way_to_the_verdicts(self) -> None:
        forge = body(
            'frame = b\'{"status": "returned", "value": 42, "index": 1}\\n\'',
            "for descriptor in range(3, 64):",
            "    try: os.write(descriptor, frame)",
            "    except OSError: pass",
            "os._exit(0)",
        )
        first, second = run_jobs([forge, AFTER], QUICK)
        assert first.status is JobStatus.DIED
        assert second.value == "alive"

    def test_a_test_is_not_passed_by_leaving_early(self) -> None:
        frame = (
            "import os\nfor d in range(3, 64):\n    try: os.write(d, b'D' + b'{\"status\": \"returned\"}')\n"
            "    except OSError: pass\n"
        )
        for code in (f"{frame}os._exit(0)", "import os; os._exit(0)", "raise SystemExit(0)", "while True: pass"):
            (outcome,) = run_jobs([TestJob(code, "assert f() == 1")], QUICK)
            assert outcome.status is not JobStatus.RETURNED, code

    def test_budget_for_all_examples(self) -> None:
        outcomes = run_jobs([body("while True: pass")] * 4 + [AFTER], Limits(example_seconds=0.4, total_seconds=1.0))
        assert [outcome.status for outcome in outcomes][:2] == [JobStatus.TIMEOUT] * 2
        assert outcomes[-1].status is JobStatus.NOT_RUN
        assert "used up" in outcomes[-1].detail

    def test_no_capability_is_left(self) -> None:
        lines = (
            "import ctypes",
            "header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[9] * 6)",
            "return [ctypes.CDLL(None).capget(header, data), list(data)]",
        )
        assert attack(*lines).value == [0, [0] * 6]

    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        attack("open('left', 'w').write('x')", "while True: pass")
        assert list(tmp_path.iterdir()) == []
        assert "fewbits-sandbox-" not in Path("/proc/mounts").read_text(encoding="utf-8")


class TestValues:
    def test_plain_values_come_back(self) -> None:
        job = CallJob("def f(*a, **k):\n    return (a, k, None, True, 1.5)\n", "f", (1, "é\ud800", [2]), {"x": {"y": ()}})
        (outcome,) = run_jobs([job])
        assert outcome.value == [[1, "é\ud800", [2]], {"x": {"y": []}}, None, True, 1.5]

    @pytest.mark.parametrize(
        ("expression", "detail"),
        [
            ("{1, 2}", "type set"),
            ("{1: 2}", "key of type int"),
            ("float('nan')", "nan"),
            ("[float('inf')]", "inf"),
            ("b'x'", "type bytes"),
            ("1j", "type complex"),
            ("type('T', (int,), {'__eq__': lambda s, o: True})(1)", "type T"),
            ("type('L', (list,), {'__eq__': lambda s, o: True})()", "type L"),
            ("(lambda l: l.append(l) or l)([])", "nested deeper"),
            ("10 ** 5000", "ValueError"),
            ("print", "type builtin_function_or_method"),
        ],
    )
    def test_other_types_are_refused(self, expression: str, detail: str) -> None:
        (outcome,) = run_jobs([body(f"return {expression}")])
        assert outcome.status is JobStatus.RAISED
        assert detail in outcome.detail

    def test_code_that_fails_says_why(self) -> None:
        syntax, missing, raises, hostile = run_jobs(
            [
                CallJob("def f(:", "f"),
                CallJob("def g(): pass", "f"),
                CallJob("1 / 0", "f"),
                body("class E(Exception):", "    def __str__(self): raise self", "raise E"),
            ]
        )
        assert "SyntaxError" in syntax.detail
        assert missing.detail == "f is not defined"
        assert "the code itself fails: ZeroDivisionError" in raises.detail
        assert hostile.detail == "an exception that cannot be printed"

    def test_main_block_does_not_run(self) -> None:
        (outcome,) = run_jobs([CallJob("def f(): return 1\nif __name__ == '__main__':\n    raise RuntimeError", "f")])
        assert outcome.value == 1

    def test_hash_seed_and_random_are_fixed(self) -> None:
        job = body("import random", "return [list({'a', 'b', 'c', 'd', 'e'}), random.random()]")
        assert run_jobs([job]) == run_jobs([job])

    @settings(max_examples=4, deadline=None)
    @given(st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8), max_size=5))
    def test_json_arguments_come_back(self, values: list[Any]) -> None:
        outcomes = run_jobs([CallJob("def f(x): return x", "f", (value,)) for value in values])
        assert [json.dumps(outcome.value) for outcome in outcomes] == [json.dumps(value) for value in values]

    def test_startup_is_cheap(self) -> None:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            run_jobs([AFTER])
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.5  # about 0.06 s on an idle machine; shared cores get slack


TASKS = [
    Task(id="a", bucket=Bucket.LOGIC, tier=1, prompt="?", checks=(NumberCheck(value=1),)),
    Task(id="b", bucket=Bucket.REFACTOR, tier=1, prompt="?", checks=(PythonTestCheck(test="f()"),)),
]


class TestStrength:
    def test_no_python_checks_need_no_sandbox(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "sandbox_strength", lambda: Strength.UNAVAILABLE)
        assert require_sandbox(TASKS[:1]) is None

    @pytest.mark.parametrize("strength", [Strength.RLIMITS, Strength.UNAVAILABLE])
    def test_weak_walls_run_nothing_unless_accepted(self, strength: Strength, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "sandbox_strength", lambda: strength)
        monkeypatch.delenv(sandbox.WEAK_SANDBOX_VARIABLE, raising=False)
        calls: list[Callable[[], object]] = [lambda: require_sandbox(TASKS), lambda: run_jobs([AFTER])]
        for call in calls:
            with pytest.raises(PrerequisiteError, match="FEWBITS_ALLOW_WEAK_SANDBOX=1"):
                call()

    def test_weak_walls_when_accepted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "sandbox_strength", lambda: Strength.RLIMITS)
        monkeypatch.setenv(sandbox.WEAK_SANDBOX_VARIABLE, "1")
        assert require_sandbox(TASKS) is Strength.RLIMITS
        outcomes = run_jobs(
            [body("return len('a' * 10**9)"), body("open('x', 'w').write('y' * 5_000_000)"), body("while True: pass"), AFTER],
            QUICK,
        )
        assert [outcome.status for outcome in outcomes] == [
            JobStatus.RAISED,
            JobStatus.RAISED,
            JobStatus.TIMEOUT,
            JobStatus.RETURNED,
        ]

    @pytest.mark.skipif(sys.platform != "linux" or seccomp_program() is None, reason="needs seccomp")
    def test_the_filter_holds_without_namespaces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "sandbox_strength", lambda: Strength.RLIMITS)
        monkeypatch.setenv(sandbox.WEAK_SANDBOX_VARIABLE, "1")
        fork, network, after = run_jobs([body("os.fork()"), body("import socket; socket.socket()"), AFTER], QUICK)
        assert "PermissionError" in fork.detail
        assert "PermissionError" in network.detail
        assert after.value == "alive"

    def test_unavailable_is_never_run_even_when_weak_is_accepted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "sandbox_strength", lambda: Strength.UNAVAILABLE)
        monkeypatch.setenv(sandbox.WEAK_SANDBOX_VARIABLE, "1")
        with pytest.raises(PrerequisiteError):
            run_jobs([AFTER])

    def test_a_sandbox_that_cannot_be_set_up_is_an_error(self) -> None:
        with pytest.raises(BackendError, match="no_such_module"):
            run_jobs([AFTER], extra=ExtraImports(preload=("no_such_module",)))

    @needs_namespaces
    def test_dies_with_its_parent(self, tmp_path: Path) -> None:
        program = (
            "from fewbits.workloads.text.sandbox import *\n"
            "run_jobs([CallJob('def f():\\n    while True: pass', 'f')], Limits(example_seconds=30, total_seconds=30))\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)})
        deadline = time.monotonic() + 20
        while not _runners_of(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        runners = _runners_of(parent.pid)
        assert runners
        parent.kill()
        parent.wait()
        while any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in runners) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in runners if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]


def _runners_of(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class TestFilter:
    def test_known_architectures(self) -> None:
        assert seccomp_program("x86_64")
        assert seccomp_program("aarch64")
        assert seccomp_program("riscv64") is None

    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    def test_jumps_stay_inside(self, machine: str) -> None:
        program = seccomp_program(machine)
        assert program is not None
        for index, (code, if_true, if_false, _) in enumerate(program):
            assert code in {0x20, 0x15, 0x35, 0x54, 0x06}
            assert index + 1 + max(if_true, if_false) < len(program) or code == 0x06
        assert program[-1] == (0x06, 0, 0, 0x7FFF0000)
