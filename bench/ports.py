"""Ports for a benchmark, away from the tests' and from the kernel's ephemeral ones."""

from __future__ import annotations

import os
import socket

from gateway_sidecar.nginx.server import busy_ports

_FIRST, _LAST = 19_200, 32_000
_BLOCK = 100
_HOSTS = "127.0.0.1", "127.0.0.2"
"""Where the daemon's bridges listen: for HTTP, and for gRPC."""
_next = _FIRST + os.getpid() % 40 * _BLOCK
_claims: dict[int, socket.socket] = {}


def _is_ours(block: int) -> bool:
    """Whether no other benchmark that runs now has claimed these ports. A claim ends with the process."""
    if block not in _claims:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0gateway-sidecar bench ports {block}")
        except OSError:
            claim.close()
            return False
        _claims[block] = claim
    return True


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nobody listens on; no two calls give the same."""
    global _next
    for _ in range(_FIRST, _LAST):
        if _next + count > _LAST:
            _next = _FIRST
        ports = range(_next, _next + count)
        blocks = range(ports[0] // _BLOCK, ports[-1] // _BLOCK + 1)
        busy = [port for _, port, _ in busy_ports([(host, port) for host in _HOSTS for port in ports])]
        busy += [_BLOCK * (block + 1) - 1 for block in blocks if not _is_ours(block)]
        if not busy:
            _next += count
            return _next - count
        _next = max(busy) + 1
    raise RuntimeError(f"there are no {count} free ports in a row between {_FIRST} and {_LAST}")
