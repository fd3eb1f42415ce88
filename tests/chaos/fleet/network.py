"""The fleet's network: each machine a network namespace of its own, all on one switch."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from subprocess import CalledProcessError

from tests.namespaces import Lan, Namespace, namespaces

CLIENTS, BALANCER = "clients", "balancer"
SHARED_ADDRESS = "192.0.2.10"
"""As examples/balancers/keepalived.conf has it."""
_NOBODY = "02:00:00:00:00:fe"
"""No machine has it: what is sent there is lost without a word."""
_NUMBERS = {CLIENTS: 1, BALANCER: 2}
_FIRST = {"gw": 10, "etcd": 20, "node": 30}


class Network:
    """Machines by name: `gw-1`, `etcd-1`, `node-1`, `clients`, `balancer`."""

    def __init__(self, switch: Namespace, machines: dict[str, Namespace]) -> None:
        self._lan = Lan(switch)
        self._machines = machines
        for name, space in machines.items():
            self._lan.plug(space, f"{address_of(name)}/24")

    def __getitem__(self, name: str) -> Namespace:
        return self._machines[name]

    def cut(self, one: str, *others: str) -> None:
        """Nothing passes between one machine and these any more, and neither side is told."""
        for other in others:
            for here, there in ((one, other), (other, one)):
                self[here].ip(
                    "neigh", "replace", address_of(there), "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent"
                )

    def mend(self, one: str, *others: str) -> None:
        """It passes again."""
        for other in others:
            for here, there in ((one, other), (other, one)):
                with suppress(CalledProcessError):  # A machine that was unplugged meanwhile has forgotten it.
                    self[here].ip("neigh", "del", address_of(there), "dev", "eth0")

    def unplug(self, name: str) -> None:
        """The machine's cable is out."""
        self._lan.unplug(self[name])

    def plug(self, name: str) -> None:
        """It is in again. The machine has no address but its own: it was off."""
        with suppress(CalledProcessError):
            self[name].ip("addr", "del", f"{SHARED_ADDRESS}/24", "dev", "eth0")
        self._lan.plug_again(self[name])

    def has_shared_address(self, name: str) -> bool:
        """Whether a machine has the shared address now."""
        with self[name].socket((socket.AF_INET, socket.SOCK_DGRAM, 0)) as probe:
            try:
                probe.bind((SHARED_ADDRESS, 0))
            except OSError:
                return False
            return True


def address_of(name: str) -> str:
    """A machine's own address."""
    kind, _, number = name.partition("-")
    return f"192.0.2.{_NUMBERS[name] if name in _NUMBERS else _FIRST[kind] + int(number)}"


@contextmanager
def network(gateways: int, members: int, nodes: int) -> Iterator[Network]:
    """The machines of a fleet, gone afterwards."""
    names = [
        CLIENTS, BALANCER, *(f"gw-{n}" for n in range(1, gateways + 1)),
        *(f"etcd-{n}" for n in range(1, members + 1)), *(f"node-{n}" for n in range(1, nodes + 1)),
    ]  # fmt: skip
    with ExitStack() as stack:
        switch, *spaces = stack.enter_context(namespaces(1 + len(names)))
        yield Network(switch, dict(zip(names, spaces, strict=True)))
