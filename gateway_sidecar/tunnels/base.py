"""What the SSH backends have in common: the names of their files, and what a backend can do.

Everything of a connection is in one directory under a name made of its whole route, so that the next daemon finds it
without being told: `NAME.conf`, `NAME.log` (its process's output), `NAME.ctl` (its control socket). A tunnel's socket
is named after the tunnel: another way to the same replica is another tunnel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Protocol

from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, SshServer, Tunnel
from gateway_sidecar.tunnels.files import finish_last_lines, first_trouble

_NAME_DIGITS = 12
"""A socket below the longest run_dir must fit in the 107 bytes that a Unix socket address holds."""


class TunnelFault(Exception):
    """A connection or a forward that did not come about."""

    def __init__(self, state: PathState, reason: str, entered: int = 0, refusal: PathState | None = None) -> None:
        super().__init__(reason)
        self.status = PathStatus(state, reason, entered, refusal)


class SshBackend(Protocol):
    """Makes SSH connections, each a process of its own in `directory`, which is its working directory too."""

    name: str
    log_suffix: str
    """Of the file in which the process says how the connection is; `.log` is its output."""

    def command(self, connection: str, route: SshRoute) -> list[str]:
        """Writes what the process reads, and returns its command line. Raises TunnelFault. Blocks."""
        ...

    async def forward(self, connection: str, local: str, remote: str) -> None:
        """Opens a forward over a connection that is up; one that is open already stays. Raises TunnelFault."""
        ...

    async def cancel(self, connection: str, local: str, remote: str) -> None:
        """Ends a forward; its connections go on. Raises TunnelFault."""
        ...

    def objection(self, connection: str, route: SshRoute) -> PathStatus | None:
        """Why a connection that has just come up must not be used, if so. Blocks."""
        ...

    def why_ended(self, connection: str, route: SshRoute) -> PathStatus:
        """Reads what the process of this connection left behind. Blocks."""
        ...


@lru_cache(4096)
def connection_name(route: SshRoute, backend: str) -> str:
    """The name of a route's connection."""
    return _digest([asdict(route), backend])


@lru_cache(4096)
def socket_name(tunnel: Tunnel) -> str:
    """The file name of a tunnel's socket."""
    return f"{_digest(asdict(tunnel))}.sock"


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


def check_files(servers: Sequence[SshServer]) -> None:
    """Looks at keys, agents and lists of known hosts with ssh's eyes, and sees to it that lines can be added to those.

    Raises TunnelFault for the first thing that is of no use.
    """
    trouble = first_trouble(servers)
    if trouble is not None:
        raise TunnelFault(trouble.state, trouble.reason)
    try:
        finish_last_lines(servers)
    except OSError as error:
        raise TunnelFault(PathState.LOCAL_TROUBLE, f"cannot write {error.filename}: {error.strerror}") from error
