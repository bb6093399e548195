"""The probes on the machine that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fewbits.analysis.run_quality import environment_delta
from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.machine import default_threads, hardware_fingerprint, usable_cores
from fewbits.probes.memory import peak_rss_bytes, reset_peak_rss

BURN = "while True: pass"


@pytest.fixture
def probe() -> Iterator[EnvironmentProbe]:
    made = EnvironmentProbe()
    yield made
    made.close()


@pytest.fixture
def hog() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", BURN])
    time.sleep(0.2)
    yield process
    process.kill()
    process.wait()


def test_counters_never_run_backwards(probe: EnvironmentProbe) -> None:
    first, second = probe.sample(), probe.sample()
    for name in ("monotonic_seconds", "cpu_busy_seconds", "own_cpu_seconds", "cpu_pressure_seconds"):
        before, after = getattr(first, name), getattr(second, name)
        assert before is None or after >= before


def test_our_own_work_is_not_foreign(probe: EnvironmentProbe) -> None:
    before = probe.sample()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    after = probe.sample()
    assert after.own_cpu_seconds is not None
    assert before.own_cpu_seconds is not None
    assert after.own_cpu_seconds - before.own_cpu_seconds == pytest.approx(0.5, abs=0.1)


def test_an_untracked_hog_is_foreign_and_a_tracked_one_is_ours(probe: EnvironmentProbe, hog: subprocess.Popen[bytes]) -> None:
    cores = len(usable_cores())

    def busy_for_a_while() -> tuple[float | None, float | None]:
        before = probe.sample()
        time.sleep(0.6)
        delta = environment_delta(before, probe.sample(), cores)
        return delta.foreign_cpu_ratio, delta.own_cpu_ratio

    foreign, own = busy_for_a_while()
    assert foreign is not None
    assert own is not None
    # on a busy machine the hog gets less than a whole core
    assert foreign > 0.25 / cores
    assert own < 0.2 / cores
    probe.track([hog.pid])
    _, own = busy_for_a_while()
    assert own is not None
    assert own > 0.25 / cores


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak mark")
def test_the_peak_mark_can_be_set_back() -> None:
    block = bytearray(80 * 1024 * 1024)
    block[::4096] = b"x" * len(block[::4096])
    high = peak_rss_bytes([os.getpid()])
    del block
    assert reset_peak_rss([os.getpid()])
    low = peak_rss_bytes([os.getpid()])
    assert high is not None
    assert low is not None
    assert high - low > 60 * 1024 * 1024


def test_a_process_that_is_gone_has_no_peak() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert peak_rss_bytes([process.pid]) is None
    assert peak_rss_bytes([]) is None


def test_the_fingerprint_is_an_identity() -> None:
    assert hardware_fingerprint() == hardware_fingerprint()
    assert len(hardware_fingerprint().split("|")) == 5
    assert 1 <= default_threads() <= len(usable_cores())
