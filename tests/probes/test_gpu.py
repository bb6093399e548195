"""GPU readings through NVML, with a stand-in for its Python binding: what a card refuses is left out, never guessed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from fewbits.probes.environment import EnvironmentProbe
from fewbits.probes.gpu import THROTTLE_MASK, GpuSensors
from fewbits.records.trial import EnvironmentSample

GIB = 1024**3
GPU_FIELDS = ("gpu_temperature_c", "gpu_memory_used_bytes", "gpu_memory_total_bytes", "gpu_throttled")
# the names of nvml.h, NVML_CLOCKS_EVENT_REASONS
IDLE, APPLICATION_CLOCKS, SW_POWER_CAP, HW_SLOWDOWN, SYNC_BOOST = 0x01, 0x02, 0x04, 0x08, 0x10
SW_THERMAL, HW_THERMAL, POWER_BRAKE, DISPLAY_CLOCKS = 0x20, 0x40, 0x80, 0x100


class NVMLError(Exception):
    """As NVML's own: no subclass of OSError."""


@dataclass
class Memory:
    used: int
    total: int


@dataclass
class Card:
    temperature: int | None = 40
    memory: Memory | None = field(default_factory=lambda: Memory(8 * GIB, 80 * GIB))
    reasons: int | None = 0
    lost: bool = False


class FakeNvml(ModuleType):
    """Only what the probe calls; anything else would be an AttributeError."""

    def __init__(self, cards: list[Card], *, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.cards, self.driver, self.calls = cards, driver, [0]

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self.calls[0] += 1
        if not self.driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if self.cards[index].lost:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:  # noqa: N802
        assert sensor == 0
        return int(told(card.temperature))

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        return told(card.memory)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:  # noqa: N802
        return int(told(card.reasons))


def told(value: Any) -> Any:
    if value is None:
        raise NVMLError("Not Supported")
    return value


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[Card]:
    """Cards of this machine, seen by every probe that is made from here on."""
    present: list[Card] = []
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(present))
    return present


def sample() -> EnvironmentSample:
    probe = EnvironmentProbe()
    try:
        return probe.sample()
    finally:
        probe.close()


def test_one_card(cards: list[Card]) -> None:
    cards.append(Card(temperature=63, memory=Memory(20 * GIB, 80 * GIB), reasons=IDLE))
    seen = sample()
    assert seen.gpu_temperature_c == 63.0
    assert (seen.gpu_memory_used_bytes, seen.gpu_memory_total_bytes) == (20 * GIB, 80 * GIB)
    assert seen.gpu_throttled is False


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_the_hottest_and_the_fullest_count(cards: list[Card], swapped: bool) -> None:
    hot = Card(temperature=81, memory=Memory(30 * GIB, 80 * GIB))
    full = Card(temperature=35, memory=Memory(20 * GIB, 24 * GIB))
    cards += [full, hot] if swapped else [hot, full]
    assert GpuSensors().readings() == {
        "gpu_temperature_c": 81.0,
        # the larger share, though fewer bytes; total and used are of one card
        "gpu_memory_used_bytes": 20 * GIB,
        "gpu_memory_total_bytes": 24 * GIB,
        "gpu_throttled": False,
    }


def test_a_card_that_refuses_a_reading_is_left_out_of_it(cards: list[Card]) -> None:
    cards += [Card(temperature=None, memory=None, reasons=HW_THERMAL), Card(temperature=44, reasons=None)]
    assert GpuSensors().readings() == {
        "gpu_temperature_c": 44.0,
        "gpu_memory_used_bytes": 8 * GIB,
        "gpu_memory_total_bytes": 80 * GIB,
        "gpu_throttled": True,
    }


def test_what_every_card_refuses_is_null(cards: list[Card]) -> None:
    cards += [Card(temperature=None, memory=None, reasons=None)] * 2
    assert GpuSensors().readings() == dict.fromkeys(GPU_FIELDS)


def test_a_lost_card_does_not_hide_the_others(cards: list[Card]) -> None:
    cards += [Card(lost=True), Card(temperature=50)]
    assert GpuSensors().readings()["gpu_temperature_c"] == 50.0


def test_a_card_that_is_lost_later(cards: list[Card]) -> None:
    cards.append(Card(temperature=50))
    sensors = GpuSensors()
    assert sensors.readings()["gpu_temperature_c"] == 50.0
    cards[0].temperature = cards[0].memory = cards[0].reasons = None
    assert sensors.readings() == dict.fromkeys(GPU_FIELDS)


def test_a_card_without_memory_of_its_own(cards: list[Card]) -> None:
    cards.append(Card(memory=Memory(0, 0)))
    assert GpuSensors().readings()["gpu_memory_total_bytes"] == 0


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [
        (0, False),
        (IDLE, False),
        (APPLICATION_CLOCKS, False),
        (SW_POWER_CAP, False),
        (SYNC_BOOST, False),
        (DISPLAY_CLOCKS, False),
        (IDLE | APPLICATION_CLOCKS | DISPLAY_CLOCKS, False),
        (HW_SLOWDOWN, True),
        (SW_THERMAL, True),
        (HW_THERMAL, True),
        (POWER_BRAKE, True),
        (SW_POWER_CAP | HW_THERMAL, True),
    ],
)
def test_heat_and_the_power_brake_throttle_and_idling_does_not(cards: list[Card], reasons: int, throttled: bool) -> None:
    cards += [Card(), Card(reasons=reasons)]
    assert GpuSensors().readings()["gpu_throttled"] is throttled
    assert bool(reasons & THROTTLE_MASK) is throttled


def test_readings_are_taken_anew_and_nvml_is_opened_once(cards: list[Card]) -> None:
    cards.append(Card(temperature=50))
    sensors = GpuSensors()
    assert sensors.readings()["gpu_temperature_c"] == 50.0
    cards[0].temperature = 70
    assert sensors.readings()["gpu_temperature_c"] == 70.0
    assert sys.modules["pynvml"].calls == [1]


def assert_no_gpu() -> None:
    assert GpuSensors().readings() == {}
    seen = sample()
    assert [getattr(seen, name) for name in GPU_FIELDS] == [None] * 4
    # and everything else is there all the same
    assert seen.cpu_busy_seconds is not None
    assert (seen.memory_total_bytes or 0) >= (seen.memory_available_bytes or 0) > 0


def test_no_card(cards: list[Card]) -> None:
    assert_no_gpu()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([Card()], driver=False))
    assert_no_gpu()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ImportError):
        __import__("pynvml")
    assert_no_gpu()


def test_a_library_that_lacks_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    assert_no_gpu()
