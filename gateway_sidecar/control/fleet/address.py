"""The address of this machine by which the others of its fleet reach it: the one that was set, or that is found."""

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


def proved_ours(host: str) -> str:
    """The address that was set, which must be one of this machine's: routers listen there. Raises OSError."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        text = f"store.address: {host} is no address of this machine ({error.strerror}); use one of its own"
        raise OSError(text) from error
    return host
