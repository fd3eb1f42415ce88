"""What is written down: whole or not at all, and never trusted more than it deserves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.control.replicas.tenure import SavedTenure
from gateway_sidecar.control.routers.process import SavedRouter
from gateway_sidecar.control.state import records
from gateway_sidecar.domain.model import (
    ConnectionMode,
    EngineFacts,
    Overrides,
    PeerAddress,
    ReplicaId,
    SocketIdentity,
    WorkerType,
)
from gateway_sidecar.domain.tunnels import SshRoute, SshServer, Tunnel
from gateway_sidecar.errors import StateError
from gateway_sidecar.routers.base import MeshMember, RouterPorts
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.supervision.process import Identity, boot_id

FACTS = EngineFacts("sglang", ConnectionMode.GRPC, WorkerType.PREFILL, "tiny", "0.5", 8998, "Nixl", "kv", "e", 2)
SIGHTING = Sighting(ReplicaId("größe"), Path("/run/r 1.sock"), SocketIdentity(1, 2, 3), "sockets")


TUNNEL = Tunnel(
    "chat/r1", SshRoute((SshServer("gate"), SshServer("gpu", 23, "me", "/k", host_key="ssh-rsa A"))), "/e.sock"
)
BEHIND_SSH = Sighting(
    ReplicaId("r1"),
    Path("/run/t.sock"),
    SocketIdentity(0, 0, 0, "t"),
    source="inventory",
    tunnel=TUNNEL,
    described=True,
)


@pytest.mark.parametrize("sighting", [SIGHTING, BEHIND_SSH])
@pytest.mark.parametrize("facts", [FACTS, None])
@pytest.mark.parametrize("peer", [PeerAddress("fd00::5", 8000), PeerAddress("10.0.0.5", 1, direct=True), None])
def test_a_tenure_comes_back_as_it_was(facts: EngineFacts | None, sighting: Sighting, peer: PeerAddress | None) -> None:
    """Nothing of a lease is lost on the way to disk and back."""
    saved = SavedTenure(sighting, 4, 24001, facts, True, peer=peer)
    assert records.tenure_from_json(json.loads(records.as_json(records.tenure_to_json(saved)))) == saved


def test_an_engine_whose_package_is_gone_keeps_its_port_and_is_asked_again() -> None:
    """The next daemon may know fewer engines than the last one."""
    saved = SavedTenure(SIGHTING, 4, 24001, replace(FACTS, runtime_type="toy"), True)
    assert records.tenure_from_json(records.tenure_to_json(saved)) == replace(saved, facts=None)


def test_routers_that_are_to_end_come_back_with_those_of_removed_services() -> None:
    """Rows of another form are left out: their processes are found by their output."""
    ending, removed, kept = (Identity(pid, 7, "boot") for pid in (1, 2, 3))
    routers = {
        name: [records.router_to_json(SavedRouter(name, identity, RouterPorts(1, 2), "key", "smg")), {"pid": 1}, None]
        for name, identity in (("code", removed), ("chat", kept))
    }
    departing = records.departing_to_json([("old", ending)])
    content = json.loads(json.dumps({"routers": routers, "departing": departing | {"odd": [7, {}]}}))
    assert records.departing_from_json(content, still_there={"chat"}) == {removed: "code", ending: "old"}
    assert records.departing_from_json({}, still_there=()) == {}


def test_what_a_source_notes_is_not_written_down() -> None:
    """It may hold an engine's key; the source says it again."""
    saved = SavedTenure(replace(BEHIND_SSH, overrides=Overrides(api_key="secret")), 0, 24001, None, False)
    row = records.as_json(records.tenure_to_json(saved))
    assert b"secret" not in row
    assert records.tenure_from_json(json.loads(row)).sighting == BEHIND_SSH


def test_a_lease_of_a_daemon_that_knew_no_addresses_is_read() -> None:
    """An update keeps every port."""
    row = records.tenure_to_json(SavedTenure(SIGHTING, 4, 24001, FACTS, True))
    del row["peer"]
    assert records.tenure_from_json(row) == SavedTenure(SIGHTING, 4, 24001, FACTS, True)


def test_a_router_comes_back_as_it_was() -> None:
    """The key and the identity are what adoption stands on."""
    place = MeshMember("gw-1.chat.0123", "10.0.0.1", 23003, "10.0.0.2:23003", "/ca", "/certificate", "/key", 1.9e9)
    for ports in (RouterPorts(23001, 23002), RouterPorts(23001, 23002, place)):
        saved = SavedRouter("chat.next", Identity(7, 8, "boot"), ports, "key", "smg")
        assert records.router_from_json(from_disk(json.loads(records.as_json(records.router_to_json(saved))))) == saved


def test_written_whole_and_private(tmp_path: Path) -> None:
    """Readable by the daemon alone; an older record is replaced in one step."""
    path = tmp_path / "state" / "leases.json"
    for number in (1, 2):
        records.write_record(path, {"number": number})
        assert records.read_record(path)["number"] == number
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["leases.json"]


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    """The first start of all is nothing to complain of."""
    assert records.read_record(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not whole"), (b'{"version": 1, "serv', "not whole"), (b"\xff\x00garbage", "not whole"),
        (b"[]", "version None"), (b'{"version": 99}', "version 99"), (b'{"services": {}}', "version None"),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    """Truncated, garbage, or from a newer version: said, and not used."""
    path = tmp_path / "leases.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match=reason):
        records.read_record(path)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A state directory that is a file, say."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StateError, match="cannot write"):
        records.write_record(tmp_path / "state" / "leases.json", {})


@pytest.mark.parametrize(
    "change", [{"port": "x"}, {"occupant": {"device": 1}}, {"facts": {"runtime_type": "gpt"}}, {"facts": 3}]
)
def test_a_lease_of_another_form_is_named(change: dict[str, object]) -> None:
    """A record by somebody else's hand does not stop the daemon."""
    row = records.tenure_to_json(SavedTenure(SIGHTING, 0, 1, FACTS, False)) | change
    with pytest.raises(StateError):
        records.tenure_from_json(row)


ODD = (float("inf"), 2**80, -1, "1")
ANYTHING = st.recursive(
    st.sampled_from(ODD) | st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def spoil(data: st.DataObject, whole: Any) -> Any:
    """The record with something else at one place of it."""
    if isinstance(whole, dict | list) and whole and data.draw(st.booleans(), "deeper"):
        keys = list(whole) if isinstance(whole, dict) else range(len(whole))
        key = data.draw(st.sampled_from(keys), "at")
        whole[key] = spoil(data, whole[key])
        return whole
    return data.draw(ANYTHING, "what")


def from_disk(content: Any) -> Any:
    """As it is read from a file that somebody wrote."""
    try:
        return orjson.loads(json.dumps(content))
    except ValueError as error:
        raise StateError("not whole") from error


@pytest.mark.parametrize(
    ("saved", "to_json", "from_json"),
    [
        (
            SavedTenure(BEHIND_SSH, 4, 24001, FACTS, True, peer=PeerAddress("10.0.0.5", 1, direct=True)),
            records.tenure_to_json,
            records.tenure_from_json,
        ),
        (
            SavedRouter("chat.next", Identity(7, 8, "boot"), RouterPorts(23001, 23002), "key", "smg", "digest"),
            records.router_to_json,
            records.router_from_json,
        ),
    ],
    ids=["lease", "router"],
)
@given(data=st.data())
def test_a_spoilt_row_is_named_or_is_one(
    data: st.DataObject, saved: Any, to_json: Callable[[Any], Any], from_json: Callable[[Any], Any]
) -> None:
    """Whatever stands in it: nothing half read, and no error but the one that is reckoned with."""
    try:
        read = from_json(from_disk(spoil(data, json.loads(records.as_json(to_json(saved))))))
    except StateError:
        return
    assert from_json(to_json(read)) == read


@given(st.data())
def test_spoilt_ports_that_were_told_are_named_or_ports_and_stays(data: st.DataObject) -> None:
    """And for the ports of a fleet."""
    with suppress(StateError):
        told = spoil(data, {"chat/r1": [24001, "chat/r1/1:2:3/0"]})
        read = records.told_from_json(from_disk({"boot_id": boot_id(), "told": told}))
        assert all(0 < port < 65536 and isinstance(owner, str) for port, owner in read.values())


@given(st.data())
def test_spoilt_rests_are_named_or_ports_and_times(data: st.DataObject) -> None:
    """And for ports that rest."""
    with suppress(StateError):
        read = records.resting_from_json(from_disk({"resting": spoil(data, [[24001, 7.5, "chat"], [24002, 8.0, ""]])}))
        assert all(isinstance(port, int) and until < float("inf") for port, until, _ in read)
