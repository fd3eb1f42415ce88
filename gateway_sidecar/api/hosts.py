"""The host names that the metrics listener answers to.

A web page whose name its owner leads to this machine's address (DNS rebinding) is, to a browser, the same site as the
listener, and may read all that it answers. But the browser sends that page's name as Host, and that is not one of the
listener's names.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway_sidecar.domain.claims import is_address

_LONGEST_SHOWN = 100  # A choice: enough to tell which name was used; a client may send 8 KB of it.


class OwnNames:
    """Our own names: every IP address, localhost, this machine's name, and those of the settings.

    `*.example.net` among them is every name below example.net.
    """

    def __init__(self, names: Iterable[str]) -> None:
        machine = socket.gethostname().lower()
        named = [name.lower() for name in names]
        self._exact = {"localhost", machine, machine.partition(".")[0], *(n for n in named if not n.startswith("*"))}
        self._below = tuple(name.removeprefix("*") for name in named if name.startswith("*"))

    def include(self, host: str) -> bool:
        """Whether `host`, as a Host header says it, is ours."""
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        return is_address(name) or name in self._exact or name.endswith(self._below)


def only_by(names: OwnNames) -> Middleware:
    """Answers 421 to who asks by another name. Who gives none, which no browser does, is answered."""

    @web.middleware
    async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not host or names.include(host):
            return await handler(request)
        shown = host[:_LONGEST_SHOWN].encode("ascii", "backslashreplace").decode()
        return web.Response(
            status=421,
            text=f"{shown!r} is not a name of this listener; use its address, or add the name to metrics.hosts in "
            f"the gateway's configuration\n",
        )

    return ask
