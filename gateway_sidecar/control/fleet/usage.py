"""What keys of the store have used of their day and their month at all gateways: `usage/INSTANCE`, which each tells
itself; the sum of the others' is in a file, which nginx adds to its own counts.

The record outlives its gateway, for as long as the longest month. While the store is away the sum stays as it was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from gateway_sidecar.config.frontend_values import NAME
from gateway_sidecar.control.edge.used_up import Usage, periods
from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.control.fleet.reflector import USAGE, StoreReflector
from gateway_sidecar.domain.fleet_usage import UsedAt, used_elsewhere, used_in
from gateway_sidecar.domain.store_memory import Snapshot
from gateway_sidecar.errors import LeaseLost, StateError, StoreError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread

Counts = Callable[[], Collection[str]]
"""The services and shared addresses that count what keys of the store use."""
ROUND_S = 5.0
"""A choice: quotas are of days and months, and what a key uses in 5 s at other gateways is little of them."""
_PART = 0.05
"""So much of the time is spent on it at most: with 10,000 keys the disk takes seconds to say what they have used."""
_BYTES_PER_S = 16 * 1024
"""A store keeps what it is told until it is compacted."""
_LEASE_S = 32 * 86400  # A month's use is told for as long as the month may last, and a day longer.


class FleetUsage:
    """Tells what was used here, and knows what was used elsewhere. place: the file for nginx."""

    def __init__(
        self,
        store: Store,
        reflector: StoreReflector,
        membership: Membership,
        remembered: RememberedStore,
        usage: Usage,
        place: Path,
    ) -> None:
        self._store = store
        self._reflector = reflector
        self._membership = membership
        self._remembered = remembered
        self._usage = usage
        self._place = place
        self._thread = OwnThread("usage of the fleet")
        self._records: Mapping[str, UsedAt] | None = None
        self._services: frozenset[str] = frozenset()
        self._lease = ("", "")
        self._next_tell = 0.0
        self._written: str | None = None

    async def run(self, counts: Counts) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            began, self._services = awake.monotonic(), frozenset(counts())
            if self._services:
                await beating(self._round())
            elif self._written != "":
                await beating(self._write({}))
            await awake.rest(max(ROUND_S, (awake.monotonic() - began) / _PART))

    async def read(self) -> Mapping[str, UsedAt]:
        """What each instance tells now. Raises StoreError."""
        return used_in(await self._reflector.read_now(USAGE), USAGE)

    def elsewhere(self, service: str, bound: str, period: str) -> Mapping[str, int]:
        """Key -> the tokens that it has used at other gateways in this period, as far as they have told.

        None where keys are not of the store: then they are other keys, whatever they are called.
        """
        if service not in self._services:
            return {}
        return used_elsewhere(self._records or {}, self._remembered.instance, bound, period).get(service, {})

    async def _round(self) -> None:
        """Never raises: what is not known stays as it was."""
        try:
            if self._reflector.is_up:
                seen = await self._reflector.read_now(USAGE)
                self._records = used_in(seen, USAGE)
                own, told = await self._own(self._services), self._records.get(self._remembered.instance)
                await self._tell(own.at_least(told).cut(), seen)
        except (StateError, OSError, StoreError):
            pass  # `status` has it from others: usage that is not kept, a store that is away.
        if self._records is not None:  # Until then nginx has what an earlier daemon knew.
            await self._write(self._records)

    async def _own(self, services: Collection[str]) -> UsedAt:
        """Raises StateError."""
        await self._usage.collect()
        used = {
            bound: (period, {name: _named(await self._usage.tokens_since(name, began_at)) for name in services})
            for bound, period, began_at in periods(today())
        }
        return UsedAt(self._membership.name, used)

    async def _tell(self, own: UsedAt, seen: Snapshot) -> None:
        """Raises StoreError."""
        key, value = USAGE + self._remembered.instance, own.to_json()
        entry, now = seen.entries.get(key), awake.monotonic()
        if now < self._next_tell or (entry is not None and entry.value == value):
            return
        day = next(period for _, period, _ in periods(today()))
        if self._lease[0] != day:
            self._lease = day, await self._store.grant(_LEASE_S)
        try:
            await self._store.swap(key, value, seen=entry.revision if entry else None, lease=self._lease[1])
        except LeaseLost:
            self._lease = ("", "")
            raise
        self._next_tell = now + len(value) / _BYTES_PER_S

    async def _write(self, records: Mapping[str, UsedAt]) -> None:
        text = "".join(self._lines(records))
        if text == self._written:
            return
        number = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            await self._thread.run(partial(_put, self._place, f"# {number}\n{text}"), patience_s=DISK_S)
        except OSError:  # A TimeoutError is one, too.
            return  # It is tried again; nginx goes on with what it read last.
        self._written = text

    def _lines(self, records: Mapping[str, UsedAt]) -> Iterator[str]:
        for bound, period, _ in periods(today()):
            found = used_elsewhere(records, self._remembered.instance, bound, period)
            for service in sorted(self._services & found.keys()):
                for name, tokens in sorted(found[service].items()):
                    if re.fullmatch(NAME, name):
                        yield f"{service} {name} {bound} {period} {tokens}\n"


def _named(used: Mapping[str, int]) -> dict[str, int]:
    """Only what can be the name of a key of the store."""
    return {key: tokens for key, tokens in used.items() if tokens > 0 and re.fullmatch(NAME, key)}


def _put(place: Path, text: str) -> None:
    make_directory(place.parent)
    replace_file(place, text)
