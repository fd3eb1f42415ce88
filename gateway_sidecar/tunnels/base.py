"""What the SSH engines have in common: the names of their files, and what an engine can do.

Everything of a connection is in one directory under a name made of its whole route, so that the next daemon finds it
without being told: `NAME.conf`, `NAME.log`, `NAME.ctl` (its control socket). A tunnel's socket is named after the
tunnel: another way to the same replica is another tunnel.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from gateway_sidecar.domain.tunnels import PathState, PathStatus, SshRoute, SshServer, Tunnel

_NAME_DIGITS = 12
"""A socket below the longest run_dir must fit in the 107 bytes that a Unix socket address holds."""

_OTHERS = 0o077


class TunnelFault(Exception):
    """A connection or a forward that did not come about."""

    def __init__(self, state: PathState, reason: str) -> None:
        super().__init__(reason)
        self.status = PathStatus(state, reason)


class Engine(Protocol):
    """Makes SSH connections, each a process of its own in `directory`, which is its working directory too."""

    name: str

    def command(self, link: str, route: SshRoute) -> list[str]:
        """Writes what the process reads, and returns its command line. Raises TunnelFault. Blocks."""
        ...

    async def forward(self, link: str, local: str, remote: str) -> None:
        """Opens a forward over a connection that is up; one that is open already stays. Raises TunnelFault."""
        ...

    async def cancel(self, link: str, local: str, remote: str) -> None:
        """Ends a forward; its connections go on. Raises TunnelFault."""
        ...

    def why_ended(self, link: str, route: SshRoute) -> PathStatus:
        """Reads what the process of this connection left behind. Blocks."""
        ...


@lru_cache(4096)
def link_name(route: SshRoute, engine: str) -> str:
    """The name of a route's connection."""
    return _digest([asdict(route), engine])


@lru_cache(4096)
def socket_name(tunnel: Tunnel) -> str:
    """The file name of a tunnel's socket."""
    return f"{_digest(asdict(tunnel))}.sock"


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


def check_keys(servers: Sequence[SshServer]) -> None:
    """Looks at the key files with ssh's eyes. Raises TunnelFault for the first that ssh would not use."""
    for server in servers:
        if server.key_file is not None and (trouble := key_trouble(server.key_file)):
            raise TunnelFault(PathState.KEY_UNUSABLE, trouble)


def key_trouble(path: str) -> str | None:
    """Why a private key's file cannot be used, with the cure; None if it can."""
    try:
        status = Path(path).stat()
        with open(path, "rb") as file:  # noqa: PTH123 - only to see whether it may be opened
            file.read(1)
    except OSError as error:
        return f"{path}: {error.strerror}; the daemon's user (uid {os.geteuid()}) must be able to read it"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a regular file; name the private key's file"
    if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:
        return f"{path} may be read by others (mode {stat.S_IMODE(status.st_mode):04o}); use chmod 0600"
    return None
