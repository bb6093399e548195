from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewbits.analysis.run_quality import environment_delta
from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.machine import default_threads, hardware_fingerprint, usable_cores
from fewbits.probes.memory import GpuMemory, peak_rss_bytes, reset_peak_rss
from fewbits.records.trial import EnvironmentDelta

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
BURN_SECONDS = 0.3
HOG = "import sys\nprint('ready', flush=True)\nwhile True:\n    pass"
COUNTERS = (
    "monotonic_seconds",
    "cpu_busy_seconds",
    "cpu_steal_seconds",
    "own_cpu_seconds",
    "cpu_pressure_seconds",
    "memory_pressure_seconds",
    "io_pressure_seconds",
)


@pytest.fixture
def probe() -> Iterator[EnvironmentProbe]:
    made = EnvironmentProbe()
    yield made
    made.close()


@pytest.fixture
def hog() -> Iterator[subprocess.Popen[str]]:
    """A process that burns one core."""
    child = subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.communicate(timeout=20)


def cpu_seconds(pid: int) -> float:
    """What the kernel says that a process used, by a way of its own: the scheduler's nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def burn(seconds: float) -> float:
    """Use so many CPU seconds of this process; returns those really used."""
    start = time.process_time()
    while (used := time.process_time() - start) < seconds:
        pass
    return used


def wait_for_cpu(pid: int, seconds: float) -> float:
    """Let another process use so many CPU seconds; returns those really used."""
    start = cpu_seconds(pid)
    while (used := cpu_seconds(pid) - start) < seconds:
        time.sleep(0.02)
    return used


def delta(probe: EnvironmentProbe, before: object) -> EnvironmentDelta:
    from fewbits.records.trial import EnvironmentSample

    assert isinstance(before, EnvironmentSample)
    return environment_delta(before, probe.sample(), len(usable_cores()))


class TestCounters:
    def test_they_never_run_backwards(self, probe: EnvironmentProbe) -> None:
        samples = [probe.sample() for _ in range(50)]
        for earlier, later in itertools.pairwise(samples):
            for name in COUNTERS:
                low, high = getattr(earlier, name), getattr(later, name)
                assert (low is None) == (high is None), name
                assert low is None or low <= high, name

    @linux_only
    def test_a_sample_reads_the_machine(self, probe: EnvironmentProbe) -> None:
        sample = probe.sample()
        assert sample.cpu_busy_seconds is not None
        assert sample.cpu_busy_seconds > 0
        assert sample.memory_available_bytes is not None
        assert 2**20 < sample.memory_available_bytes < 2**50

    @linux_only
    def test_a_sample_is_cheap(self, probe: EnvironmentProbe) -> None:
        start = time.process_time()
        for _ in range(100):
            probe.sample()
        assert (time.process_time() - start) / 100 < 0.002

    @linux_only
    def test_descriptors_are_given_back(self) -> None:
        opened = Path("/proc/self/fd")
        before = len(list(opened.iterdir()))
        for _ in range(5):
            EnvironmentProbe().close()
        assert len(list(opened.iterdir())) == before


@linux_only
class TestWhoseLoad:
    def test_our_own_work_is_ours(self, probe: EnvironmentProbe) -> None:
        before = probe.sample()
        used = burn(BURN_SECONDS)
        after = probe.sample()
        own = after.own_cpu_seconds
        assert own is not None
        assert before.own_cpu_seconds is not None
        assert used - 0.02 <= own - before.own_cpu_seconds <= used + 0.1
        assert after.cpu_busy_seconds is not None
        assert before.cpu_busy_seconds is not None
        # whatever else the machine does, the work of this process is no part of what counts as foreign
        difference = environment_delta(before, after, len(usable_cores()))
        capacity = difference.wall_seconds * len(usable_cores())
        busy = after.cpu_busy_seconds - before.cpu_busy_seconds
        assert difference.foreign_cpu_ratio is not None
        assert difference.foreign_cpu_ratio * capacity == pytest.approx(max(0.0, busy - (own - before.own_cpu_seconds)), abs=1e-6)

    def test_a_hog_that_nobody_tracks_is_foreign(self, probe: EnvironmentProbe, hog: subprocess.Popen[str]) -> None:
        before = probe.sample()
        used = wait_for_cpu(hog.pid, BURN_SECONDS)
        seen = delta(probe, before)
        capacity = seen.wall_seconds * len(usable_cores())
        assert seen.foreign_cpu_ratio is not None
        assert seen.foreign_cpu_ratio * capacity >= used - 0.06
        assert seen.own_cpu_ratio is not None
        assert seen.own_cpu_ratio * capacity < used / 2

    def test_a_tracked_child_is_ours(self, probe: EnvironmentProbe, hog: subprocess.Popen[str]) -> None:
        probe.track([hog.pid])
        before = probe.sample()
        used = wait_for_cpu(hog.pid, BURN_SECONDS)
        after = probe.sample()
        assert after.own_cpu_seconds is not None
        assert before.own_cpu_seconds is not None
        assert used - 0.03 <= after.own_cpu_seconds - before.own_cpu_seconds <= used + 0.15

    def test_a_tracked_child_that_is_gone_is_skipped(self, probe: EnvironmentProbe) -> None:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait(timeout=20)
        probe.track([child.pid])
        assert probe.sample().own_cpu_seconds is not None


@linux_only
class TestMemory:
    SIZE = 64 * 2**20

    def test_the_peak_starts_anew(self) -> None:
        block = mmap.mmap(-1, self.SIZE)
        block.write(b"\1" * self.SIZE)
        high = peak_rss_bytes([os.getpid()])
        block.close()
        if not reset_peak_rss([os.getpid()]):
            pytest.skip("this kernel keeps /proc/self/clear_refs shut")
        low = peak_rss_bytes([os.getpid()])
        assert high is not None
        assert low is not None
        assert low < high - self.SIZE // 2

    def test_several_processes_add_up(self, hog: subprocess.Popen[str]) -> None:
        together, own, others = (peak_rss_bytes(pids) for pids in ([os.getpid(), hog.pid], [os.getpid()], [hog.pid]))
        assert together is not None
        assert own is not None
        assert others is not None
        assert together == pytest.approx(own + others, rel=0.05)

    def test_nothing_is_guessed(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait(timeout=20)
        assert peak_rss_bytes([]) is None
        assert peak_rss_bytes([os.getpid(), child.pid]) is None
        assert reset_peak_rss([]) is False
        assert reset_peak_rss([child.pid]) is False
        assert GpuMemory().used_bytes([child.pid]) in {None, 0}


class TestFingerprint:
    def test_it_is_stable_and_has_five_parts(self) -> None:
        fingerprint = hardware_fingerprint()
        assert hardware_fingerprint() == fingerprint
        architecture, cpu, cores, memory, gpus = fingerprint.split("|")
        assert architecture
        assert cpu
        assert gpus
        assert cores == f"{len(usable_cores())}c"
        assert memory.removesuffix("gb").isdigit()

    def test_threads_are_cores_that_we_may_use(self) -> None:
        assert 1 <= default_threads() <= len(usable_cores())
