"""Several sources as one: each replica has one owner, and what one source cannot see takes nothing from anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway_sidecar.domain.model import ReplicaId, SocketIdentity
from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel
from gateway_sidecar.sources import listing as sources
from gateway_sidecar.sources.listing import Listing, MergedSources, Sighting
from tests.unit.fake_time import in_fake_time


class Fixed:
    """A source that says what it is told to say."""

    def __init__(self, name: str, *replicas: str) -> None:
        self.name = name
        self.listing = Listing()
        self.lists(*replicas)

    def lists(self, *replicas: str) -> None:
        found = {
            ReplicaId(r): Sighting(ReplicaId(r), Path("/s"), SocketIdentity(1, ord(r), 3), self.name) for r in replicas
        }
        self.listing = Listing(found)

    def is_blind(self) -> None:
        self.listing = Listing(blind="cannot be read")

    async def look(self) -> Listing:
        return self.listing

    async def hints(self) -> AsyncIterator[None]:
        yield


def owners(listing: Listing) -> dict[str, str]:
    return {str(replica): sighting.source for replica, sighting in listing.present.items()}


async def test_the_first_that_names_a_replica_owns_it() -> None:
    """The second is refused by name, and comes to its own when the first lets go."""
    one, two = Fixed("one", "a", "b"), Fixed("two", "b", "c")
    both = MergedSources({"one": one, "two": two})
    listing = await both.look()
    assert owners(listing) == {"a": "one", "b": "one", "c": "two"}
    assert listing.refused == {"b": "is in one and in two; one counts: rename or remove one"}
    one.lists("a")
    assert owners(await both.look()) == {"a": "one", "b": "two", "c": "two"}


async def test_blind_source_keeps_what_it_owned() -> None:
    """Against the others too: a replica of its own is not theirs because it cannot be read for a moment."""
    one, two = Fixed("one", "a", "b"), Fixed("two", "b")
    both = MergedSources({"one": one, "two": two})
    await both.look()
    one.is_blind()
    two.lists("b", "c")
    listing = await both.look()
    assert owners(listing) == {"c": "two"}
    assert listing.unknown == {"a", "b"}
    assert not listing.is_gone(ReplicaId("a"), "one")
    assert listing.is_gone(ReplicaId("d"), "two")


async def test_source_that_was_blind_from_the_start_loses_nothing() -> None:
    """What an earlier daemon knew of it stays as it was."""
    one, two = Fixed("one"), Fixed("two", "b")
    one.is_blind()
    listing = await MergedSources({"one": one, "two": two}).look()
    assert not listing.is_gone(ReplicaId("a"), "one")
    assert listing.is_gone(ReplicaId("a"), "two")


async def test_all_blind() -> None:
    """Then nothing at all is known."""
    one, two = Fixed("one"), Fixed("two")
    one.is_blind()
    two.is_blind()
    listing = await MergedSources({"one": one, "two": two}).look()
    assert listing.blind == "one: cannot be read; two: cannot be read"


async def test_hints_of_all() -> None:
    """One that has nothing more to tell does not end the others."""
    hints = MergedSources({"one": Fixed("one"), "two": Fixed("two")}).hints()
    await anext(hints)
    await anext(hints)
    await hints.aclose()  # type: ignore[attr-defined]


async def test_one_engine_under_two_ids_is_one_replica() -> None:
    """The first keeps the place while it is there, whatever the order; then it is the other's."""
    one, two = Fixed("one", "b"), Fixed("two")
    both = MergedSources({"one": one, "two": two})
    assert owners(await both.look()) == {"b": "one"}
    b = one.listing.present[ReplicaId("b")]
    a = replace(b, replica=ReplicaId("a"), source="one")
    one.listing = Listing({a.replica: a, b.replica: b})
    listing = await both.look()
    assert owners(listing) == {"b": "one"}
    assert listing.refused == {"a": "is the same engine as 'b' (/s); remove one"}
    one.listing = Listing({a.replica: a})
    listing = await both.look()
    assert (owners(listing), listing.refused) == ({"a": "one"}, {})


async def test_one_tunnel_under_two_ids_is_one_replica() -> None:
    """Two ports of one host are two engines."""
    route = SshRoute((SshServer("gpu1"),))
    tunnels = {
        name: Tunnel(f"chat/{name}", route, f"127.0.0.1:{port}") for name, port in (("a", 1), ("b", 1), ("c", 2))
    }
    found = {
        ReplicaId(name): Sighting(
            ReplicaId(name), Path(f"/{name}"), SocketIdentity(0, 0, 0, name), "ssh", tunnel=tunnel
        )
        for name, tunnel in tunnels.items()
    }
    one = Fixed("one")
    one.listing = Listing(found)
    listing = await MergedSources({"one": one}).look()
    assert listing.present.keys() == {"a", "c"}
    assert listing.refused == {"b": "is the same engine as 'a' (127.0.0.1:1 at gpu1:22); remove one"}


class Slow(Fixed):
    """One that says it when it is let."""

    def __init__(self, name: str, *replicas: str) -> None:
        super().__init__(name, *replicas)
        self.may = asyncio.Event()
        self.looks = 0

    async def look(self) -> Listing:
        self.looks += 1
        await self.may.wait()
        return self.listing


@in_fake_time
async def test_a_source_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which one is not seen; when it answers it is looked at again at once."""
    monkeypatch.setattr(sources, "_PATIENCE_S", 0.05)
    slow, quick = Slow("slow", "a"), Fixed("quick", "b")
    both = MergedSources({"slow": slow, "quick": quick})
    hints = both.hints()
    await anext(hints)
    listing = await both.look()
    assert owners(listing) == {"b": "quick"}
    assert listing.unseen == {"slow": "it has not answered yet"}
    quick.lists("b", "c")
    assert owners(await both.look()) == {"b": "quick", "c": "quick"}
    assert slow.looks == 1, "one look at a time"
    slow.may.set()
    await anext(hints)
    assert owners(await both.look()) == {"a": "slow", "b": "quick", "c": "quick"}


@in_fake_time
async def test_a_slow_source_keeps_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not blind for being slow, and comes late with its news; what it says as before is no news."""
    monkeypatch.setattr(sources, "_PATIENCE_S", 0.05)
    slow, quick = Slow("slow", "a"), Fixed("quick", "b")
    both = MergedSources({"slow": slow, "quick": quick})
    hints = both.hints()
    await anext(hints)
    slow.may.set()
    await both.look()
    await anext(hints)
    for news in (False, True):
        slow.may.clear()
        if news:
            slow.listing = Fixed("slow", "d").listing  # Without a hint of its own.
        listing = await both.look()
        assert (owners(listing), listing.unseen) == ({"a": "slow", "b": "quick"}, {})
        told = asyncio.ensure_future(anext(hints))
        slow.may.set()
        await asyncio.wait({told}, timeout=0.2)
        assert told.done() is news
        if not news:
            told.cancel()
            await asyncio.gather(told, return_exceptions=True)
            hints = both.hints()
            await anext(hints)
    slow.may.clear()  # What came late counts, and not what the next look brings.
    assert owners(await both.look()) == {"d": "slow", "b": "quick"}


@in_fake_time
async def test_a_source_that_hangs_for_long_is_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it owned stays, and is nobody else's."""
    monkeypatch.setattr(sources, "_PATIENCE_S", 0.05)
    slow, quick = Slow("slow", "a"), Fixed("quick", "b")
    both = MergedSources({"slow": slow, "quick": quick})
    slow.may.set()
    await both.look()
    slow.may.clear()
    await both.look()
    monkeypatch.setattr(sources, "_HANGS_S", 0.0)
    listing = await both.look()
    assert listing.unseen == {"slow": "it does not answer"}
    assert (owners(listing), set(listing.unknown)) == ({"b": "quick"}, {"a"})
    slow.may.set()
