"""This gateway in the eyes of the others: `gateways/NAME`, with a lease that is kept; and the others in its own.

A lost lease stops nothing here: it is taken anew as soon as the store lets us. A name that another gateway has stops
nothing either: this one goes by one of its own then, so that the others see it, and their drains wait for it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.control.fleet.reflector import GATEWAYS, StoreReflector
from gateway_sidecar.domain.fleet import Gateway, gateways_in
from gateway_sidecar.domain.store_memory import Entry, Snapshot
from gateway_sidecar.errors import LeaseLost, StoreConflict, StoreError
from gateway_sidecar.stores.base import Store
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problem

Describe = Callable[[], Mapping[str, Any]]
"""What the others are told: JSON, beside name and instance."""
WrittenDown = Callable[[], Awaitable[None]]
"""Returns once what it says of drains outlives this daemon."""
_RETRY_S = 1.0  # A fifth of the shortest lease (`lease_s`, 5 s): it does not end for one try that failed.
_DRAIN_S = 0.25
"""How often it is looked at what to tell, while a drain is asked for that is not done here."""
_BUSY_S = 2.0
"""The same, while a port rests that may still be in use here."""
_TELL_S = 1.0
"""Counts of connections change all the time: they are told this often, and what is safe at once."""
_SURE_PART = 0.8  # The rest is for clocks that do not run alike, and to stop what goes on.
_SURELY_ENDED = 4
"""After so many times the time of a lease, one that nobody keeps has ended."""
_GONE_S = 600.0
"""So long the others remember one that is gone."""


class Membership:
    """Keeps the lease and the key. An instance, which is remembered, tells this gateway from another of its name; and a
    run, which is not, one whose memory was copied with its machine.
    """

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
        self._told: tuple[str, Mapping[str, Any]] | None = None
        self._told_at = self._kept_at = 0.0
        self._alive: set[str] = set()
        self._given, self.name = name, name
        self._run, self._has_told = secrets.token_hex(4), False
        self.grace_s = float(lease_s)
        """So much longer than its lease a gateway may be away before it counts as dead."""
        self._gone: dict[str, float] = {}
        self.joined = asyncio.Event()
        """Set once the others know of this gateway and it knows what they were asked for, or that cannot be now."""
        reflector.on_change(self._note_others)

    @property
    def others(self) -> list[Gateway]:
        """The other gateways that are alive, as far as the last good snapshot says; also one that has our name."""
        known, own = self._reflector.known, (self.name, self._remembered.instance)
        return [it for it in gateways_in(known, GATEWAYS) if (it.name, it.instance) != own] if known else []

    @property
    def lease(self) -> str | None:
        """What this gateway's keys end with, while the others see it."""
        return self._lease if self._told is not None else None

    @property
    def is_heard(self) -> bool:
        """Whether what this gateway tells reaches the others, and what they tell reaches this one, as far as known."""
        return self._reflector.is_up and self.lease is not None

    def has_told(self, text: str) -> bool:
        """Whether the others can read this text in what they were told of this gateway."""
        known = self._reflector.known
        entry = known.entries.get(GATEWAYS + self.name) if known is not None else None
        return entry is not None and text in entry.value

    def surely_holds(self, lease: str) -> bool:
        """Whether that lease is this gateway's and cannot have ended, whatever the store does meanwhile.

        It was kept after `_kept_at`. A fifth of it is left for clocks that do not run alike, and to stop what goes on.
        """
        return self._lease == lease and awake.monotonic() < self._kept_at + _SURE_PART * self._lease_s

    @property
    def gone_s(self) -> Mapping[str, float]:
        """Another gateway whose lease was seen to end -> for how long, in seconds; for ten minutes.

        Time in which the store could not be read does not count: the gateway may be back since.
        """
        it = self._reflector
        until = awake.now() if it.is_up else it.read_at
        ago = {name: max(0.0, until - max(at, it.up_since)) for name, at in self._gone.items()}
        return {name: seconds for name, seconds in ago.items() if seconds < _GONE_S}

    def touch(self) -> None:
        """What the others are told has changed."""
        self._changed.set()

    async def run(self, describe: Describe, written_down: WrittenDown) -> None:
        """Runs until cancelled."""
        await beating(self._until_looked())
        while True:
            self._changed.clear()
            await beating(self._keep(describe, written_down))
            await awake.until_set(self._changed, self._pause_s())

    async def leave(self) -> None:
        """Says that all of this gateway's has stopped: the others see at once that it is gone. Raises StoreError."""
        lease, self._lease, told, self._told = self._lease, None, self._told, None
        if lease is not None and told is not None:
            key, value = GATEWAYS + self.name, self._text({"ended": True})
            entry = await self._reflector.read_one(key)
            if not self._is_anothers(self.name, entry):
                await self._store.swap(key, value, seen=entry.revision if entry else None, lease=lease)

    async def _until_looked(self) -> None:
        await self._reflector.looked.wait()

    def _pause_s(self) -> float:
        if self._told is None or not self._reflector.is_up:
            return _RETRY_S
        said = self._told[1]
        if not all(it["safe"] for it in said.get("drains", {}).values()):
            return _DRAIN_S
        # A slow store takes long to be told, and the lease does not wait.
        left_s = max(_DRAIN_S, self._kept_at + self._lease_s / 3 - awake.monotonic())
        return min(_BUSY_S, left_s) if said.get("ports", {}).get("busy") else left_s

    async def _keep(self, describe: Describe, written_down: WrittenDown) -> None:
        """One round: sees that the others see this gateway as it is."""
        if self._reflector.is_up:  # A store that is not believed is not written to, either.
            try:
                await self._choose_name()
                lease, said = await self._kept_lease(), describe()
                if not self._is_told(lease, said):
                    await self._tell(lease, said, written_down)
            except StoreConflict:
                self._told = None
                self._reflector.look_soon()
                return
            except StoreError as error:
                self._told = None
                self._problem.set(f"the other gateways do not see this one: {error}")
        if not self.joined.is_set():
            if self._told is not None:
                # A drain that was written before the others saw this gateway is in what is read now; for one that is
                # written later this gateway is waited for. So none is missed, and the first replica may be served.
                await self._reflector.look()
            self.joined.set()

    async def _choose_name(self) -> None:
        """The given name, or while another gateway has that one that nobody else has. Raises StoreError.

        Whatever was told by the name before ends with its lease.
        """
        given = self._known(self._given)
        if (self._has_told and self._is_copys(given)) or self._has_twin():
            self._remembered.begin_instance()  # Of two with one memory, who sees it first is another gateway now.
        name = self._given
        if self._is_anothers(name, given):
            name = f"{name}@{self._remembered.instance[:8]}"
        if name == self.name:
            return
        lease = self._lease
        await self.leave()
        if lease is not None:
            await self._store.revoke(lease)
        self.name = name

    def _is_anothers(self, name: str, entry: Entry | None) -> bool:
        """Whether another gateway that is alive has the name."""
        other = Gateway.from_json(name, entry.value) if entry is not None else None
        if other is None or other.ended or other.said.get("run") == self._run:
            return False  # What it wrote before it took another instance is its own.
        return other.instance != self._remembered.instance

    def _is_copys(self, entry: Entry | None) -> bool:
        """Whether somebody else writes as this very gateway, though it has written itself since it began."""
        other = Gateway.from_json(self._given, entry.value) if entry is not None else None
        is_own = other is not None and other.instance == self._remembered.instance
        return other is not None and is_own and other.said.get("run") != self._run

    def _has_twin(self) -> bool:
        """Whether a gateway of another name has this one's memory: its machine was copied, and it was given a new name.

        Of the two the one whose name comes last takes another instance. What an earlier daemon of this gateway told by
        an earlier name has its instance, too, but ends with its lease, which a store that was away may prolong.
        """
        if awake.now() - self._reflector.up_since < _SURELY_ENDED * self._lease_s:
            return False
        instance = self._remembered.instance
        twins = [it for it in self.others if it.instance == instance and it.said.get("run") != self._run]
        return any(it.name < self.name for it in twins)

    def _known(self, name: str) -> Entry | None:
        known = self._reflector.known
        return known.entries.get(GATEWAYS + name) if known is not None else None

    async def _kept_lease(self) -> str:
        now = awake.monotonic()
        is_due = now - self._kept_at >= self._lease_s / 3 - _RETRY_S / 2
        if self._lease is not None and (is_due or self._known(self.name) is None):
            try:
                await self._store.keep(self._lease)
                self._kept_at = now
            except LeaseLost:
                self._logger.warning("store.lease_lost", gateway=self.name)
                self._lease = None
        if self._lease is None:
            self._lease = await self._store.grant(self._lease_s)
            self._kept_at = now
        return self._lease

    def _is_told(self, lease: str, said: Mapping[str, Any]) -> bool:
        """Whether the others see it, as it is but for what may wait."""
        entry = self._known(self.name)
        if self._told is None or self._told[0] != lease or entry is None or entry.value != self._text(self._told[1]):
            return False  # Also what somebody else wrote there: the others judge by it whether a drain is done.
        return self._told[1] == said or (
            awake.monotonic() - self._told_at < _TELL_S and _uncounted(self._told[1]) == _uncounted(said)
        )

    async def _tell(self, lease: str, said: Mapping[str, Any], written_down: WrittenDown) -> None:
        key, value = GATEWAYS + self.name, self._text(said)
        entry = await self._reflector.read_one(key)
        if self._is_anothers(self.name, entry):
            raise StoreConflict(f"another gateway has just taken the name '{self.name}'")
        if any(it["safe"] for it in said.get("drains", {}).values()):
            await self._remembered.flush()  # The next daemon keeps what this one calls safe.
            await written_down()
        revision = await self._store.swap(key, value, seen=entry.revision if entry else None, lease=lease)
        self._told, self._told_at, self._has_told = (lease, said), awake.monotonic(), True
        self._problem.set(self._namesake())
        self._reflector.note_write(key, value, revision)

    def _namesake(self) -> str:
        if self.name == self._given:
            return ""
        return (
            f"another gateway is called '{self._given}', too, and this one goes by '{self.name}' meanwhile; give one of"
            f" them another store.gateway (the name of one that ended is free after {self._lease_s} s)"
        )

    def _text(self, said: Mapping[str, Any]) -> str:
        missing = sorted(name for name, gone_s in self.gone_s.items() if gone_s < self.grace_s)
        own = {"instance": self._remembered.instance, "run": self._run}
        return json.dumps({**own, "missing": missing, **said}, sort_keys=True)

    def _note_others(self, snapshot: Snapshot) -> None:
        """Notes whose lease has ended. One that says that it has stopped is no loss.

        What ended before this gateway came the others say: it gives them the whole grace.
        """
        there = {key.removeprefix(GATEWAYS) for key in snapshot.entries if key.startswith(GATEWAYS)} - {self.name}
        self._gone = {name: at for name, at in self._gone.items() if name not in there}
        alive = gateways_in(snapshot, GATEWAYS)
        missing = {name for it in alive for name in it.missing} - there - self._gone.keys() - {self.name}
        self._gone |= dict.fromkeys((self._alive - there) | missing, awake.now())
        self._alive = {it.name for it in alive} & there
        if self._told is not None and GATEWAYS + self.name not in snapshot.entries:
            self.touch()


def _uncounted(said: Mapping[str, Any]) -> Mapping[str, Any]:
    drains = said.get("drains", {})
    return {**said, "drains": {key: {**it, "in_flight": it["in_flight"] is None} for key, it in drains.items()}}
