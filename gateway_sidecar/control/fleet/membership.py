"""This gateway in the eyes of the others: `gateways/NAME`, with a lease that is kept.

A lost lease stops nothing here: it is taken anew as soon as the store lets us.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.control.fleet.reflector import GATEWAYS, StoreReflector
from gateway_sidecar.domain.fleet import Gateway, gateways_in
from gateway_sidecar.errors import LeaseLost, StoreConflict, StoreError
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problem

Describe = Callable[[], Mapping[str, Any]]
"""What the others are told: JSON, beside name and instance."""
_RETRY_S = 1.0


class Membership:
    """Keeps the lease and the key. An instance, which is remembered, tells this gateway from another of its name."""

    def __init__(
        self,
        store: Store,
        reflector: StoreReflector,
        remembered: RememberedStore,
        name: str,
        problem: Problem,
        *,
        lease_s: int,
    ) -> None:
        self._store = store
        self._reflector = reflector
        self._remembered = remembered
        self._problem = problem
        self._lease_s = lease_s
        self._logger = get_logger()
        self._changed = asyncio.Event()
        self._lease: str | None = None
        self._told: tuple[str, str] | None = None
        self.name = name

    @property
    def others(self) -> list[Gateway]:
        """The other gateways that are alive, as far as the last good snapshot says."""
        known = self._reflector.known
        return [it for it in gateways_in(known, GATEWAYS) if it.name != self.name] if known else []

    def touch(self) -> None:
        """What the others are told has changed."""
        self._changed.set()

    async def run(self, describe: Describe) -> None:
        """Runs until cancelled."""
        while True:
            self._changed.clear()
            kept = False

            async def keep() -> None:
                nonlocal kept
                kept = await self._keep(describe)

            await beating(keep())
            await awake.until_set(self._changed, self._lease_s / 3 if kept else _RETRY_S)

    async def leave(self) -> None:
        """Ends the lease: the others see at once that this gateway is gone. Raises StoreError."""
        lease, self._lease, self._told = self._lease, None, None
        if lease is not None:
            await self._store.revoke(lease)

    async def _keep(self, describe: Describe) -> bool:
        """One round; whether the others see this gateway as it is."""
        if not self._reflector.is_up:
            return False  # A store that is not believed is not written to, either.
        value = json.dumps({"instance": self._remembered.instance, **describe()}, sort_keys=True)
        try:
            lease = await self._kept_lease()
            if self._told == (lease, value) and self._is_there():
                return True
            return await self._tell(lease, value)
        except StoreConflict:
            self._reflector.look_soon()
            return False
        except StoreError as error:
            self._problem.set(f"the other gateways do not see this one: {error}")
            return False

    async def _kept_lease(self) -> str:
        if self._lease is not None:
            try:
                await self._store.keep(self._lease)
            except LeaseLost:
                self._logger.warning("store.lease_lost", gateway=self.name)
                self._lease = None
        if self._lease is None:
            self._lease = await self._store.grant(self._lease_s)
        return self._lease

    def _is_there(self) -> bool:
        known = self._reflector.known
        return known is not None and GATEWAYS + self.name in known.entries

    async def _tell(self, lease: str, value: str) -> bool:
        key = GATEWAYS + self.name
        entry = await self._reflector.read_one(key)
        other = Gateway.from_json(self.name, entry.value) if entry is not None else None
        if other is not None and other.instance != self._remembered.instance:
            self._problem.set(
                f"another gateway is called '{self.name}', too; give one of them another store.gateway (the name of one"
                f" that ended is free after {self._lease_s} s)"
            )
            return False
        revision = await self._store.swap(key, value, seen=entry.revision if entry else None, lease=lease)
        self._told = lease, value
        self._problem.set("")
        self._reflector.note_write(key, value, revision)
        return True
