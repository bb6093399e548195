"""Runs inside the sandbox: `python -s -S -P sandbox_runner.py RESULT_FD`. Standard library only, never imported by fewbits.

Three kinds of process: the *outer* one enters new namespaces; its child, the *supervisor*, is process 1 of them, builds a
read-only root; each job is a *worker* forked from the supervisor without its privileges, so that a crash, a hang or a
patched module ends with that job. Workers never hold the result pipe: they hand one value to the supervisor.
"""

# pathlib would double the start-up time of every run; /tmp is the private one that is mounted here
# ruff: noqa: PTH102, PTH103, PTH108, PTH110, PTH112, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211, S108

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import select
import shutil
import signal
import sys
import time
from typing import Any

_CLONE_NEW = 0x00020000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mnt user pid net ipc uts
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
# statvfs flag -> mount flag: a remount inside a user namespace must keep the flags that the mount came with
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_TOKEN_BYTES = 16
_DEPTH_LIMIT = 64
_INSIDE_ID = 65534

_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: int = 0, pointer: Any = None) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(option, ctypes.c_ulong(value), pointer if pointer is not None else zero, zero, zero))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {target}")


# --- the room ----------------------------------------------------------------------------------------------------------


def _enter_namespaces() -> None:
    """Leave the machine's user, process, network, mount and IPC namespaces; become nobody inside."""
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEW), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_INSIDE_ID} {uid} 1"), ("gid_map", f"{_INSIDE_ID} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as handle:
            handle.write(text)


def _build_root(root: str, visible: list[str]) -> None:
    """Make `root` a tiny file system: the given folders read-only, three devices, an empty writable /tmp; move there."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755,nr_inodes=2048")
    for path in visible:
        target = root + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(path), target)
        elif not os.path.exists(target):
            os.makedirs(target)
            _mount(path, target, None, _MS_BIND | _MS_REC)
    os.mkdir(root + "/dev")
    for name in ("null", "zero", "urandom"):
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o600))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _MS_BIND)
    # the devices too: they stay usable, but their owner, who may be us, can no longer change their modes
    for mountpoint in _mountpoints_under(root):
        kept = os.statvfs(mountpoint).f_flag
        flags = sum(flag for bit, flag in _KEPT_FLAGS.items() if kept & bit)
        _mount(None, mountpoint, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | flags)
    os.mkdir(root + "/tmp")
    _mount(None, root, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(root)
    _check(_libc.syscall(ctypes.c_long(_PIVOT_ROOT[platform.machine()]), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")


def _mount_scratch() -> None:
    """Put a new, empty, bounded file system on /tmp and work there."""
    os.chdir("/")
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=16m,mode=700,nr_inodes=1024")
    os.chdir("/tmp")


def _mountpoints_under(root: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        raw = [line.split(" ")[4] for line in handle]
    points = [point.encode("latin-1", "replace").decode("unicode_escape") if "\\" in point else point for point in raw]
    return [point for point in points if point.startswith(root + "/")]


def _give_up_privileges() -> None:
    """Drop every capability for good; other processes of the same user cannot look into this one."""
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def _harden_process() -> None:
    if _libc is not None:
        _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
        _prctl(_PR_SET_DUMPABLE, 0)


def _install_filter(program: list[list[int]]) -> None:
    class Filter(ctypes.Structure):
        _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.POINTER(Filter)))

    filters = (Filter * len(program))(*[Filter(*words) for words in program])
    _check(_prctl(_PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program), filters))), "seccomp")


def _limit_resources(limits: dict[str, Any]) -> None:
    cpu = int(limits["cpu_seconds"])
    for name, soft, hard in (
        ("RLIMIT_CPU", cpu, cpu + 1),
        ("RLIMIT_AS", limits["memory_bytes"], limits["memory_bytes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"], limits["file_bytes"]),
        ("RLIMIT_NOFILE", limits["open_files"], limits["open_files"]),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_MEMLOCK", 0, 0),
    ):
        number = getattr(resource, name, None)
        if number is None:
            continue
        ceiling = resource.getrlimit(number)[1]
        top = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(number, (min(soft, top), top))


# --- one job -----------------------------------------------------------------------------------------------------------


class _NotPlainError(Exception):
    """The function returned something that JSON cannot hold."""


def _plain(value: Any, depth: int = 0) -> Any:
    """Copy a value made of exactly the JSON types (tuples become lists); subclasses with tricks inside are refused."""
    kind = type(value)
    if value is None or kind is bool or kind is int or kind is str:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _NotPlainError(f"returned {value}, which is no JSON number")
        return value
    if depth > _DEPTH_LIMIT:
        raise _NotPlainError(f"returned a value nested deeper than {_DEPTH_LIMIT} levels")
    if kind is list or kind is tuple:
        return [_plain(item, depth + 1) for item in value]
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise _NotPlainError(f"returned a dictionary with a key of type {type(key).__name__}, not str")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    raise _NotPlainError(f"returned a value of type {kind.__name__}, which is not plain JSON")


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:  # noqa: BLE001 - the model's own __str__ may do anything
        return "an exception that cannot be printed"


def _work(job: dict[str, Any], out: int, token_pipe: int, reply_bytes: int) -> None:
    """Run one job and write `token + JSON` to `out`. The token arrives only after the model's module has been executed."""
    dumps, write, read = json.dumps, os.write, os.read
    verdict: dict[str, Any]
    if "random" in sys.modules:  # the same answer must score the same; the module reseeds itself after a fork
        sys.modules["random"].seed(0)
    try:
        space: dict[str, Any] = {"__name__": "answer"}
        # running the answer is what this process is for; the walls around it are the sandbox
        exec(compile(job["code"], "<answer>", "exec"), space)  # noqa: S102
        verdict = {}
    except BaseException as error:  # noqa: BLE001
        verdict = {"status": "raised", "detail": f"the code itself fails: {_describe(error)}"}
    write(out, b"D")
    token = read(token_pipe, _TOKEN_BYTES)
    if not verdict:
        verdict = _call(job, space)
    try:
        encoded = token + dumps(verdict).encode("ascii")
    except BaseException as error:  # noqa: BLE001
        encoded = token + dumps({"status": "raised", "detail": _describe(error)}).encode("ascii")
    if len(encoded) > reply_bytes:
        encoded = token + b'{"status": "raised", "detail": "returned more data than the sandbox passes on"}'
    view = memoryview(encoded)
    while view:
        view = view[write(out, view) :]


def _call(job: dict[str, Any], space: dict[str, Any]) -> dict[str, Any]:
    try:
        if "test" in job:
            exec(compile(job["test"], "<test>", "exec"), space)  # noqa: S102
            return {"status": "returned", "value": None}
        function = space.get(job["function"])
        if not callable(function):
            return {"status": "raised", "detail": f"{job['function']} is not defined"}
        return {"status": "returned", "value": _plain(function(*job["args"], **job["kwargs"]))}
    except _NotPlainError as error:
        return {"status": "raised", "detail": str(error)}
    except BaseException as error:  # noqa: BLE001
        return {"status": "raised", "detail": _describe(error)}


def _worker(job: dict[str, Any], request: dict[str, Any], closed: list[int], out: int, token_pipe: int) -> None:
    """Become the worker of one job: drop the supervisor's pipes, take the limits, run, exit without any clean-up."""
    try:
        for descriptor in closed:
            os.close(descriptor)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        os.setsid()
        if request["namespaces"]:
            _give_up_privileges()
        _limit_resources(request["limits"])
        if request["filter"] is not None:
            _install_filter(request["filter"])
        _work(job, out, token_pipe, request["limits"]["reply_bytes"])
    finally:
        os._exit(0)


def _read_until(pipe: int, size: int, deadline: float) -> bytes | None:
    """Read up to `size` bytes or to the end of the pipe; `None` at the deadline."""
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        chunk = os.read(pipe, min(65536, size - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def _run_job(job: dict[str, Any], request: dict[str, Any], seconds: float, keep_out: int, nonce: bytearray) -> dict[str, Any]:
    reply_read, reply_write = os.pipe()
    token_read, token_write = os.pipe()
    token = os.urandom(_TOKEN_BYTES)
    deadline = time.monotonic() + seconds
    worker = os.fork()
    if worker == 0:
        nonce[:] = bytes(len(nonce))
        token = b""
        _worker(job, request, [keep_out, reply_read, token_write], reply_write, token_read)
    os.close(reply_write)
    os.close(token_read)
    reply: bytes | None = None
    try:
        if (started := _read_until(reply_read, 1, deadline)) is not None:
            if started == b"D":
                os.write(token_write, token)
            reply = _read_until(reply_read, request["limits"]["reply_bytes"] + 1, deadline)
    except BrokenPipeError:
        reply = b""
    finally:
        os.close(reply_read)
        os.close(token_write)
    status = _end(worker)
    if reply is None:
        return {"status": "timeout", "detail": f"still running after {seconds:.1f} s"}
    if reply.startswith(token):
        try:
            verdict = json.loads(reply[_TOKEN_BYTES:])
        except (ValueError, RecursionError):
            verdict = None
        if isinstance(verdict, dict) and verdict.get("status") in {"returned", "raised"}:
            # only these keys, whatever the worker wrote
            return {"status": verdict["status"], "value": verdict.get("value"), "detail": str(verdict.get("detail", ""))[:300]}
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
    return {"status": "died", "detail": f"the process ended with {how} before it returned"}


def _end(worker: int) -> int:
    """Reap a worker, by force when it lingers after its reply, and return its wait status."""
    waited, status = os.waitpid(worker, os.WNOHANG)
    limit = time.monotonic() + 0.05
    while not waited and time.monotonic() < limit:
        time.sleep(0.0005)
        waited, status = os.waitpid(worker, os.WNOHANG)
    # first the worker by itself, in case it never reached setsid; then what it may have left behind in its group
    for kill in (os.killpg,) if waited else (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(worker, signal.SIGKILL)
    return status if waited else os.waitpid(worker, 0)[1]


# --- the supervisor ----------------------------------------------------------------------------------------------------


def _send(out: int, nonce: bytearray, message: dict[str, Any]) -> None:
    view = memoryview(bytes(nonce) + json.dumps(message).encode("ascii") + b"\n")
    while view:
        view = view[os.write(out, view) :]


def _fresh_scratch(namespaces: bool) -> None:
    """Forget what the last worker wrote: a new mount where that is possible, else its files are removed as far as they let us."""
    if namespaces:
        os.chdir("/")
        _check(_libc.umount2(b"/tmp", _MNT_DETACH), "umount of /tmp")
        _mount_scratch()
        return
    for name in os.listdir("."):
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _supervise(request: dict[str, Any], out: int, nonce: bytearray) -> None:
    _harden_process()
    sys.path[:0] = request["import_paths"]
    for name in request["preload"]:
        __import__(name)
    if any("random" in job["code"] for job in request["jobs"]):
        __import__("random")
    _send(out, nonce, {"setup": "ok"})
    limits = request["limits"]
    end = time.monotonic() + limits["total_seconds"]
    for index, job in enumerate(request["jobs"]):
        seconds = min(limits["example_seconds"], end - time.monotonic())
        if seconds <= 0:
            outcome = {"status": "not_run", "detail": f"the {limits['total_seconds']:g} s for all examples were used up"}
        else:
            outcome = _run_job(job, request, seconds, out, nonce)
            _fresh_scratch(request["namespaces"])
        _send(out, nonce, {"index": index, **outcome})


def _die_with_parent(parent: int) -> None:
    if _libc is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:
            os._exit(1)


def main() -> None:
    """Read the nonce and the request from standard input, run the jobs, write one line each to the result pipe."""
    out = int(sys.argv[1])
    _die_with_parent(int(sys.argv[2]))
    nonce = bytearray(32)
    os.readv(0, [nonce])
    with os.fdopen(0, "rb", closefd=False) as stdin:
        request = json.loads(stdin.read())
    try:
        if request["namespaces"]:
            _enter_namespaces()
            supervisor = os.fork()
            if supervisor:
                os.close(out)
                os.waitpid(supervisor, 0)
                os._exit(0)
            _die_with_parent(0)
            _build_root(request["root"], request["visible"])
            _mount_scratch()
        else:
            os.chdir(request["root"])
        _supervise(request, out, nonce)
    except BaseException as error:  # noqa: BLE001 - the one report that can still be made
        _send(out, nonce, {"setup": "failed", "detail": _describe(error)})
    os._exit(0)


if __name__ == "__main__":
    main()
