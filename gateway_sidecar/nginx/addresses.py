"""Addresses of replicas made this machine's own: /32 and /128 on one interface that belongs to the daemon alone.

Every address on that interface is the daemon's, so no record is needed after a crash. The interface's alias names the
daemon's `run_dir`; any other interface is never touched. Nothing is done, and no privilege is needed, until the first
address is claimed. All calls block (a few milliseconds; the first one loads the netlink library, a quarter of a
second): call in a thread, one at a time.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway_sidecar.domain.claims import Address, Network, Surroundings, objection
from gateway_sidecar.errors import AddressRefused, NginxError
from gateway_sidecar.nginx.connections import kernel_address
from gateway_sidecar.telemetry.logs import get_logger

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_NAMES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_SOCKETS = ("tcp", "tcp6", "udp", "udp6")
_IDLE = frozenset((b"06", b"07", b"0A"))  # time-wait, closed, listening: nobody is at the far end
_UNICAST = 1  # RTN_UNICAST, linux/rtnetlink.h
_KINDS = ("dummy", "bridge")
_NO_DAD = 0x02  # IFA_F_NODAD, linux/if_addr.h
_UP, _LOOPBACK, _NO_ARP = 0x01, 0x08, 0x80  # linux/if.h
_USE = 0x01  # NTF_USE, linux/neighbour.h
_ANSWER_S = 0.15  # A choice: whoever is on a link answers at once, and a replica's start waits for it.
_ANSWER_LOOKS = 10  # Every 15 ms: who answers at once is not waited for much longer.
_SOLICIT_AGAIN_S = 30.0  # As long as Linux takes an answer for fresh by default (`base_reachable_time_ms`).
_NUD_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
_NEEDS = "the daemon may not change addresses; give it CAP_NET_ADMIN (gateway-sidecar install --peers)"


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """interface: the daemon's own, 15 characters at most. networks: what may be claimed from. owner: its `run_dir`."""

    interface: str
    networks: Sequence[Network]
    owner: Path


def is_own_address(address: Address) -> bool:
    """Whether it is this machine's: only then can a socket be bound to it. Needs no netlink call."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


class PeerAddresses:
    """The addresses on the daemon's interface. `destinations`: where the daemon itself has to get to -> what it is."""

    def __init__(self, rules: ClaimRules, destinations: Callable[[], Mapping[Address, str]] = dict) -> None:
        self._rules = rules
        self._destinations = destinations
        self._alias = f"gateway-sidecar {rules.owner}"
        self._solicited_at = -_SOLICIT_AGAIN_S

    def claim(self, address: Address) -> None:
        """Makes the address this machine's own, unless it is so already by us.

        Raises AddressRefused if this machine needs it, NginxError if it cannot be done.
        """
        with _netlink() as netlink:
            index = self._interface(netlink)
            if index is not None and address in _addresses_on(netlink, index):
                return
            around = self._surroundings(netlink, index)
            reason = objection(address, around, self._rules.networks)
            if reason is None and _solicit(netlink, [address], index):
                self._await_answers(netlink, address, index)
                reason = objection(address, self._surroundings(netlink, index), self._rules.networks)
            if reason is not None:
                raise AddressRefused(reason)
            if index is None:
                index = self._make(netlink)
            flags = {"flags": _NO_DAD} if address.version == 6 else {}
            netlink.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen, **flags)

    def release(self, address: Address) -> None:
        """Gives the address back to its real owner. One that is not held is no error."""
        with _netlink() as netlink:
            index = self._interface(netlink)
            if index is not None and address in _addresses_on(netlink, index):
                netlink.addr("delete", index=index, address=str(address), prefixlen=address.max_prefixlen)

    def held(self) -> frozenset[Address]:
        """All addresses on the interface now. Needs no privilege."""
        if not Path(f"/sys/class/net/{self._rules.interface}").exists():
            return frozenset()
        with _netlink() as netlink:
            index = self._interface(netlink)
            return frozenset() if index is None else _addresses_on(netlink, index)

    def keep_only(self, wanted: frozenset[Address]) -> frozenset[Address]:
        """Gives back all but the `wanted` ones, the interface too if nothing is left; what was given back."""
        left = self.held() - wanted
        for address in left:
            self.release(address)
        if not wanted and Path(f"/sys/class/net/{self._rules.interface}").exists():
            with _netlink() as netlink:
                index = self._interface(netlink)
                if index is not None:
                    netlink.link("delete", index=index)
        return left

    def look(self, address: Address) -> str | None:
        """Why the address could not be claimed now; None where it could or is held. Changes nothing."""
        with _netlink() as netlink:
            index = self._interface(netlink)
            if index is not None and address in _addresses_on(netlink, index):
                return None
            return objection(address, self._surroundings(netlink, index), self._rules.networks)

    def objections(self) -> Mapping[Address, str]:
        """The addresses that are held and that this machine has come to need since -> why. Needs no privilege."""
        if not Path(f"/sys/class/net/{self._rules.interface}").exists():
            return {}
        with _netlink() as netlink:
            index = self._interface(netlink)
            held = frozenset() if index is None else _addresses_on(netlink, index)
            if not held:
                return {}
            now = time.monotonic()
            if now >= self._solicited_at + _SOLICIT_AGAIN_S:
                self._solicited_at = now
                _solicit(netlink, held, index)  # Who answers is a neighbour by the next time.
            around = self._surroundings(netlink, index)
            found = {address: objection(address, around, self._rules.networks, held=True) for address in held}
            return {address: reason for address, reason in found.items() if reason is not None}

    def _await_answers(self, netlink: IPRoute, address: Address, ours: int | None) -> None:
        """Returns when the address has answered on a link, or has had the time to."""
        for _ in range(_ANSWER_LOOKS):  # Counted: a stall takes one look, and not all of the time.
            if address in _reached(netlink, ours):
                return
            time.sleep(_ANSWER_S / _ANSWER_LOOKS)

    def _surroundings(self, netlink: IPRoute, ours: int | None) -> Surroundings:
        return replace(_surroundings(netlink, ours), destinations=self._destinations())

    def _interface(self, netlink: IPRoute) -> int | None:
        """The interface's index; None if there is none. Raises NginxError if it is not ours."""
        found = netlink.link_lookup(ifname=self._rules.interface)
        if not found:
            return None
        link = netlink.get_links(found[0])[0]
        alias = link.get_attr("IFLA_IFALIAS")
        if alias is None and link["state"] == "down" and _kind(link) in _KINDS:
            return None  # Begun by us, or as good as.
        if alias != self._alias:
            whose = f"belongs to '{alias}'" if alias else "is not the daemon's"
            raise NginxError(f"the interface {self._rules.interface} {whose}; set peers.interface to another name")
        return int(found[0])

    def _make(self, netlink: IPRoute) -> int:
        """A dummy interface, or where the kernel has none a bridge without ports, which serves as well."""
        name = self._rules.interface
        why = ""
        for kind in _KINDS:
            try:
                netlink.link("add", ifname=name, kind=kind)
                get_logger().info("peer.interface_made", interface=name, kind=kind, reason=why or None)
                break
            except _error() as error:
                if error.code == errno.EEXIST:
                    break  # An earlier daemon died before it gave the interface its alias.
                if error.code != errno.EOPNOTSUPP or kind == _KINDS[-1]:
                    raise
                why = f"this kernel has no {kind} interfaces (or may not load the module)"
        index = int(netlink.link_lookup(ifname=name)[0])
        netlink.link("set", index=index, ifalias=self._alias)
        netlink.link("set", index=index, state="up")
        return index


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    """A netlink socket; its errors become NginxError."""
    from pyroute2 import IPRoute  # Not before it is needed: it takes a quarter of a second and 10 MB.

    try:
        with IPRoute() as netlink:
            yield netlink
    except _error() as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise NginxError(_NEEDS) from error
        raise NginxError(f"netlink: {os.strerror(error.code)}") from error
    except OSError as error:
        raise NginxError(f"netlink: {error.strerror or error}") from error


def _error() -> Any:
    from pyroute2 import NetlinkError

    return NetlinkError


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return info.get_attr("IFLA_INFO_KIND") if info is not None else None


def _addresses_on(netlink: IPRoute, index: int) -> frozenset[Address]:
    """Less the link-local one that the kernel gives every interface."""
    rows = netlink.get_addr(index=index)
    found = (ipaddress.ip_address(row.get_attr("IFA_ADDRESS")) for row in rows)
    return frozenset(address for address in found if not address.is_link_local)


def _surroundings(netlink: IPRoute, ours: int | None) -> Surroundings:
    """What this machine's network is made of, less our own interface."""
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
    own: dict[Address, str] = {}
    for row in netlink.get_addr():
        if row["index"] != ours:
            for kind in ("IFA_LOCAL", "IFA_ADDRESS", "IFA_BROADCAST"):
                if text := row.get_attr(kind):
                    own[ipaddress.ip_address(text)] = names.get(row["index"], "?")
    links: dict[Network, str] = {}
    hosts: dict[Address, str] = {}
    gateways: dict[Address, str] = {}
    for row in netlink.get_routes():
        index = row.get_attr("RTA_OIF")
        if row["type"] != _UNICAST or (index is not None and index == ours):
            continue
        name = names.get(index, "?")
        hops = [hop for hop in (_hop(row), *map(_hop, row.get_attr("RTA_MULTIPATH") or ())) if hop is not None]
        gateways |= dict.fromkeys(hops, name)
        if (text := row.get_attr("RTA_DST")) is None:
            continue
        network = ipaddress.ip_network(f"{text}/{row['dst_len']}", strict=False)
        if network.prefixlen == network.max_prefixlen:
            hosts[network.network_address] = name
        elif not hops and network.prefixlen > 0:
            links[network] = name
    neighbours = {address: names.get(index, "?") for address, index in _reached(netlink, ours).items()}
    return Surroundings(own, links, hosts, gateways, neighbours, name_servers(), far_ends())


def _links_to_all(netlink: IPRoute, ours: int | None) -> frozenset[int]:
    """The links by which a default route leads to every address without a next hop: whoever is there is reached there.

    On other links an answer proves no route: Linux answers for all its addresses on every link that it has.
    """
    defaults = [row for row in netlink.get_routes() if row["type"] == _UNICAST and row.get_attr("RTA_DST") is None]
    found = {row.get_attr("RTA_OIF") for row in defaults if _hop(row) is None and not row.get_attr("RTA_MULTIPATH")}
    return frozenset(index for index in found if index is not None and index != ours)


def _reached(netlink: IPRoute, ours: int | None) -> dict[Address, int]:
    """Whom this machine knows on a link, and would reach there -> the link's index."""
    links = _links_to_all(netlink, ours)
    return {
        ipaddress.ip_address(text): row["ifindex"]
        for row in netlink.get_neighbours()
        if row["ifindex"] in links and row["state"] & _NUD_KNOWN and (text := row.get_attr("NDA_DST"))
    }


def _solicit(netlink: IPRoute, addresses: Iterable[Address], ours: int | None) -> bool:
    """Has the kernel ask who has these on the links that lead to all; False if there is none, or it is not allowed."""
    asked = [address for address in addresses if address.version == 4]
    to_all = _links_to_all(netlink, ours)
    links = [
        link["index"]
        for link in netlink.get_links()
        if link["index"] in to_all and link["flags"] & _UP and not link["flags"] & (_LOOPBACK | _NO_ARP)
    ]
    for index in links:
        for address in asked:
            try:
                netlink.neigh("replace", dst=str(address), ifindex=index, state=0, flags=_USE)
            except _error():
                return False
    return bool(links and asked)


def _hop(row: Any) -> Address | None:
    """The next hop of a route, or of one path of it."""
    via = row.get_attr("RTA_VIA")
    text = row.get_attr("RTA_GATEWAY") or (via.get("addr") if isinstance(via, dict) else None)
    return ipaddress.ip_address(text) if text else None


def name_servers(files: Sequence[Path] = _NAMES) -> frozenset[Address]:
    """What this machine asks for names, itself or by systemd-resolved."""
    found = set()
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for name in re.findall(r"^\s*nameserver\s+([0-9A-Fa-f:.]+)", text, re.MULTILINE):
            try:
                found.add(ipaddress.ip_address(name))
            except ValueError:
                continue
    return frozenset(found)


def far_ends(net: Path = Path("/proc/self/net")) -> frozenset[Address]:
    """The addresses at the other end of this machine's connections."""
    found: set[Address] = set()
    for name in _SOCKETS:
        try:
            rows = (net / name).read_bytes().splitlines()[1:]
        except OSError:
            continue  # No IPv6 on this machine.
        for row in rows:
            _, local, remote, state, _ = row.split(maxsplit=4)
            if name.startswith("udp") or state not in _IDLE:
                address = kernel_address(remote)
                # One from an address to itself is a bridge's, even where the address was taken away meanwhile.
                if not address.is_unspecified and address != kernel_address(local):
                    found.add(address)
    return frozenset(found)
