"""One gateway's part in a fleet: the store, what it follows there, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from gateway_sidecar.control.fleet.acme import FleetAcme
from gateway_sidecar.control.fleet.alike import Alike
from gateway_sidecar.control.fleet.certificates import FleetCertificates
from gateway_sidecar.control.fleet.drains import FleetDrains, Says
from gateway_sidecar.control.fleet.keys import FleetKeys
from gateway_sidecar.control.fleet.membership import Describe, Membership, WrittenDown
from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.control.fleet.mesh import FleetMesh
from gateway_sidecar.control.fleet.ports import FleetPorts, Has
from gateway_sidecar.control.fleet.reflector import WATCHED, StoreReflector
from gateway_sidecar.control.fleet.replicas import SharedReplicas
from gateway_sidecar.control.fleet.seen import Seen, Sees
from gateway_sidecar.control.fleet.usage import Counts, FleetUsage
from gateway_sidecar.errors import StoreError
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision.loops import Loop


@dataclass(frozen=True, slots=True)
class Telling:
    """What a daemon tells the other gateways.

    describe: itself. says: what it has to say of a drain. sees: the states of its replicas. has: their ports.
    written_down: returns once what it says outlives this daemon. counts: which services count for keys of the store.
    """

    describe: Describe
    says: Says
    sees: Sees
    has: Has
    written_down: WrittenDown
    counts: Counts


@dataclass(frozen=True, slots=True)
class Fleet:
    """`where` is the store, in words."""

    where: str
    store: Store
    remembered: RememberedStore
    reflector: StoreReflector
    membership: Membership
    replicas: SharedReplicas
    drains: FleetDrains
    seen: Seen
    ports: FleetPorts
    keys: FleetKeys
    certificates: FleetCertificates
    acme: FleetAcme
    alike: Alike
    usage: FleetUsage
    mesh: FleetMesh

    def loops(self, it: Telling) -> Sequence[Loop]:
        """What keeps it going, beside `replicas.run`."""
        follow = [partial(self.reflector.follow, topic) for topic in WATCHED]
        tell = partial(self.membership.run, it.describe, it.written_down)
        told = [
            tell,
            partial(self.drains.run, it.says),
            partial(self.seen.run, it.sees),
            partial(self.ports.run, it.has),
            partial(self.alike.run, it.describe),
            partial(self.usage.run, it.counts),
        ]
        frontends = [self.keys.run, self.certificates.run, *self.acme.loops]
        return [self.reflector.run, *follow, *told, *frontends, self.remembered.run]

    async def close(self, *, leaves: bool) -> None:
        """Gives back the connections; with `leaves` the others see at once that all of this gateway's has stopped."""
        if leaves:
            with suppress(StoreError):  # Its lease ends by itself.
                await self.membership.leave()
        await self.store.close()
