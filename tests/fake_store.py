"""A store in memory, for tests that need no etcd: the same contract (`tests/contract/test_stores.py`)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping

from gateway_sidecar.domain.store_memory import Entry, Snapshot
from gateway_sidecar.errors import LeaseLost, StoreConflict, StoreError, StoreInDoubt


class Held:
    """What a store holds. Several clients, and so several gateways, may share it."""

    def __init__(self, cluster: str = "one") -> None:
        self.cluster = cluster
        self.revision = 1
        self.entries: dict[str, Entry] = {}
        self.leases: dict[str, set[str]] = {}
        self.kept_at: dict[str, float] = {}
        self.removed: dict[str, int] = {}
        self.changed = asyncio.Event()
        self.numbers = itertools.count(1)

    def write(self, key: str, value: str | None) -> int:
        self.revision += 1
        if value is None:
            self.entries.pop(key, None)
            self.removed[key] = self.revision
        else:
            self.entries[key] = Entry(value, self.revision)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        return self.revision

    def end(self, lease: str) -> None:
        """As if it had run out."""
        for key in self.leases.pop(lease, ()):
            self.write(key, None)


class FakeStore:
    """One client of it (a `Store`). `failing`: what each call raises; `in_doubt`: a swap does its work, and raises."""

    def __init__(self, held: Held | None = None) -> None:
        self.held = held or Held()
        self.failing: StoreError | None = None
        self.in_doubt = False
        self.delay_s = 0.0

    async def read(self, *prefixes: str) -> Snapshot:
        await self._answer()
        found = {key: it for key, it in self.held.entries.items() if key.startswith(prefixes)}
        return Snapshot(self.held.cluster, self.held.revision, found)

    async def read_changes(self, known: Snapshot, since: int, *prefixes: str) -> Snapshot | None:
        seen = await self.read(*prefixes)
        changed = {key: it for key, it in seen.entries.items() if it.revision > since}
        entries = {**known.entries, **changed}
        is_whole = len(entries) == len(seen.entries) and known.cluster == seen.cluster
        return Snapshot(seen.cluster, seen.revision, entries) if is_whole else None

    async def swap(self, key: str, value: str | None, *, seen: int | None, lease: str | None = None) -> int:
        await self._answer()
        entry = self.held.entries.get(key)
        if (entry.revision if entry else None) != seen:
            raise StoreConflict(f"'{key}' was written by somebody else")
        if lease is not None and lease not in self.held.leases:
            raise LeaseLost("the lease has ended")
        revision = self.held.write(key, value)
        for keys in self.held.leases.values():
            keys.discard(key)
        if lease is not None:
            self.held.leases[lease].add(key)
        if self.in_doubt:
            raise StoreInDoubt("no answer")
        return revision

    async def watch(self, prefix: str, since: int) -> AsyncIterator[Mapping[str, int]]:
        await self._answer()
        while True:
            changed = self.held.changed
            newest = max((it.revision for key, it in self.held.entries.items() if key.startswith(prefix)), default=0)
            if newest > since or self.held.revision > since:
                gone = {key: at for key, at in self.held.removed.items() if key.startswith(prefix) and at > since}
                since = self.held.revision
                yield gone
            await changed.wait()

    async def grant(self, ttl_s: int) -> str:
        await self._answer()
        lease = str(next(self.held.numbers))
        self.held.leases[lease] = set()
        self.held.kept_at[lease] = asyncio.get_running_loop().time()
        return lease

    async def keep(self, lease: str) -> None:
        await self._answer()
        if lease not in self.held.leases:
            raise LeaseLost("the lease has ended")
        self.held.kept_at[lease] = asyncio.get_running_loop().time()

    async def kept_s(self, prefix: str) -> Mapping[str, float]:
        await self._answer()
        now = asyncio.get_running_loop().time()
        keys = {key: lease for lease, keys in self.held.leases.items() for key in keys if key.startswith(prefix)}
        return {key: now - self.held.kept_at[lease] for key, lease in keys.items()}

    async def revoke(self, lease: str) -> None:
        await self._answer()
        self.held.end(lease)

    async def close(self) -> None:
        return

    async def _answer(self) -> None:
        await asyncio.sleep(self.delay_s)
        if self.failing is not None:
            raise self.failing
