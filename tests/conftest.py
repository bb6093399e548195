"""Rules for the whole suite."""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings

# machines are shared: a slow example says nothing about the code
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run real engines one after the other: two at once on two cores spin against each other and take a hundred times as long."""
    for item in items:
        if item.get_closest_marker("real") is not None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("engine"))


@pytest.fixture(autouse=True)
def single_threaded_torch() -> None:
    """Let PyTorch compute on one thread: its threads wait for each other by spinning, beside the other worker's tests."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
