"""SSH tunnels as frozen values: the way to a replica elsewhere, and how that way is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from gateway_sidecar.domain.model import Loading, ProbeResult

BackendName = Literal["auto", "openssh", "asyncssh"]

AGENT_OF_ENVIRONMENT = "SSH_AUTH_SOCK"


class PathState(StrEnum):
    """How a tunnel is; the words of `status`, logs and metrics."""

    CONNECTING = "connecting"
    UP = "up"
    REMOTE_CLOSED = "remote port closed"
    FORBIDDEN = "forwarding forbidden"
    REFUSED = "connection refused"
    UNREACHABLE = "host unreachable"
    NAME_UNKNOWN = "name not resolved"
    AUTH_FAILED = "auth failed"
    HOST_KEY_CHANGED = "host key changed"
    HOST_KEY_UNKNOWN = "host key unknown"
    JUMP_FAILED = "jump failed"
    DEAD_PATH = "dead path"
    CLOSED = "closed by the far side"
    KEY_UNUSABLE = "key unusable"
    NOT_INSTALLED = "ssh not installed"
    LOCAL_TROUBLE = "local trouble"
    FAILED = "failed"


REFUSALS = frozenset({PathState.AUTH_FAILED, PathState.HOST_KEY_CHANGED, PathState.HOST_KEY_UNKNOWN})
"""A server and we came to no terms: it takes that for a failed login, and counts those."""


@dataclass(frozen=True, slots=True)
class PathStatus:
    """The state of a tunnel, and the reason. A note on a tunnel that is up is the far side's complaint.

    entered: how many servers on the way had let us in, as far as that is known, before a connection failed.
    refusal: what the next server took for a failed login.
    """

    state: PathState
    reason: str = ""
    entered: int = 0
    refusal: PathState | None = None

    @property
    def is_up(self) -> bool:
        """Whether connections get as far as the far side."""
        return self.state is PathState.UP

    def __str__(self) -> str:
        return f"{self.state.value}: {self.reason}" if self.reason else self.state.value


@dataclass(frozen=True, slots=True)
class SshServer:
    """One SSH server on the way, how we prove who we are and how it does.

    agent: the agent's socket, or SSH_AUTH_SOCK for the one that the environment names.
    host_key: the server's public key itself; else `known_hosts` is looked up.
    trust_first_use: a server without an entry in `known_hosts` is believed, and entered there.
    """

    host: str
    port: int = 22
    user: str | None = None
    key_file: str | None = None
    agent: str | None = None
    known_hosts: str | None = None
    host_key: str | None = None
    trust_first_use: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SshRoute:
    """The way to one SSH server: the servers to jump over, in order, and itself. Equal routes share a connection.

    A path that is dead is found dead after `keepalive_s * (keepalive_failures + 1)` seconds.
    """

    servers: tuple[SshServer, ...]
    keepalive_s: int = 4
    keepalive_failures: int = 2
    connect_timeout_s: int = 10
    backend: BackendName = "auto"

    @property
    def target(self) -> SshServer:
        """The server at the end of the way."""
        return self.servers[-1]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """One replica's tunnel. `remote`, as the far side sees it, is HOST:PORT or the path of a Unix socket."""

    owner: str
    route: SshRoute
    remote: str

    def __str__(self) -> str:
        return f"{self.remote} at {self.route.target}"


PathOf = Callable[[Tunnel], PathStatus]
"""How a tunnel is."""


def far_end(tunnel: Tunnel, path: PathStatus, result: ProbeResult | None) -> PathStatus:
    """How a tunnel is with its far end: `path`, and what came of the last question through it, if there was one."""
    if not path.is_up or not isinstance(result, Loading) or not result.refused:
        return path
    if path.reason:
        return PathStatus(PathState.FORBIDDEN, path.reason)
    return PathStatus(PathState.REMOTE_CLOSED, f"the tunnel is up, but nothing listens on {tunnel}")
