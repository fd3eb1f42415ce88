"""SMG's mesh: how it is switched on, and what of a router's workers came with it.

Seen on smg 1.13 (docs/routers/smg.md has the whole table):

* a router is told of the others' workers and takes them up as its own, ready at once (an *import*), unless it has one
  at the same URL;
* an import that is removed is back within half a minute, but a worker of its own that was removed never is. To change
  an import (`PATCH`) makes it the router's own;
* labels come with an import, so a label tells which router process registered a worker;
* the certificates are read at the start and never again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from gateway_sidecar.routers.base import MeshMember

OWNER = "gateway-sidecar/router"
"""The label of a worker that says which router process it was registered at."""

_ROUNDS = re.compile(rb'^router_mesh_sync_round_duration_seconds_count\{peer="([^"\\]+)"\} (\S+)$', re.MULTILINE)
"""Grows once a second for each router that this one has connected to."""


def owner_of(key: str) -> str:
    """What a router process with this control key is called in the label."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def is_import(row: Mapping[str, object], owner: str) -> bool:
    """Whether a row of SMG's list was not registered at this router."""
    labels = row.get("labels")
    return not isinstance(labels, Mapping) or labels.get(OWNER) != owner


def claim(owner: str) -> dict[str, object]:
    """The change that makes an import the router's own, to be removed at once and for good."""
    return {"labels": {OWNER: owner}, "health": {"drain_settle_secs": 0}}


def options(place: MeshMember) -> list[str]:
    """What SMG is started with."""
    return [
        "--enable-mesh",
        *("--mesh-server-name", place.name),
        *("--mesh-host", place.host, "--mesh-advertise-host", place.host, "--mesh-port", str(place.port)),
        *("--mesh-tls-ca-cert", place.ca, "--mesh-tls-cert", place.certificate, "--mesh-tls-key", place.key),
        *(("--mesh-peer-urls", place.peer) if place.peer else ()),
    ]


def read_rounds(text: bytes) -> Mapping[str, float]:
    """Router -> how often something was exchanged with it, of those that this one has connected to."""
    return {name.decode("utf-8", "replace"): float(count) for name, count in _ROUNDS.findall(text)}
