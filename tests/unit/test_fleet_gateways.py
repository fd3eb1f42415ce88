"""The gateways of a fleet, as the store's keys say."""

from __future__ import annotations

from gateway_sidecar.domain.fleet import Gateway, gateways_in
from gateway_sidecar.domain.store_memory import Entry, Snapshot


def test_gateways_are_those_that_have_a_key() -> None:
    """Of what another version, or nobody of us, wrote there nothing is known but the name: it may have requests."""
    entries = {
        "gateways/b": Entry('{"instance": "2", "version": "9", "services": ["chat"], "ready": true, "new": 1}', 3),
        "gateways/a": Entry('{"instance": "1", "leaving": true}', 4),
        "gateways/c": Entry("garbage", 5),
        "replicas/chat/r1": Entry("{}", 6),
    }
    found = gateways_in(Snapshot("one", 9, entries), "gateways/")
    assert [(it.name, it.ready, it.leaving, it.services) for it in found] == [
        ("a", False, True, ()),
        ("b", True, False, ("chat",)),
        ("c", False, False, ()),
    ]
    assert found[1].said["new"] == 1
    assert Gateway.from_json("x", "[]") is None


def test_a_gateway_whose_word_on_a_drain_cannot_be_read_is_alive_and_has_said_nothing() -> None:
    """So it is waited for. One that has stopped all it had is not alive."""
    said = '{"instance": "1", "drains": {"chat/r1": {"id": "d", "safe": true, "in_flight": "many"}, "chat/r2": 3}}'
    entries = {
        "gateways/a": Entry(said, 3),
        "gateways/b": Entry('{"instance": "2", "drains": [], "ended": true}', 4),
        "gateways/c": Entry('{"instance": "3", "drains": []}', 4),
    }
    found = gateways_in(Snapshot("one", 9, entries), "gateways/")
    assert [(it.name, it.drains) for it in found] == [("a", {}), ("c", {})]
