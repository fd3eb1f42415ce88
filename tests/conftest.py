"""For all tests: those that take a minute begin first, so that nobody waits for one of them at the end."""

from __future__ import annotations

import pytest

LONG = (
    "test_every_front_door",
    "test_signals",
    "test_chaos.py",
    "test_freezes",
    "test_trust_listeners",
    "test_systemd",
    "test_crowds",
    "test_watchdog",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not ("tests/system/" in item.nodeid and any(name in item.nodeid for name in LONG)))
