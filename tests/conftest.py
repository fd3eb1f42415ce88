"""For all tests: those that take a minute begin first, so that nobody waits for one of them at the end.

No drawn example has a deadline: a machine under load breaks any. `make unit` draws a quarter of what `make test` draws.
"""

from __future__ import annotations

import gc
import signal
import socket
from asyncio.base_events import Server
from asyncio.selector_events import BaseSelectorEventLoop
from typing import Any

import pytest
import structlog
from hypothesis import settings

settings.register_profile("any machine", deadline=None, max_examples=100)
settings.register_profile("quick", deadline=None, max_examples=25)
settings.load_profile("any machine")

# structlog's own choice draws a fault in boxes, with the source around each line: 50 ms of CPU for each fault.
_render = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _render])

# A shell ignores it for what it runs in the background, and every process that a test starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

_accept = BaseSelectorEventLoop._accept_connection2  # type: ignore[attr-defined]


async def _accept_or_close(
    loop: BaseSelectorEventLoop,
    factory: Any,
    conn: socket.socket,
    extra: Any,
    tls: Any,
    server: Server,
    *bounds: float,
) -> None:
    """A server that ends just as somebody is accepted closes that connection.

    asyncio leaves it to whoever collects garbage, and the warning of that fails a test that has no part in it.
    """
    if server.is_serving():
        await _accept(loop, factory, conn, extra, tls, server, *bounds)
    else:
        conn.close()


BaseSelectorEventLoop._accept_connection2 = _accept_or_close  # type: ignore[attr-defined]

LONG = (
    "test_every_frontend",
    "test_signals",
    "test_chaos.py",
    "test_fleet_chaos",
    "test_mesh",
    "test_freezes",
    "test_trust_listeners",
    "test_systemd",
    "test_crowds",
    "test_watchdog",
    "test_store.py",
    "test_leave",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not ("tests/system/" in item.nodeid and any(name in item.nodeid for name in LONG)))


def pytest_collection_finish() -> None:
    """What is there now stays: the collector of garbage need not go through it again and again."""
    gc.freeze()
