"""Gateways of an earlier and of a later version in one fleet, as what they write says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway_sidecar.domain.fleet import AskedDrain, DrainSeen, Gateway
from gateway_sidecar.domain.fleet_ports import PortTable
from gateway_sidecar.domain.fleet_signals import Record, Voice
from gateway_sidecar.domain.store_memory import FORMAT, LINEAGE
from gateway_sidecar.errors import StateError, StoreRefused, StoreTooNew
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import ENTRY, OTHER, R1, R2, fleets

LATER: dict[str, Any] = {"of a later version": {"whatever": [1, None, "x"]}}


@in_fake_time
async def test_a_store_that_a_later_version_changed_is_refused_and_nothing_is_written_to_it(tmp_path: Path) -> None:
    """The gateway goes on with what it knows, and says what to do. No word of an operator has it take part."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        await a.fleet.replicas.put("chat", R1, ENTRY)
        lineage = json.loads(them.held.entries[LINEAGE].value)
        them.held.write(LINEAGE, json.dumps({**lineage, "format": FORMAT + 1}))
        them.held.write("replicas/chat/r2", json.dumps(OTHER))
        before = them.held.revision
        await asyncio.sleep(600)
        b = await them.start("b")  # It knows nothing, and takes up nothing.
        assert (a.state, b.state) == ("refused", "refused")
        assert (a.entries(), b.entries()) == ({R1: ENTRY}, {})
        assert b.fleet.replicas.of("chat").unread
        for site in (a, b):
            assert site.problems.told()["store"].endswith("operator says: upgrade this gateway")
        with pytest.raises(StateError, match="upgrade this gateway"):
            await a.fleet.replicas.put("chat", R2, OTHER)
        for refill in (False, True):
            with pytest.raises(StoreTooNew, match="upgrade this gateway"):
                await a.fleet.reflector.accept(refill=refill)
        with pytest.raises(StoreRefused):
            await a.fleet.seen.read()
        assert them.held.revision == before
        them.held.write(LINEAGE, json.dumps(lineage))
        await asyncio.sleep(10)
        assert (a.state, b.entries()) == ("up", {R1: ENTRY, R2: OTHER})


@in_fake_time
async def test_what_a_later_version_has_in_the_store_is_left_there(tmp_path: Path) -> None:
    """Kinds of keys that are not known here, and fields of an entry: also by `store refill`."""
    async with fleets(tmp_path) as them:
        a = await them.start("a")
        entry = {**ENTRY, **LATER}
        await a.fleet.replicas.put("chat", R1, entry)
        await asyncio.sleep(1)
        them.held.entries.clear()
        them.held.write("later/chat", "x")
        them.held.write("replicas/chat/r2", json.dumps(OTHER))
        await asyncio.sleep(10)
        assert a.state == "refused"
        assert await a.fleet.reflector.accept(refill=True) == 2
        await asyncio.sleep(10)
        assert a.state == "up"
        assert them.held.entries["later/chat"].value == "x"
        assert json.loads(them.held.entries["replicas/chat/r1"].value) == entry
        assert "replicas/chat/r2" not in them.held.entries
        assert a.entries() == {R1: entry}


def test_fields_of_a_later_version_are_passed_over() -> None:
    """What this version knows of a record is read all the same."""
    seen = DrainSeen("d1", False, True, 3)
    said = {"instance": "i", "ready": True, "drains": {"chat/r1": {**seen.said(), **LATER}}, **LATER}
    gateway = Gateway.from_json("b", json.dumps(said))
    assert gateway is not None
    assert (gateway.ready, gateway.drains) == (True, {"chat/r1": seen})
    for kind, written in (
        (AskedDrain, AskedDrain("d1", "a").to_json()),
        (PortTable, PortTable(3, 24001, {"chat/r1": 24001}, {24002: 2}).to_json()),
        (Record, Record("i").to_json()),
        (Voice, Voice("a", "i").to_json()),
    ):
        plain = kind.from_json(written)
        assert plain is not None
        assert kind.from_json(json.dumps({**json.loads(written), **LATER})) == plain


def test_fields_that_an_earlier_version_does_not_write_are_not_missed() -> None:
    """All that it said is that it is there: so it has answered no drain, and has counted no port."""
    gateway = Gateway.from_json("b", '{"instance": "i"}')
    assert gateway == Gateway("b", "i", said={"instance": "i"})
    assert not gateway.ready
    assert gateway.ports is None
