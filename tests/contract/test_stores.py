"""One suite for every store: the real etcd, and the one in memory that other tests use."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio

from gateway_sidecar.errors import LeaseLost, StoreConflict
from gateway_sidecar.stores.base import Store
from gateway_sidecar.stores.etcd import STORE
from gateway_sidecar.stores.etcd.settings import EtcdSettings
from tests.etcd import Etcd, running
from tests.fake_store import FakeStore, Held

_prefixes = itertools.count()


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    with running() as one:
        yield one


@pytest_asyncio.fixture(params=["etcd", "memory"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, Store]]:
    """Two clients of one store."""
    if request.param == "memory":
        held = Held()
        yield FakeStore(held), FakeStore(held)
        return
    etcd: Etcd = request.getfixturevalue("etcd")
    settings = EtcdSettings(endpoints=(etcd.endpoint,), prefix=f"/test-{next(_prefixes)}/", timeout_s=30.0)
    one, other = STORE.build(settings), STORE.build(settings)
    yield one, other
    await one.close()
    await other.close()


async def test_what_one_writes_another_reads(stores: tuple[Store, Store]) -> None:
    """A read is never older than a write that was answered before it began."""
    one, other = stores
    revision = await one.swap("replicas/chat/r1", "hällo", seen=None)
    snapshot = await other.read("replicas/", "gateways/")
    assert {key: it.value for key, it in snapshot.entries.items()} == {"replicas/chat/r1": "hällo"}
    assert snapshot.entries["replicas/chat/r1"].revision == revision
    assert snapshot.revision >= revision
    assert snapshot.cluster == (await one.read("x")).cluster != ""


async def test_a_prefix_is_no_more_than_itself(stores: tuple[Store, Store]) -> None:
    """Topics do not see each other's keys."""
    one, _ = stores
    for key in ("a/1", "a0", "b/1", "a/2"):
        await one.swap(key, "", seen=None)
    assert set((await one.read("a/")).entries) == {"a/1", "a/2"}
    assert set((await one.read("a/1", "b/")).entries) == {"a/1", "b/1"}


async def test_what_has_changed_makes_of_a_read_what_a_read_of_all_would_be(stores: tuple[Store, Store]) -> None:
    """Or it is not told: then something was removed that `known` still has."""
    one, other = stores
    for key in ("a/1", "a/2", "b/1"):
        await one.swap(key, "1", seen=None)
    known = await one.read("a/", "b/")
    await other.swap("a/1", "2", seen=known.entries["a/1"].revision)
    await other.swap("b/2", "2", seen=None)
    await other.swap("c/1", "it is below no such prefix", seen=None)
    assert await one.read_changes(known, known.revision, "a/", "b/") == await one.read("a/", "b/")
    await other.swap("a/2", None, seen=known.entries["a/2"].revision)
    assert await one.read_changes(known, known.revision, "a/", "b/") is None
    await other.swap("a/3", "3", seen=None)
    assert await one.read_changes(known, known.revision, "a/", "b/") is None
    less = replace(known, entries={key: it for key, it in known.entries.items() if key != "a/2"})
    assert await one.read_changes(less, known.revision, "a/", "b/") == await one.read("a/", "b/")
    await other.swap("a/2", "again", seen=None)
    assert await one.read_changes(known, known.revision, "a/", "b/") == await one.read("a/", "b/")


async def test_whatever_was_written_what_has_changed_is_never_told_wrongly(stores: tuple[Store, Store]) -> None:
    """A random history, of which a reader misses as much as it may: hints, and its own writes between two reads."""
    one, other = stores
    draw = random.Random(7)
    known = await one.read("a/")
    told = 0
    for _ in range(40):
        since, removed = known.revision, set[str]()
        for _ in range(draw.randint(0, 4)):
            key = f"a/{draw.randint(1, 5)}"
            entry = (await other.read(key)).entries.get(key)
            value = None if entry is not None and draw.random() < 0.5 else str(draw.random())
            revision = await other.swap(key, value, seen=entry.revision if entry else None)
            if value is None and draw.random() < 0.7:
                removed.add(key)
            if draw.random() < 0.3:  # It was this reader's own.
                known = known.with_entry(key, value, revision)
        base = replace(known, entries={key: it for key, it in known.entries.items() if key not in removed})
        found, known = await one.read_changes(base, since, "a/"), await one.read("a/")
        told += found is not None
        assert found in (None, known)
    assert told > 10


async def test_a_write_that_saw_something_else_changes_nothing(stores: tuple[Store, Store]) -> None:
    """Of two who saw the same, one wins, and the other learns of it."""
    one, other = stores
    first = await one.swap("k", "1", seen=None)
    with pytest.raises(StoreConflict):
        await other.swap("k", "2", seen=None)
    second = await other.swap("k", "2", seen=first)
    with pytest.raises(StoreConflict):
        await one.swap("k", None, seen=first)
    assert (await one.read("k")).entries["k"].value == "2"
    assert await one.swap("k", None, seen=second) > second
    assert (await other.read("k")).entries == {}
    with pytest.raises(StoreConflict):
        await other.swap("k", "3", seen=second)


async def test_of_many_who_create_one_key_one_does(stores: tuple[Store, Store]) -> None:
    """The compare and the set are one."""
    done = await asyncio.gather(
        *(stores[n % 2].swap("k", str(n), seen=None) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(it, int) for it in done) == 1
    assert sum(isinstance(it, StoreConflict) for it in done) == 19


async def test_a_watch_tells_of_each_kind_of_change(stores: tuple[Store, Store]) -> None:
    """A put and a removal are both hints."""
    one, other = stores
    revision = await one.swap("a/1", "x", seen=None)
    hints = one.watch("a/", revision)
    for value in ("y", None):
        told = asyncio.ensure_future(anext(hints))
        revision = await other.swap("a/1", value, seen=revision)
        assert await asyncio.wait_for(told, 60) == ({} if value else {"a/1": revision})
    await hints.aclose()  # type: ignore[attr-defined]


async def test_a_watch_tells_what_came_before_it_began(stores: tuple[Store, Store]) -> None:
    """Between a read and the watch after it nothing is missed."""
    one, other = stores
    snapshot = await one.read("a/")
    await other.swap("a/1", "x", seen=None)
    hints = one.watch("a/", snapshot.revision)
    await asyncio.wait_for(anext(hints), 60)
    await hints.aclose()  # type: ignore[attr-defined]


async def test_a_key_ends_with_its_lease(stores: tuple[Store, Store]) -> None:
    """A gateway that is gone is not listed."""
    one, other = stores
    lease = await one.grant(60)
    await one.swap("gateways/a", "me", seen=None, lease=lease)
    await one.keep(lease)
    assert set((await other.read("gateways/")).entries) == {"gateways/a"}
    await one.revoke(lease)
    assert (await other.read("gateways/")).entries == {}
    with pytest.raises(LeaseLost):
        await one.keep(lease)
    with pytest.raises(LeaseLost):
        await one.swap("gateways/a", "me", seen=None, lease=lease)
    await one.revoke(lease)


async def test_whoever_looks_sees_how_long_ago_a_lease_was_kept(stores: tuple[Store, Store]) -> None:
    """A key without one is not named."""
    one, other = stores
    began = time.monotonic()
    lease = await one.grant(600)
    await one.swap("gateways/a", "me", seen=None, lease=lease)
    await one.swap("gateways/b", "me", seen=None)
    await asyncio.sleep(2.1)  # etcd's own clock counts seconds.
    (kept_s,) = (await other.kept_s("gateways/")).values()
    assert 1.0 <= kept_s <= time.monotonic() - began + 1
    began = time.monotonic()
    await one.keep(lease)
    assert set(await other.kept_s("gateways/")) == {"gateways/a"}
    assert (await other.kept_s("gateways/"))["gateways/a"] <= time.monotonic() - began + 1
    assert await other.kept_s("nothing/") == {}


async def test_a_key_written_with_a_new_lease_outlives_the_old_one(stores: tuple[Store, Store]) -> None:
    """The next daemon of a gateway takes its key over."""
    one, other = stores
    old, new = await one.grant(60), await other.grant(60)
    revision = await one.swap("gateways/a", "me", seen=None, lease=old)
    await other.swap("gateways/a", "me", seen=revision, lease=new)
    await one.revoke(old)
    assert set((await other.read("gateways/")).entries) == {"gateways/a"}
