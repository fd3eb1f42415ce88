"""The tenures of one service: by id, by owner and by worker URL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Container, Iterator
from functools import cached_property, partial

from gateway_sidecar.control.replicas.tenure import (
    Bridged,
    BridgeHosts,
    Draining,
    Notes,
    Presence,
    Probed,
    SavedTenure,
    Status,
    Tenure,
    owner_of,
)
from gateway_sidecar.domain.model import ConnectionMode, ReplicaId, SocketIdentity
from gateway_sidecar.domain.planning import Why, base_of
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision import awake


class KnownUrls:
    """The URLs of workers, and the bridges of engines that have not said yet which names they have. For use at once.

    look_for_unsaid: finds the latter. All tenures are looked at for them, so only if they are asked for.
    """

    def __init__(self, said: Container[str], look_for_unsaid: Callable[[], Container[str]]) -> None:
        self._said = said
        self._look_for_unsaid = look_for_unsaid

    @cached_property
    def _unsaid(self) -> Container[str]:
        return self._look_for_unsaid()

    def __contains__(self, url: object) -> bool:
        return url in self._said or (isinstance(url, str) and base_of(url) in self._unsaid)


class Registry:
    """All of them: `by_key` until the last connection is gone, `current` while the occupant is there, `superseded`
    while one whose replica is elsewhere now serves on until that one does.

    unconfirmed: those of an earlier daemon whose occupant no look has shown yet: it may be another one by now.
    has_all: whether everybody who is there has been seen once.
    version: grows whenever something changes that is written down.
    reconciled: grows whenever one of them was looked at. What follows from all of them is the same until then: whatever
        changes has its tenure looked at.
    """

    def __init__(self, service: str, hosts: BridgeHosts) -> None:
        self.service = service
        self._hosts = hosts
        self._keys = itertools.count(1)
        self.by_key: dict[int, Tenure] = {}
        self.current: dict[ReplicaId, Tenure] = {}
        self.superseded: dict[int, Tenure] = {}
        self.unconfirmed: set[int] = set()
        self.has_all = False
        self.version = 0
        self.reconciled = 0
        self._by_occupant: dict[SocketIdentity, list[Tenure]] = {}
        self._by_url: dict[str, Tenure] = {}
        self._urls: dict[int, tuple[str, ...]] = {}
        self._noted: dict[int, tuple[object, ...]] = {}

    def __iter__(self) -> Iterator[Tenure]:
        return iter(self.by_key.values())

    def begin(
        self,
        sighting: Sighting,
        generation: int,
        *,
        gone: bool = False,
        notes: Notes | None = None,
        probe: Probed | None = None,
        bridge: Bridged | None = None,
        drain: Draining | None = None,
        served: bool = False,
        confirmed: bool = True,
        handle: int | None = None,
    ) -> Tenure:
        """A new tenure; its replica's current one unless it is gone. What is known of it already is given with it."""
        now = awake.now()
        tenure = Tenure(
            key=next(self._keys),
            owner=owner_of(self.service, sighting, generation),
            generation=generation,
            sighting=sighting,
            seen_at=now,
            handle=handle,
            hosts=self._hosts,
            presence=Presence.GONE if gone else Presence.PRESENT,
            gone_because=Why.SOCKET_GONE if gone else None,
            notes=notes or Notes(of=sighting if sighting.notes is None and not sighting.described else None),
            probe=probe or Probed(),
            bridge=bridge or Bridged(),
            drain=drain or Draining(),
            status=Status(since=now, served=served),
        )
        self.by_key[tenure.key] = tenure
        if not confirmed:
            self.unconfirmed.add(tenure.key)
        if not gone:
            self.current[tenure.replica] = tenure
        self._by_occupant.setdefault(sighting.occupant, []).append(tenure)
        self.note(tenure)
        return tenure

    def confirm(self, tenure: Tenure, sighting: Sighting) -> bool:
        """A look has shown its occupant, like this; whether that it is there is news."""
        tenure.sighting = sighting
        is_news = tenure.key in self.unconfirmed
        self.unconfirmed.discard(tenure.key)
        return is_news

    def note_all(self) -> None:
        """Everybody who is there has been seen."""
        self.has_all = True

    def leave(self, tenure: Tenure, why: Why) -> None:
        """Its occupant is gone. The first reason counts."""
        self._count_no_more(tenure)
        tenure.presence = Presence.GONE
        tenure.gone_because = tenure.gone_because or why

    def supersede(self, tenure: Tenure) -> None:
        """It serves only until its replica serves elsewhere."""
        self._count_no_more(tenure)
        tenure.presence = Presence.SUPERSEDED
        self.superseded[tenure.key] = tenure

    def _count_no_more(self, tenure: Tenure) -> None:
        self.superseded.pop(tenure.key, None)
        if self.current.get(tenure.replica) is tenure:
            del self.current[tenure.replica]

    def hold(self, tenure: Tenure, handle: int) -> None:
        """Its socket was opened."""
        tenure.handle = handle

    def take_handle(self, tenure: Tenure) -> int | None:
        """What holds its socket, which is the caller's from now on; None if nothing does."""
        handle, tenure.handle = tenure.handle, None
        return handle

    def let_go(self, tenure: Tenure) -> None:
        """Nothing holds its socket any more."""
        handle = self.take_handle(tenure)
        if handle is not None:
            os.close(handle)

    def remove(self, tenure: Tenure) -> list[str]:
        """It is over; the URLs of its workers that are nobody's now."""
        self.version += 1
        self.reconciled += 1
        del self.by_key[tenure.key]
        self.unconfirmed.discard(tenure.key)
        self._noted.pop(tenure.key, None)
        stays = self._by_occupant[tenure.sighting.occupant]
        stays.remove(tenure)
        if not stays:
            del self._by_occupant[tenure.sighting.occupant]
        return self._forget_urls(tenure)

    def note(self, tenure: Tenure) -> None:
        """Takes note of what was found of it."""
        self.reconciled += 1
        urls = tuple(tenure.urls)
        noted = (
            *(tenure.bridge.port, tenure.bridge.peer, tenure.bridge.peer_is_ours, tenure.probe.facts),
            *(tenure.drain.requested, tenure.drain.asked, tenure.gone, tenure.sighting, urls),
        )
        if noted == self._noted.get(tenure.key):
            return
        self.version += 1
        self._noted[tenure.key] = noted
        self._forget_urls(tenure)
        if urls:
            self._urls[tenure.key] = urls
            self._by_url.update(dict.fromkeys(urls, tenure))

    def _forget_urls(self, tenure: Tenure) -> list[str]:
        """The URLs that were its workers' until now."""
        its_own = [url for url in self._urls.pop(tenure.key, ()) if self._by_url.get(url) is tenure]
        for url in its_own:
            del self._by_url[url]
        return its_own

    def at_url(self, url: str) -> Tenure | None:
        """Whose worker has this URL."""
        return self._by_url.get(url)

    def at_base(self, url: str) -> Tenure | None:
        """Whose bridge a worker's URL leads to."""
        base = base_of(url)
        return next((tenure for tenure in self if tenure.base_url == base), None)

    def others(self, replica: ReplicaId, tenure: Tenure | None) -> int:
        """How many further stays of the replica are not over yet."""
        return sum(t.replica == replica and t is not tenure for t in self)

    def known_urls(self, is_ill: Callable[[Tenure], bool]) -> KnownUrls:
        """The URLs that workers have, or may turn out to have. `is_ill`: whether the evidence against one is strong."""
        return KnownUrls(self._by_url, partial(self._unsaid, is_ill))

    def _unsaid(self, is_ill: Callable[[Tenure], bool]) -> Container[str]:
        return {
            url
            for tenure in self
            # It has not said what it is: either kind of worker there may be this replica's, of an earlier daemon, under
            # whatever name. One that leaves needs none, whichever it is.
            if tenure.leaving is None and (tenure.probe.facts is None or not tenure.can_be_described)
            if not is_ill(tenure)
            for mode in ConnectionMode
            if (url := tenure.url_as(mode)) is not None
        }

    def of_same_engine(self, tenure: Tenure) -> list[Tenure]:
        """Its engine's further stays, which are not over: its socket was away for a moment, or its address is another.

        Their requests are that engine's too.
        """
        stays = self._by_occupant.get(tenure.sighting.occupant, ())
        return [stay for stay in stays if stay is not tenure and stay.gone_because is not Why.REPLACED]

    def fresh_generation(self, occupant: SocketIdentity) -> int:
        """A socket that came back, the same inode, is a new stay: its old one may still be draining."""
        return max((t.generation for t in self._by_occupant.get(occupant, ())), default=-1) + 1

    def saved(self) -> list[SavedTenure]:
        """What to write down for the next daemon."""
        return [
            SavedTenure(
                *(t.sighting, t.generation, t.bridge.port, t.probe.facts),
                *(t.drain.requested, t.gone, t.bridge.peer, t.drain.asked),
            )
            for t in self
            if t.bridge.port is not None or t.drain.requested
        ]
