"""Who may log in where, and when: a far side counts refused logins and locks the whole gateway out for a few.

A login is one server, as reached over the same jumps, and what is shown to it. Logins that were accepted the last time
may be tried at once; what other logins may fail in ten minutes is counted for each far side, in all tunnels together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.domain.tunnels import REFUSALS, PathState, SshRoute, SshServer
from gateway_sidecar.supervision import awake
from gateway_sidecar.tunnels.base import TunnelFault

_COUNTED_S = 600.0
"""fail2ban's `findtime` for sshd."""
_MOST_REFUSED = 3
"""Of the five that fail2ban allows by default (`maxretry`); one more is left to a login that was accepted before."""
_PAUSE = Backoff(30.0, 300.0, factor=10.0)
_LOOK_S = 1.0  # What ends a pause is another login's success, or its time: fine beside pauses of 30 s and more.

_Place = tuple[tuple[str, int], ...]
"""A far side as its own sshd sees us: the servers on the way to it, and itself."""
_Files = tuple[tuple[int, int, int] | None, ...]


@dataclass(slots=True)
class _Login:
    """What became of one login. accepted: the last one was. standing: and its connection has not ended since."""

    files: _Files = ()
    refused_at: list[float] = field(default_factory=list)
    refused_for: PathState | None = None
    accepted: bool = False
    standing: bool = False
    trying: int = 0


class Logins:
    """Of all tunnels."""

    def __init__(self) -> None:
        self._places: dict[_Place, dict[SshServer, _Login]] = {}
        self._wanted: set[tuple[_Place, SshServer]] = set()

    def keep(self, routes: Iterable[SshRoute]) -> None:
        """These are the ways of the tunnels that are wanted: what others were refused holds nobody up any more."""
        self._wanted = {step for route in routes for step in _steps(route)}
        for place, logins in list(self._places.items()):
            self._places[place] = {
                server: login
                for server, login in logins.items()
                if (place, server) in self._wanted or login.trying or _recent(login)
            }
            if not self._places[place]:
                del self._places[place]

    def pause_s(self, route: SshRoute) -> float:
        """Seconds until this way may be tried, as far as it is known now."""
        return max(self._pause_s(place, server) for place, server in _steps(route))

    def note_lost(self, route: SshRoute) -> None:
        """A connection that had been let in has ended: one login shows whether the next would be."""
        for login in self._logins(route):
            login.accepted, login.standing = True, False

    @asynccontextmanager
    async def login(self, route: SshRoute) -> AsyncIterator[None]:
        """Waits until the way may be tried. The block tries it: a TunnelFault that it raises says how far it came."""
        await self._turn(route)
        logins = self._logins(route)
        for login in logins:
            login.trying += 1
        entered, refusal = 0, None
        try:
            yield
            entered = len(logins)
        except TunnelFault as fault:
            entered, refusal = fault.status.entered, fault.status.refusal
            raise
        finally:
            for number, login in enumerate(logins):
                login.trying -= 1
                if number < entered:
                    login.accepted = login.standing = True
                    login.refused_at.clear()
                elif number == entered and refusal is not None:
                    login.accepted = login.standing = False
                    login.refused_at = [*_recent(login), awake.now()]
                    login.refused_for = refusal

    async def _turn(self, route: SshRoute) -> None:
        while True:
            files = await asyncio.to_thread(lambda: [_files_of(server) for server in route.servers])
            for login, present in zip(self._logins(route), files, strict=True):
                if login.refused_at and _differ(login, present):
                    login.refused_at.clear()
                login.files = present
            pause_s = self.pause_s(route)
            if pause_s <= 0:
                return
            await asyncio.sleep(min(pause_s, _LOOK_S))

    def _logins(self, route: SshRoute) -> list[_Login]:
        return [self._places.setdefault(place, {}).setdefault(server, _Login()) for place, server in _steps(route)]

    def _pause_s(self, place: _Place, server: SshServer) -> float:
        logins = self._places.get(place, {})
        login = logins.get(server, _Login())
        if login.standing:
            return 0.0
        if login.accepted:
            return _LOOK_S if login.trying else 0.0
        refused = sorted(at for it, other in logins.items() if (place, it) in self._wanted for at in _recent(other))
        trying = sum(other.trying for other in logins.values() if not other.accepted)
        pause_s = 0.0
        if login.refused_at:
            pause_s = login.refused_at[-1] + _PAUSE.delay_s(len(login.refused_at)) - awake.now()
        if len(refused) + trying >= _MOST_REFUSED:
            pause_s = max(pause_s, _LOOK_S)
        if len(refused) >= _MOST_REFUSED:
            pause_s = max(pause_s, refused[-_MOST_REFUSED] + _COUNTED_S - awake.now())
        return pause_s


def _recent(login: _Login) -> list[float]:
    """When it was refused, as far as that still counts."""
    return [at for at in login.refused_at if at > awake.now() - _COUNTED_S]


def _steps(route: SshRoute) -> Iterator[tuple[_Place, SshServer]]:
    place: _Place = ()
    for server in route.servers:
        place = (*place, (server.host, server.port))
        yield place, server


def _files_of(server: SshServer) -> _Files:
    """What shows that the list of known hosts, the agent or the key has changed, in this order. Blocks."""
    public = server.key_file and f"{server.key_file}.pub"  # ssh shows that one, if it is there.
    return tuple(_stamp(path) for path in (server.known_hosts, server.agent, server.key_file, public))


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    if not path:
        return None
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _differ(login: _Login, present: _Files) -> bool:
    """Whether what it was refused for has changed. Other tunnels enter keys in the list of known hosts."""
    about_the_host = login.refused_for in REFUSALS - {PathState.AUTH_FAILED}
    return present[:1] != login.files[:1] if about_the_host else present[1:] != login.files[1:]
