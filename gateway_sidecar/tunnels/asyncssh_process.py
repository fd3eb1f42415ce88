"""One asyncssh connection as a process: `python -m gateway_sidecar.tunnels.asyncssh_process NAME`.

It reads its route from `NAME.conf`, connects, and from then on does what it is asked over `NAME.ctl`, one JSON object
in a line: {"do": "forward" | "cancel", "local": socket's name, "remote": far end}. It greets each connection there with
an empty line, which shows that it is alive. It ends with the connection, and its last line says why.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncssh

from gateway_sidecar.domain.tunnels import AGENT_OF_ENVIRONMENT, REFUSALS, PathState, PathStatus, SshRoute, SshServer
from gateway_sidecar.tunnels.base import TunnelFault
from gateway_sidecar.tunnels.files import with_cure

_OURS_ALONE = 0o177  # umask(2): sockets and files are for the daemon's user alone.
GREETING = b"\n"
"""The greeting of each connection: this process is alive, not just there. OpenSSH's says something of its own."""


_Keys = tuple[Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey]]
"""The keys that a server may show, those that may have signed its key, and those that it must not show."""


class _Client(asyncssh.SSHClient):
    """Decides on keys that the list of known hosts does not vouch for; remembers what it refused and why it ended."""

    def __init__(self, server: SshServer, has_entry: bool) -> None:
        self._server = server
        self._has_entry = has_entry
        self.refused: PathStatus | None = None
        self.lost: Exception | None = None
        self._connection: asyncssh.SSHClientConnection | None = None

    @property
    def in_login(self) -> bool:
        """Whether keys were exchanged: what went wrong afterwards is a failed login to the far side."""
        return self._connection is not None and self._connection.get_extra_info("send_cipher") is not None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        text = key.export_public_key().decode().split()
        if self._has_entry:
            self.refused = PathStatus(PathState.HOST_KEY_CHANGED, f"it shows another {text[0]} key than the known one")
        elif not self._server.trust_first_use or self._server.known_hosts is None:
            self.refused = PathStatus(PathState.HOST_KEY_UNKNOWN, f"its key is not known, and it shows a {text[0]} key")
        else:
            name = host if port == 22 else f"[{host}]:{port}"
            try:
                with open(self._server.known_hosts, "a", encoding="ascii") as file:  # noqa: PTH123
                    file.write(f"{name} {text[0]} {text[1]}\n")
            except OSError as error:
                reason = f"cannot enter its key in {self._server.known_hosts}: {error.strerror}"
                self.refused = PathStatus(PathState.HOST_KEY_UNKNOWN, reason)
        return self.refused is None


def _known(server: SshServer) -> _Keys:
    """What is known of this server's keys. Raises OSError, KeyImportError or ValueError."""
    if server.host_key is not None:
        return [asyncssh.import_public_key(server.host_key)], [], []
    if server.known_hosts is None:
        return [], [], []
    try:
        known = asyncssh.read_known_hosts(server.known_hosts)
    except FileNotFoundError:
        return [], [], []
    return asyncssh.match_known_hosts(known, server.host, "", server.port)[:3]


async def _keys_of_agent(server: SshServer) -> list[str | asyncssh.SSHKeyPair]:
    """The keys that the agent named in the settings has. The connection to it stays open, as signing needs it."""
    path = os.environ.get(AGENT_OF_ENVIRONMENT, "") if server.agent == AGENT_OF_ENVIRONMENT else server.agent
    try:
        agent = await asyncssh.connect_agent(path or "")
        return list(await agent.get_keys())
    except (OSError, ValueError) as error:
        raise TunnelFault(PathState.KEY_UNUSABLE, f"agent {server.agent}: {error}") from error


class _Connections:
    """The connections on the way, each over the one before."""

    def __init__(self, route: SshRoute) -> None:
        self._route = route
        self._made: list[asyncssh.SSHClientConnection] = []
        self._clients: list[_Client] = []

    @property
    def last(self) -> asyncssh.SSHClientConnection:
        """The one to the target."""
        return self._made[-1]

    async def connect(self) -> None:
        """Raises TunnelFault."""
        for number, server in enumerate(self._route.servers):
            try:
                await self._connect(server)
            except TunnelFault as fault:
                state, reason = fault.status.state, fault.status.reason
                if number < len(self._route.servers) - 1:
                    state, reason = PathState.JUMP_FAILED, f"jump {number + 1} ({server}): {fault.status}"
                raise TunnelFault(state, reason, number, fault.status.refusal) from fault

    def close(self) -> None:
        """Closes all of them, the last first."""
        for connection in reversed(self._made):
            connection.close()

    def why_lost(self) -> PathStatus:
        """Why the last one ended. One that found its path dead tells more than those over it."""
        found = [judged(client.lost) for client in self._clients]
        return next((status for status in found if status.state is PathState.DEAD_PATH), found[-1])

    async def _connect(self, server: SshServer) -> None:
        below = self._made[-1] if self._made else None
        try:
            known = _known(server)
        except (OSError, asyncssh.KeyImportError, ValueError) as error:
            raise TunnelFault(PathState.HOST_KEY_UNKNOWN, f"{server.known_hosts or 'host_key'}: {error}") from error
        client = _Client(server, has_entry=bool(known[0]))
        try:
            keys: list[str | asyncssh.SSHKeyPair] = (
                [server.key_file] if server.key_file else await _keys_of_agent(server)
            )
            connection, _ = await asyncssh.create_connection(
                lambda: client,
                server.host,
                server.port,
                tunnel=below,
                config=None,
                known_hosts=known,
                username=server.user or getpass.getuser(),
                client_keys=keys,
                agent_path=None,
                agent_forwarding=False,
                preferred_auth="publickey",
                connect_timeout=self._route.connect_timeout_s,
                login_timeout=self._route.connect_timeout_s,
                keepalive_interval=self._route.keepalive_s,
                keepalive_count_max=self._route.keepalive_failures,
            )
        except (OSError, asyncssh.Error, TimeoutError, ValueError) as error:
            beyond = "as seen from the jump before it: " if below is not None else ""
            status = with_cure(client.refused or judged(error), server)
            refusal = status.state if status.state in REFUSALS or client.in_login else None
            raise TunnelFault(status.state, beyond + status.reason, refusal=refusal) from error
        self._made.append(connection)
        self._clients.append(client)


def judged(error: BaseException | None) -> PathStatus:
    """What an error of asyncssh, or of the connection below it, means."""
    reason = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        reason = "it did not accept our login in time"
    elif isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        reason = os.strerror(error.errno)  # asyncio's own words leave that out.
    match error:
        case socket.gaierror():
            state = PathState.NAME_UNKNOWN
        case ConnectionRefusedError():
            state = PathState.REFUSED
        case ConnectionResetError() | BrokenPipeError():
            state = PathState.CLOSED
        case TimeoutError() | OSError():
            state = PathState.UNREACHABLE
        case asyncssh.PermissionDenied():
            state = PathState.AUTH_FAILED
        case asyncssh.HostKeyNotVerifiable():
            state = PathState.HOST_KEY_UNKNOWN
        case asyncssh.KeyExchangeFailed() if "host key" in reason:
            state = PathState.HOST_KEY_UNKNOWN  # It has none of the kinds that are known of it.
        case asyncssh.ChannelOpenError():
            said = {"refused": PathState.REFUSED, "prohibited": PathState.FORBIDDEN, "resol": PathState.NAME_UNKNOWN}
            state = next((s for word, s in said.items() if word in reason), PathState.UNREACHABLE)
        case asyncssh.KeyImportError():
            state = PathState.KEY_UNUSABLE
        case asyncssh.ConnectionLost() if "keepalive" in reason or "not responding" in reason:
            state = PathState.DEAD_PATH
        case None | asyncssh.DisconnectError():
            state = PathState.CLOSED
            reason = reason if error else "the far side closed the connection"
        case _:
            state = PathState.FAILED
    return PathStatus(state, reason)


class _Forwards:
    """The sockets that this connection listens on."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        self._listeners: dict[str, asyncssh.SSHListener] = {}

    async def forward(self, local: str, remote: str) -> None:
        if local in self._listeners:
            return
        Path(local).unlink(missing_ok=True)
        if remote.startswith("/"):
            listener = await self._connection.forward_local_path(local, remote)
        else:
            host, _, port = remote.rpartition(":")
            listener = await self._connection.forward_local_path_to_port(local, host.strip("[]"), int(port))
        self._listeners[local] = listener

    async def cancel(self, local: str) -> None:
        listener = self._listeners.pop(local, None)
        if listener is not None:
            listener.close()


async def _serve(name: str) -> PathStatus:
    route = _read(Path(f"{name}.conf"))
    connections = _Connections(route)
    try:
        await connections.connect()
    except TunnelFault as fault:
        connections.close()
        return fault.status
    forwards = _Forwards(connections.last)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said: dict[str, Any] = {"ok": True}
        with suppress(ConnectionError):
            writer.write(GREETING)
            line = await reader.readline()
            if line:
                try:
                    asked = json.loads(line)
                    if asked["do"] == "forward":
                        await forwards.forward(asked["local"], asked["remote"])
                    else:
                        await forwards.cancel(asked["local"])
                except (OSError, ValueError, KeyError, asyncssh.Error) as error:
                    said = {"ok": False, "reason": f"{error!r}"}
                writer.write(json.dumps(said).encode() + b"\n")
            writer.close()

    server = await asyncio.start_unix_server(answer, f"{name}.ctl")
    ended: asyncio.Future[PathStatus] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        await connections.last.wait_closed()
        if not ended.done():
            ended.set_result(connections.why_lost())

    watching = asyncio.create_task(watch())

    def stop() -> None:
        if not ended.done():
            ended.set_result(PathStatus(PathState.CLOSED, "ended by the daemon"))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    try:
        return await ended
    finally:
        watching.cancel()
        server.close()
        connections.close()


def _read(path: Path) -> SshRoute:
    content = json.loads(path.read_text())
    return SshRoute(**{**content, "servers": tuple(SshServer(**server) for server in content["servers"])})


def main() -> None:
    """Runs until the connection ends."""
    os.umask(_OURS_ALONE)
    status = asyncio.run(_serve(sys.argv[1]))
    print(json.dumps(asdict(status)), flush=True)
    os._exit(255)


if __name__ == "__main__":
    main()
