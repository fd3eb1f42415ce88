"""What is done to etcd."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from tests.chaos.events import Event
from tests.chaos.fleet.events import AtStore, AwayMembers, Compact
from tests.chaos.fleet.ground import Ground


class StoreFaults:
    """Does each event to etcd, and returns when all members take part again."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def do(self, event: Event) -> bool:
        """Whether it was an event of this kind."""
        match event:
            case AwayMembers():
                await self._away(event)
            case Compact():
                await self._compact(event)
            case _:
                return False
        return True

    async def _away(self, event: AwayMembers) -> None:
        members, began = [self._ground.members[n] for n in event.members], time.monotonic()
        match event.how:
            case "killed":
                await asyncio.gather(*(member.stop() for member in members))
                await asyncio.sleep(event.for_s)
                await asyncio.gather(*(member.begin() for member in members))
            case "frozen":
                for member in members:
                    member.freeze()
                await asyncio.sleep(event.for_s)
                for member in members:
                    member.thaw()
            case "slow":
                with suppress(TimeoutError):
                    await asyncio.gather(*(member.stutter(event.for_s) for member in members))
        await asyncio.gather(*(member.until_well() for member in members))
        kind = "store away" if 2 * len(members) > len(self._ground.members) else "members away"
        self._ground.fault(kind, began, how=event.how)

    async def _compact(self, event: AtStore) -> None:
        began = time.monotonic()
        try:
            await self._ground.members[event.members[0]].compact()
        except OSError as error:
            self._ground.history.failures.append(f"etcd was not compacted: {error}")
        self._ground.fault("compacted", began)
