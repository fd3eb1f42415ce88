"""What of a tunnel can be seen to be wrong without opening it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway_sidecar.domain.tunnels import SshServer, Tunnel
from gateway_sidecar.tunnels.base import key_trouble
from gateway_sidecar.tunnels.fleet import Missing, choose_engine


def engine_troubles(tunnels: Iterable[Tunnel]) -> Iterator[str]:
    """Engines that these tunnels ask for and this machine does not have."""
    for wanted in sorted({tunnel.route.engine for tunnel in tunnels}):
        engine = choose_engine(wanted, Path("/"))
        if isinstance(engine, Missing):
            yield engine.cure


def file_troubles(tunnels: Iterable[Tunnel]) -> Iterator[str]:
    """Keys, agents and lists of known hosts that cannot be used, each once."""
    servers = {server for tunnel in tunnels for server in tunnel.route.servers}
    found = (trouble for server in servers for trouble in _of_server(server))
    yield from sorted(set(found))


def _of_server(server: SshServer) -> Iterator[str]:
    if server.key_file is not None and (trouble := key_trouble(server.key_file)):
        yield f"key_file {trouble}"
    if server.agent is not None:
        agent = os.environ.get("SSH_AUTH_SOCK", "") if server.agent == "SSH_AUTH_SOCK" else server.agent
        if not Path(agent).is_socket():
            yield f"agent {server.agent}: no such socket; start the agent, or name its socket"
    if server.known_hosts is not None and not os.access(server.known_hosts, os.R_OK):
        place = Path(server.known_hosts)
        if not server.trust_first_use:
            yield f"known_hosts {place} cannot be read; enter the hosts' keys there (ssh-keyscan), or set host_key"
        elif not os.access(place.parent, os.W_OK):
            yield f"known_hosts {place} cannot be made; give uid {os.geteuid()} w on its directory"
