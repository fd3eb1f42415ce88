"""What each gateway sees of its replicas: `seen/NAME`, for people. Nothing is decided by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.reflector import DRAINS, GATEWAYS, SCALING, SEEN, SIGNALS, StoreReflector
from gateway_sidecar.domain.fleet import AskedDrain, Gateway, States, drains_in, gateways_in, states_in
from gateway_sidecar.domain.fleet_signals import voices_in
from gateway_sidecar.errors import StoreError
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat

Sees = Callable[[], Mapping[str, Mapping[str, Mapping[str, int | None]]]]
"""Service -> state -> the replicas in that state, as this gateway sees them, and their bridge ports."""
_TELL_S = 2.0
"""States change in bursts; a person who looks does not mind."""


@dataclass(frozen=True, slots=True)
class FleetSeen:
    """All that the gateways say, at one moment.

    states: gateway -> what it sees. voices: service -> the gateway that speaks for it, if one does; of those that are
    scaled. kept_s: gateway -> how long ago the store heard from it.
    """

    gateways: Sequence[Gateway]
    drains: Mapping[str, AskedDrain]
    states: Mapping[str, States]
    voices: Mapping[str, str | None]
    kept_s: Mapping[str, float]


class Seen:
    """Tells what this gateway sees, and reads what all of them do."""

    def __init__(self, store: Store, reflector: StoreReflector, membership: Membership) -> None:
        self._store = store
        self._reflector = reflector
        self._membership = membership
        self._told: tuple[str, str] | None = None

    async def run(self, sees: Sees) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            lease = self._membership.lease
            if lease is not None and self._reflector.is_up:
                value = json.dumps(sees(), sort_keys=True, separators=(",", ":"))
                if self._told != (lease, value):
                    await beating(self._tell(lease, value))
            await awake.rest(_TELL_S)

    async def read(self) -> FleetSeen:
        """What all say now. Raises StoreError."""
        found = await self._reflector.read_now(GATEWAYS, DRAINS, SEEN, SCALING, SIGNALS)
        kept_s = await self._store.kept_s(GATEWAYS)
        return FleetSeen(
            gateways_in(found, GATEWAYS),
            drains_in(found, DRAINS),
            states_in(found, SEEN),
            voices_in(found, SCALING, SIGNALS),
            {key.removeprefix(GATEWAYS): seconds for key, seconds in kept_s.items()},
        )

    async def _tell(self, lease: str, value: str) -> None:
        key = SEEN + self._membership.name
        try:
            entry = await self._reflector.read_one(key)
            await self._store.swap(key, value, seen=entry.revision if entry else None, lease=lease)
        except StoreError:
            return  # The next round tells.
        self._told = lease, value
