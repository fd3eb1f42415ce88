"""The mesh of a service: what a URL means at each gateway, whose certificates count, and who joins at whom."""

from __future__ import annotations

import socket
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from gateway_sidecar.check import address_findings
from gateway_sidecar.config import parse_config
from gateway_sidecar.control.fleet.address import address_towards
from gateway_sidecar.control.fleet.authorities import KEY, FleetAuthorities
from gateway_sidecar.control.fleet.build import FleetPlaces, build_fleet
from gateway_sidecar.domain.findings import Level
from gateway_sidecar.domain.fleet_authority import (
    AUTHORITY_S,
    CERTIFICATE_S,
    RENEW_S,
    Authority,
    authorities_in,
    in_force,
    is_due,
    needs_next,
    signer,
    text_of,
)
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.domain.mesh import MeshNode, mark_of, marked, nodes_of, unconnected, unmarked
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Overrides
from gateway_sidecar.domain.planning import worker_urls
from gateway_sidecar.errors import StoreAway, StoreError
from gateway_sidecar.frontend.authority import bundle_of, make_authority, sign
from gateway_sidecar.nginx.link_marks import LinkMarks
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems
from tests.unit.fake_time import in_fake_time
from tests.unit.test_fleet import fleets
from tests.unit.test_used_up import PlayedUsage

NOW = 1.8e9
DAY_S = 86400.0
EC_KEYS, STRANGE_KEYS = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f")
"""How a key says of which sort it is: ours, and one that is not known."""
URL = "http://127.0.0.1:24001"


# -- what a URL means


def test_a_url_says_which_replica_it_is_for_and_can_be_read_without_that() -> None:
    """The same at every gateway; a further name of the engine stays what it is."""
    mark = mark_of("chat", "r1")
    assert (len(mark), mark) == (6, mark_of("chat", "r1"))
    assert len({mark_of(service, replica) for service in ("chat", "other") for replica in ("r1", "r2")}) == 4
    assert marked(URL, mark) == f"{URL}/=~{mark}"
    assert marked(f"{URL}/=lora%2Fa", mark) == f"{URL}/=~{mark}~lora%2Fa"
    for url in (URL, f"{URL}/=lora%2Fa", f"{URL}/=~abc", f"{URL}/=a~b"):
        assert unmarked(marked(url, mark)) == url
        assert unmarked(url) == url


def test_no_name_of_an_engine_looks_like_a_mark() -> None:
    """An engine says what it likes of itself."""
    facts = EngineFacts("sglang", ConnectionMode.HTTP, model="m", names=("~b33cd0", "~b33cd0~x"))
    urls = worker_urls(URL, facts, Overrides(), bridged=True)
    assert [unmarked(url) for url in urls] == list(urls)


def test_this_machines_address_is_the_one_on_its_way_to_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no operator has to say it. Nothing is sent."""
    look_up = socket.getaddrinfo

    def know_one(host: str, port: int, **options: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return look_up(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", know_one)
    assert address_towards([("etcd-1", 2379), ("127.0.0.1", 2379)]) == "127.0.0.1"
    with pytest.raises(OSError, match=r"set store\.address"):
        address_towards([])
    with pytest.raises(OSError, match="no way to etcd-1: not known"):
        address_towards([("etcd-1", 2379)])


@in_fake_time
async def test_an_address_that_is_not_this_machines_is_named(tmp_path: Path) -> None:
    """As behind NAT, where the machine has another one: routers cannot listen there, whatever ports are free."""
    text = """
store: {etcd: {endpoints: ["http://127.0.0.1:2379"]}, address: ADDRESS}
services: [{name: chat, listen: 127.0.0.1:30000, replicas: {}, router: {mesh: true}}]
"""
    why = "store.address: 203.0.113.7 is no address of this machine (Cannot assign requested address)"
    elsewhere = parse_config(text.replace("ADDRESS", "203.0.113.7"))
    assert [(it.level, it.text) for it in address_findings(elsewhere)] == [(Level.FAIL, f"{why}; use one of its own")]
    assert elsewhere.store is not None
    places = FleetPlaces(tmp_path, tmp_path / "challenges", tmp_path / "mesh")
    leases = PortLeases(range(24001, 24021))
    fleet = build_fleet(places, elsewhere.store, leases, PlayedUsage(), Problems(), Metrics())
    with pytest.raises(OSError, match=r"203\.0\.113\.7 is no address of this machine"):
        fleet.mesh._address()
    await fleet.close(leaves=False)
    without = parse_config(text.replace("ADDRESS", "203.0.113.7").replace("mesh: true", "mesh: false"))
    here = parse_config(text.replace("ADDRESS", "127.0.0.1"))
    assert [list(address_findings(it)) for it in (without, here)] == [[], []]


def test_a_port_that_is_another_replicas_does_not_keep_the_mark_of_the_one_before(tmp_path: Path) -> None:
    """What means the last replica leads nowhere before the port leads elsewhere, also across a daemon's end."""
    marks = LinkMarks(tmp_path)
    marks.make(24001, "aaaaaa")
    assert (marks.of(24001), (tmp_path / "24001~aaaaaa.sock").readlink()) == ("aaaaaa", Path("24001.sock"))
    marks.make(24001, "aaaaaa")
    again = LinkMarks(tmp_path)
    assert again.of(24001) == "aaaaaa"
    assert again.missing_in(["24001"]) == {24001}
    assert again.missing_in(["24001", "24001~aaaaaa"]) == set()
    again.remove(24001)
    again.remove(24001)
    assert (again.of(24001), list(tmp_path.iterdir())) == ("", [])
    assert LinkMarks(tmp_path / "not-made-yet").of(24001) == ""


# -- who is connected to whom


def node(name: str, *sees: str, gateway: str = "") -> MeshNode:
    return MeshNode(gateway or name, name, f"192.0.2.1:{len(name)}", frozenset(sees))


def test_two_routers_are_connected_if_one_of_them_says_so() -> None:
    """The first by name connects, so it alone says so."""
    assert unconnected(node("b", "c"), [node("d"), node("a", "b"), node("c")]) == [node("d")]
    assert unconnected(node("b"), [node("a", "c"), node("c")]) == [node("a", "c"), node("c")]


def test_what_no_gateway_wrote_of_its_routers_is_left_out() -> None:
    """Anybody may write into a store."""
    said = {"mesh": {"chat": [node("a.chat.1", "b").said()]}}
    assert nodes_of("a", said, "chat") == [MeshNode("a", "a.chat.1", "192.0.2.1:8", frozenset({"b"}))]
    assert nodes_of("a", said, "other") == nodes_of("a", {}, "chat") == []
    wrongs: list[object] = [
        1,
        [],
        {"chat": 1},
        {"chat": [1]},
        {"chat": [{"name": "x"}]},
        {"chat": [{"name": 1, "address": 2}]},
    ]
    for wrong in wrongs:
        assert nodes_of("a", {"mesh": wrong}, "chat") == []


# -- authorities


def authority(made: float) -> Authority:
    return Authority(f"certificate {made}", f"key {made}", made, made + AUTHORITY_S)


def test_the_next_authority_is_trusted_everywhere_before_it_signs() -> None:
    """Law 5 for trust: every router has been started with the new authority before anybody shows what it signed."""
    old = authority(NOW)
    assert needs_next([], NOW)
    assert signer([], NOW) is None
    assert signer([old], NOW) == old, "the first one signs at once"
    assert not needs_next([old], NOW + AUTHORITY_S / 2)
    half = NOW + AUTHORITY_S / 2 + DAY_S
    assert needs_next([old], half)
    both = [old, authority(half)]
    assert not needs_next(both, half)
    assert signer(both, half + CERTIFICATE_S) == old
    assert signer(both, half + CERTIFICATE_S + RENEW_S) == both[1]
    after = NOW + AUTHORITY_S + DAY_S
    assert in_force(both, after) == [both[1]]
    assert signer(both, after) == both[1]
    for day in range(0, 9000, 10):  # Whoever signs goes on being believed as long as what it signs lasts.
        at = NOW + day * DAY_S
        there = [old] if at <= half else both
        chosen = signer(there, at)
        assert chosen is not None or at > both[1].ends
        assert chosen is None or chosen.ends - at > CERTIFICATE_S or needs_next(there, at)


def test_a_certificate_is_renewed_with_a_third_of_its_time_left() -> None:
    """So a router has a month to be replaced in."""
    ends = NOW + CERTIFICATE_S
    assert not is_due(ends, NOW + CERTIFICATE_S * 2 / 3 - 1)
    assert is_due(ends, NOW + CERTIFICATE_S * 2 / 3 + 1)


def test_a_certificate_that_was_made_by_a_clock_that_was_ahead_is_renewed() -> None:
    """It begins in the future, so no other gateway believes it. A day is what clocks may be apart."""
    assert not is_due(NOW + CERTIFICATE_S + DAY_S - 1, NOW)
    assert is_due(NOW + CERTIFICATE_S + DAY_S + 1, NOW)


def test_what_is_no_authority_is_none() -> None:
    """Of a store that anybody may write to."""
    good = [authority(NOW)]
    assert authorities_in(text_of(good)) == good
    for text in (None, "", "1", "[1]", "[{}]", '[{"certificate": "x", "key": "y", "made": "z", "ends": 1}]'):
        assert authorities_in(text) == []


def test_what_an_authority_signs_is_for_one_address_and_believed_by_its_bundle() -> None:
    """As a server's and as a client's. Keys are shown nowhere."""
    first, second = make_authority(NOW, AUTHORITY_S), make_authority(NOW + 1, AUTHORITY_S)
    for one, address in ((first, "192.0.2.7"), (second, "2001:db8::1")):
        signed = sign(one, "gw-1.chat.0123", address, NOW, NOW + CERTIFICATE_S)
        certificate = x509.load_pem_x509_certificate(signed.certificate.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(it) for it in names.get_values_for_type(x509.IPAddress)] == [address]
        assert certificate.not_valid_after_utc.timestamp() == NOW + CERTIFICATE_S
        bundle = x509.load_pem_x509_certificates(bundle_of([first, second]).encode())
        [issuer] = [it for it in bundle if it.subject == certificate.issuer]
        certificate.verify_directly_issued_by(issuer)
        assert signed.key.startswith("-----BEGIN PRIVATE KEY-----"), "PKCS #8, as SMG wants it"
        assert signed.key not in repr(signed)
        assert one.key not in repr(one)
    late = sign(first, "x", "192.0.2.7", NOW, NOW + 2 * AUTHORITY_S)
    ends = x509.load_pem_x509_certificate(late.certificate.encode()).not_valid_after_utc.timestamp()
    assert ends == first.ends, "nothing outlives who signed it"
    assert isinstance(
        x509.load_pem_x509_certificate(first.certificate.encode()).public_key(), ec.EllipticCurvePublicKey
    )


@in_fake_time
async def test_a_fleet_makes_one_authority_and_knows_it_without_the_store(tmp_path: Path) -> None:
    """Law 2: a store that is away changes nothing, also for a router that joins then."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        made = await a.fleet.mesh.authorities.current()
        assert [it.certificate for it in await b.fleet.mesh.authorities.current()] == [it.certificate for it in made]
        a.store.failing = StoreAway("nobody answers")
        assert await a.fleet.mesh.authorities.current() == made
        c = await them.start("c")
        c.store.failing = StoreAway("nobody answers")
        them.held.entries.pop(KEY)
        del c.fleet.remembered.memory.known.entries[KEY]  # type: ignore[union-attr]
        with pytest.raises(StoreError):
            await c.fleet.mesh.authorities.current()


@in_fake_time
async def test_a_gateway_whose_clock_is_ten_years_ahead_takes_no_authority_away(tmp_path: Path) -> None:
    """It believes that the fleet's has ended, and makes its own: that of the others goes on signing."""
    async with fleets(tmp_path) as them:
        a, b = await them.start("a"), await them.start("b")
        right, ahead_s = a.fleet.mesh.authorities, AUTHORITY_S + DAY_S
        [fleets_own] = await right.current()
        ahead = FleetAuthorities(b.store, b.fleet.reflector, lambda: NOW + ahead_s)
        [other] = await ahead.current()
        assert other.made == NOW + ahead_s
        assert authorities_in(them.held.entries[KEY].value) == await right.current() == [fleets_own, other]
        assert signer(await right.current(), NOW) == fleets_own
        assert await ahead.current() == [other], "once"


def test_an_authority_whose_key_cannot_be_used_is_refused_as_any_other() -> None:
    """Somebody else wrote it into the store: it is encrypted, on another curve, or of no sort that is known."""
    good = make_authority(NOW, AUTHORITY_S)
    own = load_pem_private_key(good.key.encode(), None)
    encrypted = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
    unknown = own.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()).replace(EC_KEYS, STRANGE_KEYS)
    strange = f"-----BEGIN PRIVATE KEY-----\n{b64encode(unknown).decode()}\n-----END PRIVATE KEY-----\n"
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for key in (encrypted, strange, other, "", "x"):
        with pytest.raises(ValueError, match=r"encrypted|Unknown key type|of another sort|Unable to load"):
            sign(replace(good, key=key), "x", "192.0.2.7", NOW, NOW + CERTIFICATE_S)


@in_fake_time
async def test_a_router_is_started_without_mesh_if_the_authority_cannot_sign(tmp_path: Path) -> None:
    """Nothing depends on the mesh."""
    async with fleets(tmp_path) as them:
        good = make_authority(NOW, AUTHORITY_S)
        own = load_pem_private_key(good.key.encode(), None)
        encrypted = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
        them.held.write(KEY, text_of([replace(good, key=encrypted)]))
        a = await them.start("a")
        assert await a.fleet.mesh.join("chat", "chat", lambda _: 23005) is None
        assert "encrypted" in a.fleet.mesh.troubles["chat"]
