"""Places in the mesh of a service: one for each router that joins it.

A place is published in this gateway's key before its router is started, and the others' places are read after that: of
two routers that join at once, one at least knows of the other.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gateway_sidecar.control.fleet.authorities import FleetAuthorities
from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.domain.fleet_authority import CERTIFICATE_S, Authority, signer
from gateway_sidecar.domain.mesh import MeshNode, nodes_of
from gateway_sidecar.errors import ProcessError, StoreError
from gateway_sidecar.files.own import make_directory
from gateway_sidecar.files.replace import replace_file
from gateway_sidecar.routers.base import MeshMember
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.telemetry.logs import get_logger

_TELL_S = 2.0
"""So long a router waits until the others know of its place; then it is started without."""
_TELL_POLL_S = 0.02  # A hundredth of `_TELL_S`: the router that waits loses no more.
_REACH_S = 1.0  # A choice: half of `_TELL_S`; routers of one mesh are a network's round trip apart.
_FORGET_S = 120.0
"""A place whose router did not come is published no longer."""

ChoosePort = Callable[[str], int]
"""A port on an address of this machine. Raises ProcessError."""
Live = Mapping[str, Sequence[MeshMember]]
"""Service -> the places of its routers that run."""


@dataclass(frozen=True, slots=True)
class _Joining:
    """A place whose router is being started. `at`: since when, in awake seconds."""

    service: str
    place: MeshMember
    at: float


class FleetMesh:
    """What this gateway publishes of its routers in meshes, and what it knows of the others'.

    address: this machine's, by which other gateways reach it. Blocks; raises OSError.
    directory: where the certificates of a slot's router go.
    """

    def __init__(
        self,
        membership: Membership,
        authorities: FleetAuthorities,
        address: Callable[[], str],
        directory: Path,
        now: Callable[[], float],
    ) -> None:
        self._membership = membership
        self.authorities = authorities
        self._address = address
        self._directory = directory
        self._now = now
        self._writing = asyncio.Lock()
        """Held while certificates are written or removed."""
        self._joining: dict[str, _Joining] = {}
        self._live: Live = {}
        self._sees: dict[str, frozenset[str]] = {}
        self._logger = get_logger()
        self.troubles: dict[str, str] = {}
        """Service -> why its last router got no place."""

    async def join(self, service: str, slot: str, choose_port: ChoosePort) -> MeshMember | None:
        """A place for a router that is about to be started; None, with a reason in `troubles`, if it can have none."""
        try:
            host = await asyncio.to_thread(self._address)
            authorities = await self.authorities.current()
            async with self._writing:
                place = await asyncio.to_thread(self._made, slot, host, choose_port(host), authorities)
                self._joining[slot] = _Joining(service, place, awake.now())
        except (StoreError, ProcessError, OSError, ValueError) as error:
            self.troubles[service] = str(error)
            self._logger.warning("mesh.no_place", service=service, reason=str(error))
            return None
        self.troubles.pop(service, None)
        await self._until_told(place.name)
        return replace(place, peer=await self._peer(service))

    async def keep_only(self, slots: Collection[str]) -> None:
        """Removes the certificates of slots that are no more: beside these, only who is just joining keeps them."""
        async with self._writing:
            await asyncio.to_thread(self._remove_others, {*slots, *self._joining})

    def said(self, live: Live) -> Mapping[str, list[dict[str, object]]]:
        """What the others are told: the places of routers that run, and of those that are being started."""
        self._live, names = live, {it.name for places in live.values() for it in places}
        still = {slot: it for slot, it in self._joining.items() if awake.now() - it.at < _FORGET_S}
        self._joining = {slot: it for slot, it in still.items() if it.place.name not in names}
        self._sees = {name: seen for name, seen in self._sees.items() if name in names}
        found = {service: [self.node(it).said() for it in places] for service, places in live.items() if places}
        for it in self._joining.values():
            found.setdefault(it.service, []).append(self.node(it.place).said())
        return found

    def node(self, place: MeshMember) -> MeshNode:
        """A router of this gateway's."""
        seen = self._sees.get(place.name, frozenset())
        return MeshNode(self._membership.name, place.name, place.address, seen)

    def note_seen(self, place: MeshMember, seen: frozenset[str]) -> None:
        """The router at this place is connected to these, of those that it connects to."""
        if self._sees.get(place.name) != seen:
            self._sees[place.name] = seen
            self._membership.touch()

    @property
    def is_heard(self) -> bool:
        """Whether the others learn of a place now, and what they said of theirs is as it stands."""
        return self._membership.is_heard

    def trusts_the_fleet(self, place: MeshMember) -> bool:
        """Whether the router there believes what the fleet's authority signs now."""
        now_signs = signer(self.authorities.known, self._now())
        return now_signs is None or now_signs.made in place.trusts

    def others(self, service: str) -> list[MeshNode]:
        """The routers of other gateways in the mesh of a service, by name."""
        found = [node for it in self._membership.others for node in nodes_of(it.name, it.said, service)]
        return sorted(found, key=lambda it: it.name)

    def _made(self, slot: str, host: str, port: int, authorities: Sequence[Authority]) -> MeshMember:
        """A place with its certificate, on disk. Raises OSError, ValueError. Blocks."""
        from gateway_sidecar.frontend.authority import bundle_of, sign  # It takes 8 MB.

        now, authority = self._now(), signer(authorities, self._now())
        if authority is None:
            raise ValueError("every authority of the fleet has ended; look at this machine's clock")
        name = f"{self._membership.name}.{slot}.{secrets.token_hex(4)}"
        ends = min(now + CERTIFICATE_S, authority.ends)
        signed = sign(authority, name, host, now, ends)
        directory = self._directory / slot
        make_directory(directory, 0o700)
        ca, certificate, key = (directory / f"{it}.pem" for it in ("authorities", "certificate", "key"))
        for file, text in ((ca, bundle_of(authorities)), (certificate, signed.certificate), (key, signed.key)):
            replace_file(file, text)
        trusts = tuple(it.made for it in authorities)
        return MeshMember(name, host, port, "", str(ca), str(certificate), str(key), ends, trusts)

    def _remove_others(self, slots: Collection[str]) -> None:
        """Blocks."""
        there = list(self._directory.iterdir()) if self._directory.is_dir() else []
        for directory in there:
            if directory.name not in slots:
                shutil.rmtree(directory, ignore_errors=True)

    async def _until_told(self, name: str) -> None:
        self._membership.touch()
        ends = awake.now() + _TELL_S
        while awake.now() < ends and not self._membership.has_told(name):
            await asyncio.sleep(_TELL_POLL_S)

    async def _peer(self, service: str) -> str:
        """The first of the others that can be reached, so that all meet at the same one; else the router that is to be
        replaced, which has a tree to tell; else the first of the others, which may be about to listen.
        """
        others = [it.address for it in self.others(service)]
        own = [it.address for it in self._live.get(service, ())]
        for address in (*others, *own):
            if await reaches(address):
                return address
        return next(iter(others), "")


async def reaches(address: str) -> bool:
    """Whether something takes connections there."""
    host, _, port = address.rpartition(":")
    try:
        async with within(_REACH_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, ValueError):
        return False
    writer.transport.abort()
    return True
