"""Supervises the nginx of each bridge whose engine needs an API key. As with advertised addresses, the request is
repeated at each look, leftovers of an earlier daemon are found by looking, and no nginx is ended while a connection is
open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.control.edge.supervisor import QUIET_GAP_S, RETRIES, Supervisor
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.key_proxy import Keyed, KeyedNginx
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, beating
from gateway_sidecar.supervision.process import Identity


@dataclass(frozen=True, slots=True)
class KeyState:
    """Where the bridge's link has to lead; None while that cannot be used, with what is amiss."""

    listens_at: Path | None
    problem: str | None = None


@dataclass(slots=True, eq=False)
class _Place:
    """One bridge port. `to` is None while no tenure requests it."""

    port: int
    nginx: KeyedNginx
    to: Keyed | None
    led: Keyed | None = None
    reason: str = "the nginx before its engine is not up yet"
    failures: int = 0
    due: float = 0.0

    @property
    def up(self) -> bool:
        return self.to is not None and self.led == self.to and self.nginx.running


class KeyProxies(Supervisor):
    """All of them."""

    def __init__(
        self,
        make: Callable[[int], KeyedNginx],
        find_left: Callable[[], Mapping[int, Identity]],
        count: Callable[[Container[int]], Counter[int]],
    ) -> None:
        super().__init__()
        self._make = make
        self._find_left = find_left
        self._count = count
        self._places: dict[int, _Place] = {}

    def request(self, port: int, to: Keyed) -> KeyState:
        """Asks for the bridge `port` to show a key; to be said again at every look, until `withdraw`."""
        place = self._places.get(port)
        if place is None:
            place = self._places[port] = _Place(port, self._make(port), to)
        if place.to != to or not place.up:
            place.to = to
            self._look_soon()
        return KeyState(place.nginx.listens_at) if place.up else KeyState(None, place.reason)

    def withdraw(self, port: int) -> None:
        """The bridge has no owner any more."""
        if port in self._places:
            self._places[port].to = None
            self._look_soon()

    async def _take_over(self) -> None:
        for port, identity in (await asyncio.to_thread(self._find_left)).items():
            nginx = self._make(port)
            if nginx.adopt(identity):
                self._places[port] = _Place(port, nginx, None)
                nginx.on_exit(self._look_soon)

    async def run(self) -> None:
        """Runs until cancelled. What it started goes on then."""
        while True:
            self._comes_round()
            now = awake.monotonic()
            due = [place for place in self._places.values() if now >= place.due and not place.up]
            if due:
                await beating(self._step_all(due))
            pause = min((p.due - now for p in self._places.values() if not p.up), default=LOOK_S)
            await self._sleep(max(QUIET_GAP_S, pause))

    async def close(self) -> None:
        """Ends all of them."""
        await asyncio.gather(*(place.nginx.stop() for place in self._places.values()))
        self._places.clear()

    def detach(self) -> None:
        """Leaves all of them running for the next daemon."""
        for place in self._places.values():
            place.nginx.detach()

    async def _step_all(self, due: list[_Place]) -> None:
        await asyncio.gather(*map(self._step, due))

    async def _step(self, place: _Place) -> None:
        if place.to is None:
            await self._end_when_quiet(place)
            return
        to, before = place.to, place.nginx.process
        try:
            await place.nginx.lead(to)
        except NginxError as error:
            place.failures += 1
            place.due = awake.monotonic() + RETRIES.delay_s(place.failures)
            if place.reason != str(error):
                self._logger.error("bridge.key_not_shown", port=place.port, reason=str(error))
            place.reason = str(error)
        else:
            place.led, place.failures, place.due = to, 0, 0.0
            if place.nginx.process is not before:
                place.nginx.on_exit(self._look_soon)
        self._tell()

    async def _end_when_quiet(self, place: _Place) -> None:
        counts = await asyncio.to_thread(self._count, {place.port})
        if place.to is not None or not self._has_looked():
            return
        if counts[place.port] and place.nginx.running:
            place.due = awake.monotonic() + QUIET_GAP_S
            return
        del self._places[place.port]
        await place.nginx.stop()
