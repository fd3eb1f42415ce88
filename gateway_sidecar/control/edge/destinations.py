"""The addresses that the daemon itself must reach. Host names are looked up now and then, and a name's last good answer
stays until there is a better one. Before the first look-up its addresses are unknown: `resolve` waits for that, within
bounds.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from gateway_sidecar.config import AddressSettings, ServiceSettings
from gateway_sidecar.domain.claims import Address, is_address
from gateway_sidecar.domain.tunnels import Tunnel
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import heartbeat
from gateway_sidecar.supervision.own_thread import OwnThread

_AGAIN_S = 30.0  # A choice: one thread looks up all names in turn, and what a name leads to seldom changes.
_LOOK_S = 5.0  # How soon a host that a reload names is looked up; it beats for the watchdog, too.
_PATIENCE_S = 5.0
"""The C library's resolver asks a server once more after 5 s (resolv.conf(5)): by then it is not answering."""


def hosts_of(
    tunnels: Iterable[Tunnel], services: Iterable[ServiceSettings], addresses: Iterable[AddressSettings] = ()
) -> dict[str, str]:
    """The hosts that these have this machine connect to itself -> what is there, in words."""
    found: dict[str, str] = {}
    for address in addresses:
        if address.frontend.auth is not None and (asked := address.frontend.auth.url) is not None:
            found[urlsplit(str(asked)).hostname or ""] = f"frontend.auth.url of address {address.name}"
    for service in services:
        auth, scaling = service.frontend.auth, service.scaling
        urls = {
            "frontend.auth.url": f"http://{auth.url.address}" if auth is not None and auth.url is not None else None,
            "scaling.hook.webhook": scaling.hook.webhook if scaling is not None and scaling.hook is not None else None,
        }
        for setting, url in urls.items():
            if url is not None and (host := urlsplit(url).hostname) is not None:
                found[host] = f"{setting} of service {service.name}"
    # What lies behind a server to jump over is reached from there, and not from here.
    return found | {(it := t.route.servers[0]).host: f"the SSH server {it} of {t.owner}" for t in tunnels}


class Destinations:
    """The addresses of the hosts that the daemon has to reach. Nothing is known before `use`."""

    def __init__(self) -> None:
        self._hosts: Callable[[], Mapping[str, str]] = dict
        self._on_change: Callable[[], None] = lambda: None
        self._known: dict[str, frozenset[Address]] = {}
        self._told: Mapping[Address, str] = {}
        self._due: dict[str, float] = {}
        self._thread = OwnThread("names")

    def use(self, hosts: Callable[[], Mapping[str, str]], on_change: Callable[[], None]) -> None:
        """`hosts` says which there are now: name or address -> what is there; `on_change` hears of new addresses."""
        self._hosts, self._on_change = hosts, on_change

    def addresses(self) -> Mapping[Address, str]:
        """Every address that is known to be needed -> what is there. May be called in any thread."""
        return self._told

    async def resolve(self) -> None:
        """Returns when every name was looked up once, or after a few seconds."""
        with suppress(TimeoutError):
            async with within(_PATIENCE_S):
                await self._look({name for name in self._hosts() if name not in self._due})
        self._tell()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            hosts = self._hosts()
            for gone in self._due.keys() - hosts.keys():
                del self._due[gone]
                self._known.pop(gone, None)
            await self._look({name for name in hosts if self._due.get(name, 0.0) <= awake.monotonic()})
            self._tell()
            await awake.rest(_LOOK_S)

    async def _look(self, names: set[str]) -> None:
        for name in sorted(names, key=lambda name: (not is_address(name), name)):
            heartbeat()
            try:
                found = await self._thread.run(partial(look_up, name), patience_s=_PATIENCE_S)
            except TimeoutError:
                return  # Whoever answers for names does not: the others have to wait, too.
            self._due[name] = awake.monotonic() + _AGAIN_S
            if found:
                self._known[name] = found

    def _tell(self) -> None:
        hosts = self._hosts()
        told = {address: hosts[name] for name, known in self._known.items() if name in hosts for address in known}
        if told != self._told:
            self._told = told
            self._on_change()


def look_up(name: str) -> frozenset[Address]:
    """A host's addresses; empty if they cannot be had. Blocks."""
    try:
        rows = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in rows)
