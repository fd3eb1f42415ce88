"""The mesh of a service: the routers of all gateways, which tell each other where a prompt's prefix is cached.

What they tell is by a worker's URL, so a URL must mean the same replica everywhere. It says which replica it is for (a
*mark*), and a bridge leads nowhere for another one's: whatever a router learnt from another gateway, it cannot reach an
engine by it that the URL does not mean.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway_sidecar.domain.planning import NAMED, base_of
from gateway_sidecar.domain.store_memory import NOT_OURS

_MARK = "~"
_MARKED = re.compile(rf"{re.escape(NAMED)}{_MARK}[0-9a-f]{{6}}(?:{_MARK}(?P<name>.*))?\Z")


def mark_of(service: str, replica: str) -> str:
    """What a replica's URLs, and the links of its bridge, are marked with: the same at every gateway.

    Only replicas that have the same port, at different gateways or one after the other, must differ in it.
    """
    return hashlib.sha256(f"{service}/{replica}".encode()).hexdigest()[:6]


def marked(url: str, mark: str) -> str:
    """A worker's URL with the mark of its replica."""
    base = base_of(url)
    name = url.removeprefix(base).removeprefix(NAMED)
    return f"{base}{NAMED}{_MARK}{mark}" + (f"{_MARK}{name}" if name else "")


def unmarked(url: str) -> str:
    """The URL without the mark, if it has one."""
    found = _MARKED.search(url)
    if found is None:
        return url
    return url[: found.start()] + (f"{NAMED}{name}" if (name := found["name"]) else "")


@dataclass(frozen=True, slots=True)
class MeshNode:
    """A router in the mesh, as another gateway sees it.

    name: no other router ever has it. address: where it listens for the others. sees: those that it is connected to,
    of the names that come after its own: of two routers the first by name connects.
    """

    gateway: str
    name: str
    address: str
    sees: frozenset[str] = frozenset()

    def said(self) -> dict[str, object]:
        """As it stands in its gateway's key."""
        return {"name": self.name, "address": self.address, "sees": sorted(self.sees)}


def nodes_of(gateway: str, said: Mapping[str, Any], service: str) -> list[MeshNode]:
    """A service's routers in the mesh, as a gateway's key says. What no gateway wrote is left out."""
    try:
        rows = said.get("mesh", {}).get(service, [])
        return [
            MeshNode(gateway, str(it["name"]), str(it["address"]), frozenset(str(name) for name in it["sees"]))
            for it in rows
        ]
    except NOT_OURS:
        return []


def unconnected(own: MeshNode, others: Iterable[MeshNode]) -> list[MeshNode]:
    """The routers of other gateways that this one is not connected to, by name."""
    found = [it for it in others if it.name not in own.sees and own.name not in it.sees]
    return sorted(found, key=lambda it: it.name)
