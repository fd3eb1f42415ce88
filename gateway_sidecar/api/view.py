"""What `status` and `plan` show of the daemon, in the form that `models` gives it."""

from __future__ import annotations

import os
import time
from collections.abc import Container

from gateway_sidecar import __version__
from gateway_sidecar.api import models
from gateway_sidecar.api.signals_view import scaling_view, traffic_view
from gateway_sidecar.config import AddressSettings, Endpoint, ModelSettings, TargetSettings
from gateway_sidecar.control.autoscaling.service_signals import ServiceSignals
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.replicas.tenure import Presence, Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import ReplicaId, ReplicaState, WorkerStatus
from gateway_sidecar.sources.api import NAME
from gateway_sidecar.sources.build import shown_of
from gateway_sidecar.supervision import awake

_LOST = "its last replica has left; its requests wait for another one"


def status(daemon: Daemon) -> models.Status:
    """The whole daemon."""
    nginx, leases = daemon.nginx_supervisor, daemon.shared.leases
    return {
        "daemon": _about(daemon),
        "leave": leave(daemon) if daemon.leaving.is_on else None,
        "services": [_service(daemon, name, service) for name, service in sorted(daemon.services.items())],
        "addresses": [_address(daemon, it) for it in sorted(daemon.addresses, key=lambda it: it.name)],
        "nginx": {
            "state": "up" if nginx.up else "down",
            "pid": nginx.nginx.process.pid if nginx.nginx.process else None,
            "reason": nginx.reason,
            "reloads": nginx.nginx.reloads,
        },
        "bridge_ports": {
            "total": leases.size,
            "leased": len(leases.leased),
            "quarantined": len(leases.quarantined),
            "share": leases.share,
        },
        "store": _store(daemon),
        "near_quota": [
            {"service": service, "key": key, "bound": bound, "used": round(used, 3)}
            for (service, key, bound), used in daemon.quotas.near.items()
        ],
        "problems": [f"{what}: {reason}" for what, reason in sorted(_problems(daemon).items())],
        "ready": daemon.ready,
    }


def _about(daemon: Daemon) -> models.About:
    now, found = awake.monotonic(), daemon.file.found
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(now - daemon.file.began_at, 1),
        "configuration": {
            "path": str(daemon.file.path),
            "age_s": round(now - daemon.file.loaded_at, 1),
            "on_disk": found.state,
            "lines": list(found.lines),
        },
    }


def _store(daemon: Daemon) -> models.Store | None:
    fleet = daemon.shared.fleet
    if fleet is None:
        return None
    it, now = fleet.reflector.status, awake.monotonic()
    return {
        "where": fleet.where,
        "gateway": fleet.membership.name,
        "state": it.state,
        "state_age_s": round(now - it.since, 3),
        "read_age_s": round(now - it.read_at, 3) if it.read_at is not None else None,
        "reason": it.reason or None,
        "others": [
            {"name": other.name, "version": other.version, "ready": other.ready, "leaving": other.leaving}
            for other in fleet.membership.others
        ],
    }


def leave(daemon: Daemon) -> models.Leave:
    """How the gateway leaves, or that it does not."""
    leaving, now = daemon.leaving, awake.now()
    under_way = leaving.leave
    at = {listen.rpartition(":")[2]: listen for it in leaving.addresses for listen in it.listens}
    return {
        "phase": None if under_way is None else under_way.phase,
        "reason": leaving.describe() or None,
        "took_s": 0.0 if under_way is None else round(max(0.0, now - under_way.began), 3),
        "left_s": round(leaving.left_s, 3),
        "in_flight": sum(leaving.connections.values()),
        "connections": {at.get(str(port), str(port)): number for port, number in sorted(leaving.connections.items())},
        "requests": {name: it.in_flight(awake.monotonic()) for name, it in sorted(daemon.signals.of.items())},
        "cut": None if under_way is None else under_way.cut,
        "pid": os.getpid(),
    }


def _problems(daemon: Daemon) -> dict[str, str]:
    peers = {"peers": daemon.shared.peers.problem} if daemon.shared.peers.problem else {}
    files = {f"{it.name}: endpoints": it.endpoints.problem for it in daemon.services.values() if it.endpoints.problem}
    return {
        **daemon.shared.problems.told(),
        **daemon.frontends.problems,
        **daemon.certificates.problems,
        **peers,
        **files,
        **daemon.nginx_supervisor.problems,
    }


def _service(daemon: Daemon, name: str, service: Service) -> models.Service:
    served = next((it for it in daemon.nginx_supervisor.applied or () if it.service == name), None)
    frontend = service.settings.frontend if served is None else served.frontend
    rows = replicas(daemon, service)
    return {
        "name": name,
        "listen": str(service.settings.listen) if served is None else served.listen,
        "frontend_listen": [str(address) for address in frontend.listen],
        "not_in_force": daemon.nginx_supervisor.not_in_force.get(name),
        "source": _source(service),
        "router": _router(daemon, service),
        "serving": sum(row["state"] == ReplicaState.SERVING for row in rows),
        "expected": sum(row["state"] != ReplicaState.DRAINING for row in rows),
        "traffic": traffic_view(daemon.signals.of.get(name)),
        "waiting": service.hold.waiting,
        "missing": service.hold.missing,
        "reason": service.hold.describe(),
        "unanswered": dict.fromkeys(sorted(service.hold.lost.values()), _LOST) | dict(service.roles.lacking),
        "bridge_ports": daemon.shared.leases.held_by(name),
        "replicas": rows,
        "scaling": scaling_view(daemon, name),
    }


def _address(daemon: Daemon, settings: AddressSettings) -> models.Address:
    served = next((it for it in daemon.nginx_supervisor.applied or () if it.service == settings.name), None)
    frontend = settings.frontend if served is None else served.frontend
    asleep = {name for name, service in daemon.services.items() if service.hold.is_asleep}
    lost = {(name, model) for name, service in daemon.services.items() for model in service.hold.lost.values()}
    return {
        "name": settings.name,
        "listen": str(settings.listen) if served is None else served.listen,
        "frontend_listen": [str(address) for address in frontend.listen],
        "not_in_force": daemon.nginx_supervisor.not_in_force.get(settings.name),
        "default": settings.default,
        "models": [_model(name, model, asleep, lost) for name, model in sorted(settings.models.items())],
    }


def _model(
    name: str, settings: ModelSettings, asleep: Container[str], lost: Container[tuple[str, str]]
) -> models.Model:
    def target(it: TargetSettings, weight: int) -> models.Target:
        has_nobody = it.service in asleep or (it.service, it.model or name) in lost
        return {"service": it.service, "weight": weight, "model": it.model, "asleep": has_nobody}

    services = [target(it, it.weight) for it in settings.targets]
    fallback = None if settings.fallback is None else target(settings.fallback, 1)
    answering = [it for it in (*services, fallback) if it is not None and it["weight"] and not it["asleep"]]
    return {"name": name, "services": services, "fallback": fallback, "asleep": not answering}


def _source(service: Service) -> models.Source:
    settings, listing = shown_of(service.settings), service.reflector.listing
    if listing is None:
        return {"settings": settings, "blind": None, "refused": {}}
    unseen = "; ".join(f"{source}: {why}" for source, why in listing.unseen.items())
    return {"settings": settings, "blind": listing.blind or unseen or None, "refused": dict(listing.refused)}


def _router(daemon: Daemon, service: Service) -> models.Router:
    router = service.router
    return {
        "type": router.kind,
        "state": router.state,
        "url": router.ports.url if router.ports else None,
        "pid": router.pid,
        "restarts": router.restarts,
        "metrics_url": router.ports.metrics_url if router.ports else None,
        "reason": router.reason or service.slots.problem,
        "mesh": daemon.in_fleet.mesh_of(service),
    }


def _tunnel(service: Service, tenure: Tenure) -> models.Tunnel | None:
    path = service.prober.tunnels.far_end_of(tenure)
    if path is None:
        return None
    return {"to": str(tenure.sighting.tunnel), "state": path.state, "reason": path.reason or None}


def replicas(daemon: Daemon, service: Service, only: ReplicaId | None = None) -> list[models.Replica]:
    """A service's replicas by id, or those with one id. Of several with one id the first is the present one."""
    tenures = [t for t in service.tenures.values() if only in (None, t.replica)]
    tenures.sort(key=lambda t: -t.key)
    here = {tenure.replica for tenure in tenures if tenure.presence is Presence.PRESENT}
    absent = [r for r in daemon.shared.api.of(service.name).entries.keys() - here if only in (None, r)]
    signals, now = daemon.signals.of.get(service.name), time.monotonic()
    rows = [_absent(daemon, service, replica) for replica in sorted(absent)] + [
        _replica(service, t, signals, now) for t in tenures
    ]
    return sorted(rows, key=lambda row: row["id"])


def _absent(daemon: Daemon, service: Service, replica: ReplicaId) -> models.Replica:
    """A replica of the API whose socket does not exist."""
    entry, listing = daemon.shared.api.of(service.name).entries[replica], service.reflector.listing
    socket = str(entry["socket"]) if "socket" in entry else None
    reason = listing.refused.get(replica) if listing is not None else None
    if reason is None and listing is not None and replica in listing.absent:
        reason = f"there is no socket {socket}"
    return {
        "id": replica,
        "state": "absent",
        "state_age_s": 0.0,
        "socket": socket,
        "bridge": None,
        "advertise": None,
        "direct": False,
        "worker_id": None,
        "worker_type": None,
        "connection_mode": None,
        "runtime_type": None,
        "model": None,
        "models": [],
        "in_flight": None,
        "reason": reason,
        "source": NAME,
        "tunnel": None,
    }


def _replica(service: Service, tenure: Tenure, signals: ServiceSignals | None, now: float) -> models.Replica:
    worker = service.book.workers.get(tenure.url) if tenure.url else None
    facts = tenure.probe.facts
    return {
        "id": tenure.replica,
        "state": tenure.status.state,
        "state_age_s": round(awake.now() - tenure.status.since, 3),
        "socket": str(tenure.sighting.socket),
        "bridge": str(Endpoint(tenure.bridge_host, tenure.bridge.port)) if tenure.bridge.port is not None else None,
        "advertise": str(tenure.bridge.peer) if tenure.bridge.peer else None,
        "direct": tenure.bridge.peer.direct if tenure.bridge.peer else False,
        "worker_id": worker.worker_id if worker else None,
        "worker_type": tenure.notes.overrides.worker_type or (facts.worker_type if facts else None),
        "connection_mode": facts.connection_mode if facts else None,
        "runtime_type": facts.runtime_type if facts else None,
        "model": (worker.model_id if worker else None) or (facts.model if facts else None),
        "models": _models(service, tenure),
        "in_flight": None if signals is None or not tenure.urls else signals.active_at(tenure.urls, now),
        "reason": tenure.status.reason or None,
        "source": tenure.sighting.source,
        "tunnel": _tunnel(service, tenure),
    }


def _models(service: Service, tenure: Tenure) -> list[str]:
    workers = (service.book.workers.get(url) for url in tenure.urls)
    return [it.model_id for it in workers if it is not None and it.status is WorkerStatus.READY and it.model_id]


def plan(daemon: Daemon) -> list[models.Action]:
    """What the daemon would do next, without doing it; at rest nothing."""
    leaves = daemon.leaving.describe()
    leaving: list[models.Action] = (
        [{"service": "-", "replica": "-", "action": f"go on leaving: {leaves}"}] if leaves else []
    )
    in_force: list[models.Action] = [
        {"service": name, "replica": "-", "action": f"put listen and frontend in force, not so far: {why}"}
        for name, why in sorted(daemon.nginx_supervisor.not_in_force.items())
    ]
    pending: list[models.Action] = [
        {"service": name, "replica": replica, "action": action}
        for name, service in sorted(daemon.services.items())
        for replica, action in service.controller.pending()
    ]
    return leaving + in_force + pending
