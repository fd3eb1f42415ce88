"""Follows one source: looks whenever it hints, and every few seconds in any case. Unknown is not empty.

Each look ends with a listing that is written here, and a key in the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from gateway_sidecar.control.workqueue import Key, Part, WorkQueue
from gateway_sidecar.sources.listing import Listing, Source
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_LEAST_GAP_S = 0.003
"""A crowd of hints is one look; of the 17 ms to a first answer (docs/figures.md) this is the least part."""
_MOST_GAP_S = 0.2  # A look that was slow, at a disk that hung, does not make the next one late.


class Reflector:
    """What a source says.

    listing: the latest; while the source is blind, the last one that was not, with the reason added.
    begun: how many looks were begun. ended: which of them brought `listing`.
    """

    def __init__(
        self, service: str, source: Source, metrics: Metrics, queue: WorkQueue[Key], *, rescan_interval_s: float
    ) -> None:
        self._service = service
        self._source = source
        self._metrics = metrics
        self._queue = queue
        self._rescan_interval_s = rescan_interval_s
        self._logger = get_logger(service=service)
        self._look_now = asyncio.Event()
        self._new_source = asyncio.Event()
        self.listing: Listing | None = None
        self.begun = self.ended = 0

    def look_soon(self) -> None:
        """Something was seen that the next look should tell."""
        self._look_now.set()

    def use(self, source: Source) -> None:
        """Follows another source from now on."""
        self._source = source
        self._new_source.set()
        self._look_now.set()

    async def follow_hints(self) -> None:
        """Runs until cancelled."""
        while True:
            self._new_source.clear()
            hints = asyncio.create_task(self._take_hints(self._source))
            changed = asyncio.create_task(self._new_source.wait())
            try:
                await asyncio.wait({hints, changed}, return_when=asyncio.FIRST_COMPLETED)
                if hints.done():
                    hints.result()
            except OSError as error:  # No inotify left, say: the rescan goes on alone.
                self._logger.warning("source.hints_failed", reason=str(error))
                await asyncio.sleep(10)
            finally:
                hints.cancel()
                changed.cancel()

    async def look(self) -> None:
        """Runs until cancelled."""
        while True:
            heartbeat()
            self._look_now.clear()
            began = awake.monotonic()
            self.begun += 1
            self._see(await self._source.look())
            self.ended = self.begun
            self._queue.add(Part.LISTING, urgent=True)
            # A crowd of hints must not keep us looking all the time. A look that took long was slow, and not much work.
            await asyncio.sleep(min(max(_LEAST_GAP_S, 2 * (awake.monotonic() - began)), _MOST_GAP_S))
            heartbeat()
            await awake.until_set(self._look_now, self._rescan_interval_s)

    async def _take_hints(self, source: Source) -> None:
        async for _ in source.hints():
            self._look_now.set()

    def _see(self, listing: Listing) -> None:
        before = self.listing
        trouble = listing.blind or _joined(listing.unseen)
        known_trouble = before is not None and trouble == (before.blind or _joined(before.unseen))
        self._metrics.source_up.labels(self._service).set(not trouble)
        if trouble and not known_trouble:
            self._logger.error("source.blind", reason=trouble)
        if listing.blind is not None:
            self.listing = replace(before, blind=listing.blind) if before else listing
            return
        self.listing = listing
        if not trouble and before is not None and (before.blind is not None or before.unseen):
            self._logger.info("source.sighted", replicas=len(listing.present))
        self._metrics.refused_names.labels(self._service).set(len(listing.refused))
        for name, reason in listing.refused.items():
            if before is None or before.refused.get(name) != reason:
                self._logger.warning("replica.refused", replica=name, reason=reason)


def _joined(unseen: Mapping[str, str]) -> str:
    return "; ".join(f"{source}: {why}" for source, why in unseen.items())
