"""What the supervisors of small nginx processes share: notification of changes, and the loop's sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway_sidecar.domain.backoff import Backoff
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import LOOK_S, heartbeat
from gateway_sidecar.telemetry.logs import get_logger

RETRIES = Backoff(first_s=0.5, most_s=10.0)
QUIET_GAP_S = 0.2  # A person notices no less: a crowd of changes costs five rounds a second at the most.


class Supervisor:
    """What is wanted is said again and again; a loop of the subclass brings it about.

    `begin` is told what says whether every replica there is has been seen once: before that nothing that an earlier
    daemon left is ended.
    """

    def __init__(self) -> None:
        self._logger = get_logger()
        self._listeners: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._has_looked: Callable[[], bool] = bool

    def listen(self, listener: Callable[[], None]) -> None:
        """`listener` is called when something that is kept has changed."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Takes a listener back."""
        self._listeners.remove(listener)

    async def begin(self, has_looked: Callable[[], bool]) -> None:
        """Takes over what an earlier daemon left. Nothing is ended yet."""
        self._has_looked = has_looked
        await self._take_over()

    async def _take_over(self) -> None:
        raise NotImplementedError

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _look_soon(self) -> None:
        self._wake.set()

    def _comes_round(self) -> None:
        heartbeat()
        self._wake.clear()

    async def _sleep(self, longest_s: float) -> None:
        """Until `_look_soon`, or for `longest_s` seconds; for two at most."""
        await awake.until_set(self._wake, min(LOOK_S, longest_s))
