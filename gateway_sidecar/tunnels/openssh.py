"""Connections made by OpenSSH's client: one master process for each route, forwards added and taken away over it.

The client reads a configuration of ours and no other: nothing of a user's or the machine's is in force, and nothing
but names is in its command line. Each server to jump over has a client of its own (ProxyCommand), which the master
starts, so that what it says stands in a file of its own and the failed one is known by name.

What it says is read only when it has ended, and only to tell people why. All of it is at LogLevel INFO: at ERROR
the client would not tell a path that is dead from a server that closed. It says that in a file of its own (`-E`), for
a server's login banner, which may say anything, goes to its stderr.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.tunnels import REFUSALS, PathState, PathStatus, SshRoute, SshServer
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.tunnels.base import TunnelFault, check_files
from gateway_sidecar.tunnels.files import with_cure

_ANSWER_S = 10.0  # A choice: for a forward, which takes a round trip to the far side.
_MOST_READ = 64 * 1024  # The end of a log: what ssh said last is in a line of it.
_COMMON = """\
  BatchMode yes
  RequestTTY no
  LogLevel INFO
  StreamLocalBindUnlink yes
  StreamLocalBindMask 0177
  PreferredAuthentications publickey
  ForwardAgent no
  ForwardX11 no
  PermitLocalCommand no
  UpdateHostKeys no
  VerifyHostKeyDNS no
  CanonicalizeHostname no
  CheckHostIP no
  GlobalKnownHostsFile none
  TCPKeepAlive yes
  ControlPersist no
"""

_SAYS = (
    # Worst first: a changed key makes ssh say more than one of these.
    (PathState.HOST_KEY_CHANGED, r"[Hh]ost key for .* has changed"),
    (PathState.HOST_KEY_CHANGED, r"REMOTE HOST IDENTIFICATION HAS CHANGED"),
    (PathState.HOST_KEY_UNKNOWN, r"marked as revoked|Failed to add the host"),
    (PathState.HOST_KEY_UNKNOWN, r"host key is known for|[Hh]ost key verification failed"),
    (PathState.NAME_UNKNOWN, r"Could not resolve hostname|Name or service not known|name resolution"),
    (PathState.AUTH_FAILED, r"Permission denied \(|Too many authentication failures|no .*authentication methods"),
    (PathState.DEAD_PATH, r"Timeout, server .* not responding"),
    (PathState.REFUSED, r"Connection refused"),
    (PathState.UNREACHABLE, r"timed out|No route to host|unreachable"),
    (PathState.FORBIDDEN, r"open failed: administratively prohibited"),
    (PathState.CLOSED, r"[Cc]losed by|[Cc]onnection reset|Broken pipe"),
)
_FAR_WORDS = re.compile(r"(Received disconnect|Disconnected) from ")
"""The rest of the line is the server's own words."""
_CLOSED = re.compile(r"Connection to \S+ closed by remote host\.")
"""The one message that the client writes to stderr, as its last, when it was connected."""
_WORST_FIRST = tuple(dict.fromkeys(state for state, _ in _SAYS))
_BEYOND = re.compile(r"open failed: |stdio forwarding failed")


class OpenSsh:
    """The backend of which every machine with `ssh` has the parts (an `SshBackend`)."""

    name = "openssh"
    log_suffix = ".said"

    def __init__(self, program: Path, directory: Path) -> None:
        self._program = program
        self._directory = directory

    def command(self, connection: str, route: SshRoute) -> list[str]:
        """Writes the client's configuration, and returns the master's command line."""
        check_files(route.servers)
        for number, server in enumerate(route.servers):
            if server.host_key is not None:
                host = server.host if server.port == 22 else f"[{server.host}]:{server.port}"
                self._write(self._keys_of(connection, number), f"{host} {server.host_key}\n")
        self._write(f"{connection}.conf", "\n".join(self._blocks(connection, route)))
        for name in (f"{connection}.ctl", *self._said(connection, route)):
            (self._directory / name).unlink(missing_ok=True)
        return [str(self._program), "-M", "-F", f"{connection}.conf", "-E", f"{connection}.said", "target"]

    async def forward(self, connection: str, local: str, remote: str) -> None:
        """Asks the master for one more forward. It also accepts a forward that it already has."""
        await self._ask(connection, "forward", local, remote)

    async def cancel(self, connection: str, local: str, remote: str) -> None:
        """Asks the master to listen on this socket no more."""
        await self._ask(connection, "cancel", local, remote)

    def why_ended(self, connection: str, route: SshRoute) -> PathStatus:
        """Judges by what each client of the connection said last, the nearest first."""
        *hops, own = (_lines(self._directory / name) for name in self._said(connection, route))
        # What engines that do not listen yet make the master say is about them, and not about the connection.
        own = [line for line in own if not line.startswith("channel ")]
        last = _lines(self._directory / f"{connection}.log")[-1:]
        return diagnose(route, [*hops, own or [line for line in last if _CLOSED.fullmatch(line)]])

    def objection(self, connection: str, route: SshRoute) -> PathStatus | None:
        """A host that was believed and could not be entered would be believed anew each time."""
        for name, server in zip(self._said(connection, route), route.servers, strict=True):
            if not server.trust_first_use:
                continue
            for line in _lines(self._directory / name):
                if "Failed to add the host" in line:
                    return PathStatus(PathState.HOST_KEY_UNKNOWN, f"{server}: {line}")
        return None

    def _said(self, connection: str, route: SshRoute) -> list[str]:
        """The files in which the clients on the way say how they are, the nearest first."""
        return [*(f"{connection}.hop{number}" for number in range(len(route.servers) - 1)), f"{connection}.said"]

    async def _ask(self, connection: str, what: str, local: str, remote: str) -> None:
        argv = (str(self._program), "-F", f"{connection}.conf", "-O", what, "-L", f"./{local}:{remote}", "target")
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise TunnelFault(PathState.LOCAL_TROUBLE, f"cannot start {self._program}: {error.strerror}") from error
        try:
            async with within(_ANSWER_S):
                _, said = await process.communicate()
        except TimeoutError:
            raise TunnelFault(PathState.LOCAL_TROUBLE, "the ssh process does not answer") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            last = _printable_lines(said[-_MOST_READ:])[-1:] or ["it does not say why"]
            raise TunnelFault(PathState.LOCAL_TROUBLE, f"ssh refuses to {what} {local}: {last[0]}")

    def _blocks(self, connection: str, route: SshRoute) -> Iterator[str]:
        last = len(route.servers) - 1
        for number, server in enumerate(route.servers):
            yield f"Host {'target' if number == last else f'hop{number}'}"
            yield from self._server(server, self._keys_of(connection, number))
            yield f"  ControlPath {connection}.ctl" if number == last else "  ControlPath none"
            if number == last:
                yield "  SessionType none\n  StdinNull yes\n  ExitOnForwardFailure yes"
            if number:
                program = shlex.quote(str(self._program)).replace("%", "%%")
                hop = f"hop{number - 1}"
                options = f"-F {connection}.conf -E {connection}.{hop} -W [%h]:%p"
                yield f"  ProxyCommand {program} {options} {hop} 2>/dev/null"
        yield "Host *"
        yield f"  ServerAliveInterval {route.keepalive_s}"
        yield f"  ServerAliveCountMax {route.keepalive_failures}"
        yield f"  ConnectTimeout {route.connect_timeout_s}"
        yield _COMMON

    def _server(self, server: SshServer, own_keys: str) -> Iterator[str]:
        yield f"  HostName {server.host}"
        yield f"  Port {server.port}"
        if server.user is not None:
            yield f"  User {server.user}"
        yield "  IdentityAgent " + (_quoted(server.agent) if server.agent else "none")
        if server.key_file is not None:
            yield "  IdentitiesOnly yes"
            yield f"  IdentityFile {_quoted(server.key_file)}"
        else:
            yield "  IdentityFile none"
        known = own_keys if server.host_key is not None else server.known_hosts
        yield f"  UserKnownHostsFile {_quoted(known) if known else 'none'}"
        yield f"  StrictHostKeyChecking {'accept-new' if server.trust_first_use else 'yes'}"

    def _keys_of(self, connection: str, number: int) -> str:
        return f"{connection}.keys{number}"

    def _write(self, name: str, text: str) -> None:
        try:
            replace_file(self._directory / name, text)
        except OSError as error:
            raise TunnelFault(PathState.LOCAL_TROUBLE, f"cannot write {name}: {error.strerror}") from error


def diagnose(route: SshRoute, said: Sequence[Sequence[str]]) -> PathStatus:
    """What the lines of the clients on the way, nearest first and the target's own last, mean together.

    Where a server to jump over fails, all behind it only see a connection that closes: the nearest counts.
    """
    for number, lines in enumerate(said[:-1]):
        fault, far = _fault(lines)
        if fault is None:
            continue
        told_later = any(_fault(later)[0] for later in said[number + 1 :])
        if fault.state is PathState.CLOSED and fault.refusal is None and told_later:
            continue
        if fault.state is PathState.DEAD_PATH:
            return fault
        # What a client says of a connection that it was to open beyond its server is about the next one.
        about = number + 1 if far and fault.state is not PathState.FORBIDDEN else number
        entered = number + 1 if far else number
        if about == len(said) - 1:
            return PathStatus(fault.state, f"as seen from {route.servers[number]}: {fault.reason}", entered)
        reason = f"jump {about + 1} ({route.servers[about]}): {with_cure(fault, route.servers[about])}"
        return PathStatus(PathState.JUMP_FAILED, reason, entered, fault.refusal)
    fault, _ = _fault(said[-1])
    if fault is None:
        return PathStatus(PathState.FAILED, said[-1][-1] if said[-1] else "ssh ended without a message")
    return replace(with_cure(fault, route.target), entered=len(said) - 1 if fault.refusal else 0)


def _fault(lines: Sequence[str]) -> tuple[PathStatus | None, bool]:
    """The worst of what one client said, and whether that is about a connection beyond its server."""
    for state in _WORST_FIRST:
        for line in lines:
            if _state_of(line) is state:
                refusal = state if state in REFUSALS or _is_in_login(line, lines) else None
                return PathStatus(state, line, refusal=refusal), bool(_BEYOND.search(line))
    return None, False


def _is_in_login(closed: str, lines: Sequence[str]) -> bool:
    """Whether the server closed the connection on us after the greetings, as PAM does for a locked account."""
    greeting = any("banner exchange" in line or "kex_exchange" in line for line in lines)
    return closed.startswith(("Connection closed by", "Connection reset by")) and not greeting


def _state_of(line: str) -> PathState | None:
    if _FAR_WORDS.match(line):
        return PathState.AUTH_FAILED if "Too many authentication failures" in line else PathState.CLOSED
    return next((state for state, pattern in _SAYS if re.search(pattern, line)), None)


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _MOST_READ))
            return _printable_lines(file.read(_MOST_READ))
    except OSError:
        return []


def _printable_lines(said: bytes) -> list[str]:
    """The far side speaks here, too. No line is longer than can be searched at once."""
    return [printable(line.strip()) for line in said.decode("utf-8", "replace").split("\n") if line.strip()]


def _quoted(path: str) -> str:
    return '"' + path.replace("%", "%%") + '"'
