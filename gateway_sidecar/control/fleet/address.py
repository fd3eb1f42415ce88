"""The address of this machine by which the others of its fleet reach it, where nobody has said it."""

from __future__ import annotations

import socket
from collections.abc import Iterable


def address_towards(places: Iterable[tuple[str, int]]) -> str:
    """The address that this machine has on its way to the first of these places that has one.

    Nothing is sent. Blocks while a name is looked up. Raises OSError.
    """
    problem = OSError("the store has no address; set store.address")
    for host, port in places:
        try:
            for family, kind, protocol, _, at in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(at)
                    return str(probe.getsockname()[0])
        except OSError as error:
            problem = OSError(f"this machine's address is not known, as it has no way to {host}: {error.strerror}")
    raise problem
