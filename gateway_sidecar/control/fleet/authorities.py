"""The fleet's own authorities: one key of the store (`mesh/authorities`), made by the first gateway that needs it.

Who can read the store below the prefix can sign a certificate, and so join the mesh. A gateway keeps what it knew last
on its disk, with all else that it knows of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gateway_sidecar.control.fleet.reflector import MESH, StoreReflector
from gateway_sidecar.domain.fleet_authority import (
    AUTHORITY_S,
    Authority,
    authorities_in,
    in_force,
    needs_next,
    text_of,
)
from gateway_sidecar.errors import StoreConflict, StoreError
from gateway_sidecar.stores.base import Store

KEY = MESH + "authorities"
_TRIES = 5  # As for a PUT: whoever else writes has won once by then.


class FleetAuthorities:
    """Those that the fleet believes now. `now` is the time of day: certificates are dated by it."""

    def __init__(self, store: Store, reflector: StoreReflector, now: Callable[[], float]) -> None:
        self._store = store
        self._reflector = reflector
        self._now = now

    @property
    def known(self) -> Sequence[Authority]:
        """Those in force that the last good snapshot has."""
        known = self._reflector.known
        entry = known.entries.get(KEY) if known is not None else None
        return in_force(authorities_in(entry.value if entry is not None else None), self._now())

    async def current(self) -> Sequence[Authority]:
        """All that are in force, a new one among them if one is due and the store can be written.

        Raises StoreError if there is none at all.
        """
        try:
            return await self._brought_up_to_date()
        except StoreError:
            if there := self.known:
                return there
            raise

    async def _brought_up_to_date(self) -> Sequence[Authority]:
        for _ in range(_TRIES):
            entry, now = await self._reflector.read_one(KEY), self._now()
            there = authorities_in(entry.value if entry is not None else None)
            if not needs_next(in_force(there, now), now):
                return in_force(there, now)
            from gateway_sidecar.frontend.authority import make_authority  # It takes 8 MB.

            # Those that have ended stay: by the others' clocks they may not have.
            fresh = [*there, await asyncio.to_thread(make_authority, now, AUTHORITY_S)]
            try:
                revision = await self._store.swap(KEY, text_of(fresh), seen=entry.revision if entry else None)
            except StoreConflict:
                continue  # Another gateway made one just now.
            self._reflector.note_write(KEY, text_of(fresh), revision)
            return in_force(fresh, now)
        raise StoreError(f"'{KEY}' is written by others all the time; try again")
