"""A fleet's parts, put together from the settings."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from gateway_sidecar.config.places import acme_in, stored_certificates_in, stored_keys_in, used_elsewhere_in
from gateway_sidecar.config.store import StoreSettings
from gateway_sidecar.control.edge.used_up import Usage
from gateway_sidecar.control.fleet.acme import FleetAcme
from gateway_sidecar.control.fleet.address import address_towards, proved_ours
from gateway_sidecar.control.fleet.alike import Alike
from gateway_sidecar.control.fleet.authorities import FleetAuthorities
from gateway_sidecar.control.fleet.certificates import FleetCertificates
from gateway_sidecar.control.fleet.drains import FleetDrains
from gateway_sidecar.control.fleet.fleet import Fleet
from gateway_sidecar.control.fleet.keys import FleetKeys
from gateway_sidecar.control.fleet.membership import Membership
from gateway_sidecar.control.fleet.memory import RememberedStore, record_in
from gateway_sidecar.control.fleet.mesh import FleetMesh
from gateway_sidecar.control.fleet.ports import FleetPorts
from gateway_sidecar.control.fleet.reflector import StoreReflector
from gateway_sidecar.control.fleet.replicas import SharedReplicas
from gateway_sidecar.control.fleet.seen import Seen
from gateway_sidecar.control.fleet.usage import FleetUsage
from gateway_sidecar.domain.leases import PortLeases
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.kinds import STORES
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.metrics import Metrics
from gateway_sidecar.telemetry.problems import Problems


@dataclass(frozen=True, slots=True)
class FleetPlaces:
    """Where its files are.

    state_dir: what it knows. challenges: what nginx answers ACME servers. mesh: what routers in a mesh show each other.
    """

    state_dir: Path
    challenges: Path
    mesh: Path


def build_fleet(
    places: FleetPlaces,
    settings: StoreSettings,
    leases: PortLeases,
    usage: Usage,
    problems: Problems,
    metrics: Metrics,
) -> Fleet:
    """Nothing is connected yet. usage: what keys have used at this gateway."""
    state_dir, (kind, of_kind) = places.state_dir, settings.of_kind
    store = STORES[kind].build(of_kind)
    remembered = RememberedStore(record_in(state_dir), problems, metrics)
    reflector = StoreReflector(store, remembered, problems.of("store"), metrics, read_every_s=settings.read_every_s)
    name = name_of(settings)
    problem = problems.of("store: gateway")
    membership = Membership(store, reflector, remembered, name, problem, lease_s=settings.lease_s)
    replicas = SharedReplicas(store, reflector, remembered, membership.joined, state_dir / "replicas.json")
    drains = FleetDrains(store, reflector, membership, replicas)
    _measure(kind, reflector, membership, metrics)
    seen = Seen(store, reflector, membership)
    ports = FleetPorts(store, reflector, membership, replicas, leases)
    keys = FleetKeys(reflector, membership, stored_keys_in(state_dir), problems.of("store: keys"))
    files = stored_certificates_in(state_dir)
    certificates = FleetCertificates(reflector, files, problems.of("store: certificates"))
    acme = FleetAcme(reflector, membership, remembered, acme_in(state_dir), places.challenges, problems)
    alike = Alike(membership, problems.of("store: settings"))
    used = FleetUsage(store, reflector, membership, remembered, usage, used_elsewhere_in(state_dir))
    where = STORES[kind].show(of_kind)

    def address() -> str:
        if settings.address is not None:
            return proved_ours(settings.address)
        return address_towards(STORES[kind].places(of_kind))

    mesh = FleetMesh(membership, FleetAuthorities(store, reflector, today), address, places.mesh, today)
    of_replicas, of_frontends = (replicas, drains, seen, ports), (keys, certificates, acme)
    return Fleet(where, store, remembered, reflector, membership, *of_replicas, *of_frontends, alike, used, mesh)


def name_of(settings: StoreSettings) -> str:
    """The gateway's: by default the machine's, as far as that can be a gateway's."""
    if settings.gateway is not None:
        return settings.gateway
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")
    return name[:63].strip("-") or "gateway"


def _measure(kind: str, reflector: StoreReflector, membership: Membership, metrics: Metrics) -> None:
    def age_s() -> float:
        at = reflector.status.read_at
        return awake.monotonic() - at if at is not None else float("inf")

    metrics.store_up.labels(kind).set_function(lambda: reflector.is_up)
    metrics.store_read_age.labels(kind).set_function(age_s)
    metrics.fleet_gateways.labels(kind).set_function(lambda: 1 + len(membership.others))
