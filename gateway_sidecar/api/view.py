"""What `status` and `plan` show: the daemon's state as plain data. Other tools rely on these names."""

from __future__ import annotations

from typing import Any

from gateway_sidecar.api.signals_view import scaling_view
from gateway_sidecar.config import Endpoint
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.replicas.prober import far_end_of
from gateway_sidecar.control.replicas.tenure import Presence, Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.sources.api import NAME
from gateway_sidecar.sources.build import shown_of
from gateway_sidecar.sources.listing import Listing
from gateway_sidecar.supervision import awake


def status(daemon: Daemon) -> dict[str, Any]:
    """The whole daemon. `services[].replicas[]` may show an id twice while an old engine drains beside the new."""
    return {
        "services": [
            _service(daemon, name, service) | {"scaling": scaling_view(daemon, name)}
            for name, service in sorted(daemon.services.items())
        ],
        "nginx": {
            "state": "up" if daemon.nginx_supervisor.up else "down",
            "pid": daemon.nginx_supervisor.nginx.process.pid if daemon.nginx_supervisor.nginx.process else None,
            "reason": daemon.nginx_supervisor.reason,
            "ports": daemon.shared.leases.size,
            "leased": len(daemon.shared.leases.leased),
            "quarantined": len(daemon.shared.leases.quarantined),
            "share": daemon.shared.leases.share,
            "reloads": daemon.nginx_supervisor.nginx.reloads,
        },
        "problems": [f"{what}: {reason}" for what, reason in sorted(_problems(daemon).items())],
        "ready": daemon.ready,
    }


def _problems(daemon: Daemon) -> dict[str, str]:
    peers = {"peers": daemon.shared.peers.problem} if daemon.shared.peers.problem else {}
    return {**daemon.shared.problems.told(), **daemon.frontends.problems, **peers, **daemon.nginx_supervisor.problems}


def _service(daemon: Daemon, name: str, service: Service) -> dict[str, Any]:
    router = service.router
    listing = service.reflector.listing
    served = next((it for it in daemon.nginx_supervisor.applied or () if it.service == name), None)
    frontend = service.settings.frontend if served is None else served.frontend
    return {
        "name": name,
        "listen": str(service.settings.listen) if served is None else served.listen,
        "public": [str(address) for address in frontend.listen],
        "not_in_force": daemon.nginx_supervisor.not_in_force.get(name),
        "source": {"settings": shown_of(service.settings), **_source(listing)},
        "router": {
            "type": service.settings.router.type,
            "state": router.state.value,
            "url": router.ports.url if router.ports else None,
            "pid": router.pid,
            "restarts": router.restarts,
            "metrics_url": router.ports.metrics_url if router.ports else None,
            "reason": router.reason or service.slots.problem,
        },
        "waiting": service.hold.waiting,
        "missing": service.hold.missing.value if service.hold.missing else None,
        "reason": service.hold.describe(),
        "unanswered": dict(service.roles.lacking),
        "bridge_ports": daemon.shared.leases.held_by(name),
        "replicas": replicas(daemon, service),
    }


def _source(listing: Listing | None) -> dict[str, Any]:
    if listing is None:
        return {"blind": None, "refused": {}}
    unseen = "; ".join(f"{source}: {why}" for source, why in listing.unseen.items())
    return {"blind": listing.blind or unseen or None, "refused": dict(listing.refused)}


def _tunnel(service: Service, tenure: Tenure) -> dict[str, Any] | None:
    path = far_end_of(tenure, service.prober.path_of)
    if path is None:
        return None
    return {"to": str(tenure.sighting.tunnel), "state": path.state.value, "reason": path.reason or None}


def replicas(daemon: Daemon, service: Service) -> list[dict[str, Any]]:
    """A service's replicas by id. Of several rows of one id the first is the present one."""
    tenures = sorted(service.tenures.values(), key=lambda t: -t.key)
    here = {tenure.replica for tenure in tenures if tenure.presence is Presence.PRESENT}
    waited_for = sorted(daemon.shared.api.of(service.name).entries.keys() - here)
    rows = [_absent(daemon, service, replica) for replica in waited_for] + [_replica(service, t) for t in tenures]
    return sorted(rows, key=lambda row: str(row["id"]))


def _absent(daemon: Daemon, service: Service, replica: ReplicaId) -> dict[str, Any]:
    """A replica that was put over the API, and whose socket is not there."""
    entry, listing = daemon.shared.api.of(service.name).entries[replica], service.reflector.listing
    reason = listing.refused.get(replica) if listing is not None else None
    if reason is None and listing is not None and replica in listing.absent:
        reason = f"there is no socket {entry.get('socket')}"
    row: dict[str, Any] = dict.fromkeys(_NOTHING_KNOWN)
    return row | {
        "id": replica,
        "state": "absent",
        "state_age_s": 0.0,
        "socket": entry.get("socket"),
        "direct": False,
        "reason": reason,
        "source": NAME,
    }


_NOTHING_KNOWN = (
    *("id", "state", "state_age_s", "socket", "bridge", "advertise", "direct", "worker_id", "worker_type"),
    *("connection_mode", "runtime_type", "model", "reason", "source", "tunnel"),
)


def _replica(service: Service, tenure: Tenure) -> dict[str, Any]:
    worker = service.book.workers.get(tenure.url) if tenure.url else None
    facts = tenure.probe.facts
    kind = tenure.notes.overrides.worker_type or (facts.worker_type if facts else None)
    return {
        "id": tenure.replica,
        "state": tenure.status.state.value,
        "state_age_s": round(awake.now() - tenure.status.since, 3),
        "socket": str(tenure.sighting.socket),
        "bridge": str(Endpoint(tenure.bridge_host, tenure.bridge.port)) if tenure.bridge.port is not None else None,
        "advertise": str(tenure.bridge.peer) if tenure.bridge.peer else None,
        "direct": tenure.bridge.peer.direct if tenure.bridge.peer else False,
        "worker_id": worker.worker_id if worker else None,
        "worker_type": kind.value if kind else None,
        "connection_mode": facts.connection_mode.value if facts else None,
        "runtime_type": facts.runtime_type if facts else None,
        "model": (worker.model_id if worker else None) or (facts.model if facts else None),
        "reason": tenure.status.reason or None,
        "source": tenure.sighting.source,
        "tunnel": _tunnel(service, tenure),
    }


def plan(daemon: Daemon) -> list[dict[str, Any]]:
    """What the daemon would do next, without doing it; at rest nothing."""
    in_force = [
        {"service": name, "replica": "-", "action": f"put listen and frontend in force, not so far: {why}"}
        for name, why in sorted(daemon.nginx_supervisor.not_in_force.items())
    ]
    return in_force + [
        {"service": name, "replica": replica, "action": action}
        for name, service in sorted(daemon.services.items())
        for replica, action in service.controller.pending()
    ]
