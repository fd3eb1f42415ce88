"""Which address of a replica this machine may claim, and why not. Pure. A bridge that the replica's peers know by the
replica's own address listens on that very address, on this machine. While it does, nothing on this machine reaches the
real owner of the address. So the daemon claims only addresses that this machine does not need itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOBODY: Mapping[Address, str] = {}


def is_address(host: str) -> bool:
    """Whether a host is said by its address, and not by a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What this machine's network is made of, less what the daemon itself put there.

    own: the machine's addresses, broadcast ones included -> their interface.
    links: networks it is connected to -> their interface.
    hosts: single addresses that a route leads to -> the route's interface.
    gateways: next hops of its routes -> the route's interface.
    neighbours: machines that it knows on a link, and has a route to by that link -> the link's interface.
    nameservers: what it asks for names.
    connected: the far ends of its connections that are open now.
    destinations: where the daemon itself has to get to, whether it is connected or not -> what that is.
    """

    own: Mapping[Address, str] = field(default_factory=lambda: _NOBODY)
    links: Mapping[Network, str] = field(default_factory=dict)
    hosts: Mapping[Address, str] = field(default_factory=lambda: _NOBODY)
    gateways: Mapping[Address, str] = field(default_factory=lambda: _NOBODY)
    neighbours: Mapping[Address, str] = field(default_factory=lambda: _NOBODY)
    nameservers: frozenset[Address] = frozenset()
    connected: frozenset[Address] = frozenset()
    destinations: Mapping[Address, str] = field(default_factory=lambda: _NOBODY)


_METADATA = frozenset(map(ip_address, ("100.100.100.200", "fd00:ec2::254", "168.63.129.16", "192.0.0.192")))
"""Of Alibaba, Amazon over IPv6, Azure and Oracle; everybody else's is 169.254.169.254, which is link-local."""

_DIRECT = "set direct: true, as this machine can reach it itself"


def objection(address: Address, around: Surroundings, networks: Iterable[Network], *, held: bool = False) -> str | None:
    """Why `address` must not be claimed, and what to do instead; None where it may.

    `networks` are those that the operator allows. An address that is `held` already is judged by the same rules, except
    that its connections are our own.
    """
    unfit = _unfit(address)
    if unfit is not None:
        return f"{address} is {unfit}; advertise the address that the replica's peers know it by"
    if address in around.own:
        return f"{address} is this machine's own, on {around.own[address]}; advertise an address of the replica's"
    if address in around.gateways:
        return f"{address} is a gateway of this machine's routes, on {around.gateways[address]}; {_DIRECT}"
    if address in around.nameservers:
        return f"{address} is a name server of this machine; {_DIRECT}"
    if address in around.destinations:
        return (
            f"{address} is where {around.destinations[address]} is, which the daemon itself has to reach; advertise"
            f" another address of the replica, get there over a jump host, or {_DIRECT}"
        )
    if address in around.connected and not held:
        return f"{address} is the far end of an open connection of this machine; {_DIRECT}"
    if address in around.neighbours:
        return f"{address} is a neighbour of this machine, on {around.neighbours[address]}; {_DIRECT}"
    if address in around.hosts:
        return f"{address} has a route of its own, on {around.hosts[address]}; {_DIRECT}"
    for network, interface in around.links.items():
        if address in network:
            return f"{address} lies in {network}, which this machine is connected to by {interface}; {_DIRECT}"
    networks = list(networks)
    if not networks:
        return (
            f"{address} cannot be advertised: peers.networks names no network; name the replicas' own there, such as"
            f" {_own_network(address)}, if nothing in it is what this machine needs itself"
        )
    if not any(address in network for network in networks):
        return f"{address} lies outside peers.networks; add its network there if it is the replicas' own"
    return None


def objection_to_direct(address: Address, networks: Iterable[Network], *, is_own: bool) -> str | None:
    """Why a router must not be sent to `address` itself; None where it may.

    Otherwise the author of a replica's notes could make the router send requests to any service on or near this
    machine. `is_own` says that the address is this machine's.
    """
    unfit = "this machine's own" if is_own else _unfit(address)
    if unfit is not None:
        return f"{address} is {unfit}, and a router is not sent there; advertise the replica's own address"
    if not any(address in network for network in networks):
        return f"{address} lies outside peers.networks; add {_own_network(address)} there if it is the replicas' own"
    return None


def _own_network(address: Address) -> Network:
    """What is likely one network with it: a /24, or a /64."""
    return ip_network((address, 24 if address.version == 4 else 64), strict=False)


def _unfit(address: Address) -> str | None:
    """What kind of address it is, where no machine is known by such a one."""
    kinds = {
        "an IPv4 address in IPv6's clothes": isinstance(address, IPv6Address) and address.ipv4_mapped is not None,
        "unspecified": address.is_unspecified,
        "a loopback address": address.is_loopback,
        "a multicast address": address.is_multicast,
        "a link-local address": address.is_link_local,
        "a reserved address": address.is_reserved,
        "a cloud's metadata service": address in _METADATA,
    }
    return next((kind for kind, fits in kinds.items() if fits), None)
