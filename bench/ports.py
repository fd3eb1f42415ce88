"""Ports for a benchmark, away from the tests' and from the kernel's ephemeral ones."""

from __future__ import annotations

import os

from gateway_sidecar.nginx.server import busy_ports

_FIRST, _LAST = 19_200, 32_000
_next = _FIRST + os.getpid() % 40 * 100


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nobody listens on; no two calls give the same."""
    global _next
    for _ in range(_FIRST, _LAST):
        if _next + count > _LAST:
            _next = _FIRST
        busy = [port for _, port, _ in busy_ports([("127.0.0.1", port) for port in range(_next, _next + count)])]
        if not busy:
            _next += count
            return _next - count
        _next = busy[-1] + 1
    raise RuntimeError(f"there are no {count} free ports in a row between {_FIRST} and {_LAST}")
