"""Certificates by ACME of all gateways of a store. One gateway orders, any of them answers what the server asks for,
and all have the certificate.

- `tls/acme/FILE`: the files of `AcmeState`: the account, certificates with their keys, and the orders that failed;
- `tls/orderer`: the gateway that orders, with its lease. Who writes it by compare-and-set has it, and nobody orders
  without. What comes of the order is compared, too, to what was there when the order began: so one that ends after the
  lease did changes nothing that a successor wrote;
- `tls/challenges/TOKEN`: what the server asks for, with the lease of who orders.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.memory import RememberedStore
from gateway_sidecar.control.fleet.reflector import ACME, CHALLENGES, ORDERER, StoreReflector
from gateway_sidecar.control.fleet.stored_files import StoredFiles, below
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.domain.store_memory import NOT_OURS, Entry, Snapshot
from gateway_sidecar.errors import StoreAway, StoreConflict, StoreError
from gateway_sidecar.frontend.acme_state import AcmeState, Wanted
from gateway_sidecar.frontend.challenges import TOKEN, put_answers
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import Loop, beating, heartbeat
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.problems import Problems

_STORE_S = 60.0
"""The thread of an order waits for so long until the store has taken something, or every gateway answers the server."""
_ALL_S = 10.0
"""A gateway that does not say by then that it answers is slow, or hangs: most likely the server asks another one."""
_LOOK_S = 0.25  # A tick of the daemon's clock; what the others say is news, which ends the pause.
_TIDY_S = 2.0  # As often as other loops look: what is left of an order harms nobody.


class FleetAcme:
    """What of it the store has (an `AcmeShared`). at: where this gateway's nginx looks for what servers ask for."""

    goes_on = True

    def __init__(
        self,
        reflector: StoreReflector,
        membership: Membership,
        remembered: RememberedStore,
        directory: Path,
        at: Path,
        problems: Problems,
    ) -> None:
        self._reflector = reflector
        self._membership = membership
        self._remembered = remembered
        self._logger = get_logger()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._is_taken = self._must_release = False
        self._turn = asyncio.Lock()
        """Of who takes the orders, or gives them back: each would undo what the other one has just read."""
        self._seen: dict[str, int] = {}
        """The revisions of files, as this gateway found them when it took the orders, or wrote them since."""
        self.state = AcmeState(directory)
        kept, asked = problems.of("store: acme"), problems.of("store: acme challenges")
        self._kept = StoredFiles(reflector, ACME, self.state.take_in, kept, on_taken=self._tell_news)
        self._asked = StoredFiles(reflector, CHALLENGES, partial(_take_answers, at), asked, on_taken=self._answer)
        reflector.on_change(self._look_soon)

    @property
    def loops(self) -> list[Loop]:
        """What keeps it going."""
        return [self._kept.run, self._asked.run, self._tidy]

    def says(self) -> list[str]:
        """The tokens that this gateway answers, as it tells the others."""
        return sorted(self._asked.taken or ())

    async def load(self) -> None:
        """Before certificates are looked for: the files are as they were known last."""
        self._loop = asyncio.get_running_loop()
        await self._kept.load()

    # -- an `AcmeShared`

    def on_news(self, listener: Callable[[], None]) -> None:
        """Calls it when others have brought something."""
        self._listeners.append(listener)

    def ordered_at(self, wanted: Wanted) -> str | None:
        """The other gateway that orders it now; None if nobody knows, since the store cannot be read."""
        known = self._reflector.known if self._reflector.is_up else None
        entry = known.entries.get(ORDERER) if known is not None else None
        order = _order_in(entry.value) if entry is not None else {}
        is_this = order.get("order") == str(wanted) and not self._is_own(order)
        return printable(str(order.get("gateway"))) if is_this else None

    def lacks(self, wanted: Wanted) -> bool:
        """Whether the store does not have it."""
        return self._reflector.is_up and f"{wanted}.pem" not in self._kept.entries()

    async def take(self, wanted: Wanted) -> bool:
        """Raises StoreError."""
        if not self._membership.joined.is_set():
            return False  # It has just begun, and is about to be seen.
        async with self._turn:
            return await self._take(wanted)

    async def _take(self, wanted: Wanted) -> bool:
        lease = self._membership.lease
        if lease is None or not self._reflector.is_up:
            raise StoreAway(self._reflector.status.reason or "the other gateways do not see this one yet")
        entry = (await self._reflector.read_now(ORDERER)).entries.get(ORDERER)
        order = _order_in(entry.value) if entry is not None else {}
        if order and not self._is_own(order):
            return False
        own = {"gateway": self._membership.name, "instance": self._remembered.instance, "order": str(wanted)}
        seen = entry.revision if entry is not None else None
        try:
            await self._reflector.swap(ORDERER, json.dumps(own), seen=seen, lease=lease)
        except StoreConflict:
            return False
        self._is_taken = True
        try:
            if await self._has_news():
                await self._give_back()
                return False
            await self._share_missing()
        except StoreError:
            await self._give_back()
            raise
        return True

    async def release(self) -> None:
        """At the latest `_tidy` does it, or the end of the lease."""
        async with self._turn:
            await self._give_back()

    async def _give_back(self) -> None:
        """Nobody else asks for anything meanwhile: what is asked for still was left by an order that was cut off."""
        self._is_taken, self._must_release = False, True
        with suppress(StoreError):
            entry = await self._reflector.read_one(ORDERER)
            if entry is not None and self._is_own(_order_in(entry.value)):
                await self.ask_no_more(await self._asked_for())
                await self._reflector.swap(ORDERER, None, seen=entry.revision)
            self._must_release = False

    async def put(self, name: str, text: str) -> None:
        """Raises StoreError."""
        entry = self._kept.entries().get(name)
        if entry is None or entry.value != text or entry.revision != self._seen.get(name):
            self._seen[name] = await self._reflector.swap(ACME + name, text, seen=self._seen.get(name))

    async def drop(self, names: Collection[str]) -> None:
        """What cannot be removed now is as good as none to the others."""
        there = self._kept.entries()
        with suppress(StoreError):
            for name in there.keys() & set(names):
                await self._reflector.swap(ACME + name, None, seen=there[name].revision)

    @contextmanager
    def answers(self, texts: Mapping[str, str]) -> Iterator[None]:
        """In the thread of the order. Raises StoreError."""
        try:
            self._wait(self.ask(texts))
            yield
        finally:
            with suppress(StoreError):
                self._wait(self.ask_no_more(texts))

    async def ask(self, texts: Mapping[str, str]) -> None:
        """Returns once every gateway answers, or will not do so soon. Raises StoreError."""
        lease = self._membership.lease
        if lease is None:
            raise StoreAway("the other gateways do not see this one")
        await self._share_missing()  # The account may have been made just now.
        there = await self._asked_for()  # Servers may ask for the same after an order that failed.
        for token, text in texts.items():
            seen = there[token].revision if token in there else None
            await self._reflector.swap(CHALLENGES + token, text, seen=seen, lease=lease)
        until = awake.now() + _ALL_S
        while (silent := self._silent(set(texts))) and awake.now() < until:
            self._news.clear()
            await awake.until_set(self._news, _LOOK_S)
        if silent:
            self._logger.warning("acme.unanswered", gateways=silent)

    async def ask_no_more(self, tokens: Collection[str]) -> None:
        """The server has seen them. Raises StoreError."""
        for token, entry in (await self._asked_for()).items():
            if token in tokens:
                await self._reflector.swap(CHALLENGES + token, None, seen=entry.revision)

    async def _asked_for(self) -> dict[str, Entry]:
        return below(CHALLENGES, await self._reflector.read_now(CHALLENGES))

    # -- what the others have

    async def _has_news(self) -> bool:
        """Whether the store has something that is not in this gateway's files: who ordered before has brought it."""
        there = below(ACME, await self._reflector.read_now(ACME))
        self._seen = {name: it.revision for name, it in there.items()}
        if {name: it.value for name, it in there.items()} == self._kept.taken:
            return False
        self._reflector.look_soon()
        return True

    async def _share_missing(self) -> None:
        """What only this gateway has: an account that was made just now, or all from before it had a store."""
        for name, text in (await asyncio.to_thread(self.state.texts)).items():
            if name not in self._seen:
                await self.put(name, text)

    def _silent(self, tokens: set[str]) -> list[str]:
        """Gateways that do not answer all of these; one of a version that knows nothing of it is not waited for."""
        told = {it.name: it.said["challenges"] for it in self._membership.others if "challenges" in it.said}
        told[self._membership.name] = self.says()
        return sorted(name for name, says in told.items() if not (isinstance(says, list) and tokens <= set(says)))

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Raises StoreError."""
        assert self._loop is not None
        asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            asked.result(_STORE_S)
        except TimeoutError:
            asked.cancel()
            raise StoreAway(f"no answer in {_STORE_S:g} s") from None

    # -- the loops

    async def _tidy(self) -> None:
        while True:
            heartbeat()
            if self._must_release and self._reflector.is_up:
                await beating(self._release_left())
            await awake.rest(_TIDY_S)

    async def _release_left(self) -> None:
        async with self._turn:
            if self._must_release and not self._is_taken:  # It may have been taken meanwhile.
                await self._give_back()

    def _is_own(self, order: Mapping[str, Any]) -> bool:
        own = self._membership.name, self._remembered.instance
        return (order.get("gateway"), order.get("instance")) == own

    def _look_soon(self, _: Snapshot) -> None:
        self._news.set()

    def _answer(self) -> None:
        self._membership.touch()
        self._news.set()

    def _tell_news(self) -> None:
        for listener in self._listeners:
            listener()


def _order_in(text: str) -> Mapping[str, Any]:
    """Empty for what no gateway wrote: it holds nobody up."""
    try:
        said = json.loads(text)
        return said if isinstance(said, dict) and {"gateway", "instance"} <= said.keys() else {}
    except NOT_OURS:
        return {}


def _take_answers(at: Path, texts: Mapping[str, str]) -> Mapping[str, str]:
    good = {token: text for token, text in texts.items() if TOKEN.fullmatch(token)}
    put_answers(at, good)
    return {printable(token): "is no token (RFC 8555, 8.3)" for token in texts.keys() - good.keys()}
