"""Problems of a tunnel that can be seen without opening it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.tunnels.files import troubles, user_trouble
from gateway_sidecar.tunnels.fleet import Missing, choose_backend


def backend_troubles(tunnels: Iterable[Tunnel]) -> Iterator[str]:
    """Engines that these tunnels ask for and this machine does not have."""
    for wanted in sorted({tunnel.route.backend for tunnel in tunnels}):
        backend = choose_backend(wanted, Path("/"))
        if isinstance(backend, Missing):
            yield backend.cure


def file_troubles(tunnels: Iterable[Tunnel]) -> Iterator[str]:
    """A user, keys, agents and lists of known hosts that cannot be used, each once."""
    tunnels = list(tunnels)
    if tunnels and (text := user_trouble()) is not None:
        yield text
    servers = {server for tunnel in tunnels for server in tunnel.route.servers}
    yield from sorted({trouble.reason for server in servers for trouble in troubles(server)})
