"""Which addresses of replicas this machine may make its own."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_sidecar.config.models import PeersSettings
from gateway_sidecar.domain.claims import Surroundings, objection, objection_to_direct

PRIVATE = [ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
MACHINE = Surroundings(
    own={ip_address("192.168.7.2"): "eth0", ip_address("192.168.7.255"): "eth0", ip_address("fd01::2"): "eth0"},
    links={ip_network("192.168.7.0/24"): "eth0", ip_network("10.8.0.0/24"): "wg0", ip_network("fd01::/64"): "eth0"},
    hosts={ip_address("10.1.1.1"): "tun0"},
    gateways={ip_address("192.168.7.1"): "eth0", ip_address("172.20.0.1"): "eth1"},
    neighbours={ip_address("10.77.0.9"): "eth1"},
    nameservers=frozenset({ip_address("10.2.0.53"), ip_address("fd02::53")}),
    connected=frozenset({ip_address("10.3.0.4")}),
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.168.7.1", "is a gateway of this machine's routes, on eth0"),
        ("172.20.0.1", "is a gateway of this machine's routes, on eth1"),
        ("10.2.0.53", "is a name server of this machine"),
        ("fd02::53", "is a name server of this machine"),
        ("10.3.0.4", "is the far end of an open connection"),
        ("10.77.0.9", "is a neighbour of this machine, on eth1"),
        ("10.1.1.1", "has a route of its own, on tun0"),
        ("192.168.7.30", "lies in 192.168.7.0/24, which this machine is connected to by eth0"),
        ("10.8.0.30", "lies in 10.8.0.0/24, which this machine is connected to by wg0"),
        ("fd01::30", "lies in fd01::/64, which this machine is connected to by eth0"),
    ],
)
def test_what_the_machine_needs_is_not_claimed(text: str, why: str) -> None:
    """The refusal says why, and that such a replica needs no bridge."""
    said = objection(ip_address(text), MACHINE, PRIVATE)
    assert said is not None
    assert said.startswith(f"{text} {why}")
    assert said.endswith("set direct: true, as this machine can reach it itself")


@pytest.mark.parametrize("text", ["192.168.7.2", "192.168.7.255", "fd01::2"])
def test_the_machines_own_address_is_claimed_for_nobody(text: str) -> None:
    """And `direct: true`, which is refused for such an address, is not what the refusal names."""
    cure = "advertise an address of the replica's"
    assert objection(ip_address(text), MACHINE, PRIVATE) == f"{text} is this machine's own, on eth0; {cure}"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("224.0.0.5", "multicast"),
        ("ff02::1", "multicast"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("::ffff:10.0.0.5", "IPv6's clothes"),
        ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("168.63.129.16", "metadata"),
    ],
)
def test_what_names_no_machine_is_not_claimed(text: str, kind: str) -> None:
    """Whatever networks the operator allows."""
    said = objection(ip_address(text), Surroundings(), [ip_network("0.0.0.0/0"), ip_network("::/0")])
    assert said is not None
    assert kind in said


@pytest.mark.parametrize(("text", "network"), [("10.0.0.5", "10.0.0.0/24"), ("fd00::5", "fd00::/64")])
def test_nothing_is_claimed_until_the_operator_names_a_network(text: str, network: str) -> None:
    """Any member of the replicas' group may write `advertise`: what is claimed, nothing here reaches any more."""
    assert PeersSettings().networks == ()
    said = objection(ip_address(text), Surroundings(), [])
    assert said == (
        f"{text} cannot be advertised: peers.networks names no network; name the replicas' own there, such as"
        f" {network}, if nothing in it is what this machine needs itself"
    )


def test_only_the_operators_networks_are_claimed_from() -> None:
    """A file beside a socket must not take the address of some public service from this machine."""
    said = objection(ip_address("93.184.216.34"), MACHINE, PRIVATE)
    assert said == ("93.184.216.34 lies outside peers.networks; add its network there if it is the replicas' own")
    assert objection(ip_address("93.184.216.34"), MACHINE, [ip_network("93.184.216.0/24")]) is None
    assert objection(ip_address("10.0.0.5"), MACHINE, []) is not None


@given(st.ip_addresses())
def test_every_address_is_judged(address: object) -> None:
    """No address raises; one that is allowed is in an allowed network and named by nothing here."""
    judged = ip_address(str(address))
    if objection(judged, MACHINE, PRIVATE) is None:
        assert any(judged in network for network in PRIVATE)
        assert judged not in {*MACHINE.own, *MACHINE.gateways, *MACHINE.nameservers, *MACHINE.connected}


def test_a_replicas_own_address_is_claimed() -> None:
    """An address in an allowed network that leads nowhere from here."""
    assert objection(ip_address("10.0.0.5"), MACHINE, PRIVATE) is None
    assert objection(ip_address("fd00::5"), MACHINE, PRIVATE) is None


def test_where_the_daemon_itself_has_to_get_to_is_not_claimed() -> None:
    """Connected or not: else the way there would be cut for good, and the reason would be on nobody's list."""
    around = Surroundings(destinations={ip_address("10.5.0.5"): "the SSH server gpu5:22 of chat/r1"})
    said = objection(ip_address("10.5.0.5"), around, PRIVATE)
    assert said is not None
    assert said.startswith(
        "10.5.0.5 is where the SSH server gpu5:22 of chat/r1 is, which the daemon itself has to reach"
    )
    assert objection(ip_address("10.5.0.6"), around, PRIVATE) is None


def test_what_is_held_is_judged_again_but_for_our_own_connections_to_it() -> None:
    """The router's connections to a bridge say nothing; a route, a neighbour and a name server do."""
    assert objection(ip_address("10.3.0.4"), MACHINE, PRIVATE, held=True) is None
    for text in ("10.77.0.9", "10.2.0.53", "10.1.1.1", "192.168.7.30", "192.168.7.2"):
        assert objection(ip_address(text), MACHINE, PRIVATE, held=True) is not None


@pytest.mark.parametrize(
    ("address", "is_own", "reason"),
    [
        ("10.0.0.5", False, None),
        ("127.0.0.1", False, "a loopback address"),
        ("169.254.169.254", False, "a link-local address"),
        ("::ffff:10.0.0.5", False, "in IPv6's clothes"),
        ("10.0.0.5", True, "this machine's own"),
        ("203.0.113.5", False, "add 203.0.113.0/24 there"),
        ("fd00:ec2::254", False, "metadata"),
    ],
)
def test_a_router_is_not_sent_to_what_is_no_replicas(address: str, is_own: bool, reason: str | None) -> None:
    """Whoever writes `direct: true` would else choose which service SMG asks, of this machine's too."""
    said = objection_to_direct(ip_address(address), PRIVATE, is_own=is_own)
    assert (said is None) if reason is None else (said is not None and reason in said)
