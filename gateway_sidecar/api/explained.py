"""What `explain` shows: the records of a replica's occupants, put as `domain/explain.py` takes them."""

from __future__ import annotations

import math

import orjson
from aiohttp import web

from gateway_sidecar.api import models
from gateway_sidecar.api.answers import DAEMON, Refused, json_text, service_in
from gateway_sidecar.config import Endpoint
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.replicas.tenure import Presence, Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain import explain as chain
from gateway_sidecar.domain.model import ReplicaId, ReplicaState
from gateway_sidecar.domain.similar import near
from gateway_sidecar.supervision import awake
from gateway_sidecar.telemetry.journal import JOURNAL

_EVENTS = 8  # A replica makes six or so from first sight to its end (`telemetry/journal.py`).


async def explain_replica(request: web.Request) -> web.Response:
    """Why a replica is where it is."""
    service, replica = service_in(request), ReplicaId(request.match_info["replica"])
    return web.json_response(explained(request.app[DAEMON], service, replica), dumps=json_text)


def explained(daemon: Daemon, service: Service, replica: ReplicaId) -> models.Explained:
    """All stays of a replica, the present one first. Raises Refused for one of which nothing is known."""
    events = JOURNAL.entries(service.name, replica)
    tenures = sorted((t for t in service.tenures.values() if t.replica == replica), key=lambda t: -t.key)
    found = [chain.explain(_record(service, tenure)) for tenure in tenures]
    if not any(tenure.presence is Presence.PRESENT for tenure in tenures):
        found = [*_missing(daemon, service, replica), *found]
    if not found and not events:
        raise Refused(
            404, error=f"service '{service.name}' has no replica '{replica}'; {near(replica, _known(service))}"
        )
    if not found:
        says = "its source does not show it any more, and nothing of it is left but its last events"
        change = "a socket, or an entry, of that name"
        found = [chain.explain_missing("gone", chain.Step("seen", chain.StepState.FAILED, says, (), change))]
    return {
        "service": service.name,
        "replica": replica,
        "stays": [_shown(it) for it in found],
        "events": [orjson.loads(it.line) for it in [one for one in events if not one.is_said][-_EVENTS:]],
    }


def _known(service: Service) -> set[str]:
    listing = service.reflector.listing
    listed = set() if listing is None else {*listing.absent, *listing.refused}
    return {str(it) for it in ({t.replica for t in service.tenures.values()} | listed)}


def _missing(daemon: Daemon, service: Service, replica: ReplicaId) -> list[chain.Explanation]:
    """Why a replica that its source knows has no occupant."""
    listing, failed = service.reflector.listing, chain.StepState.FAILED
    if listing is not None and (reason := listing.refused.get(replica)) is not None:
        change = "correct what the text says; its source is read again every few seconds"
        return [chain.explain_missing("refused", chain.Step("seen", failed, f"refused: {reason}", (), change))]
    if listing is not None and replica in listing.absent:
        source, place = listing.absent[replica]
        step = chain.Step("socket", failed, f"there is no socket {place}", (f"listed by {source}",), "a socket there")
        return [chain.explain_missing("absent", step)]
    if replica in daemon.shared.api.of(service.name).entries:
        step = chain.Step("socket", failed, "its socket is not there", ("put over the API",), "its socket, or tunnel")
        return [chain.explain_missing("absent", step)]
    return []


def _shown(it: chain.Explanation) -> models.Stay:
    return {
        "state": it.state,  # type: ignore[typeddict-item]  # Its words are the model's.
        "state_age_s": round(it.state_age_s, 3),
        "why": it.why,
        "steps": [
            {
                "name": step.name,  # type: ignore[typeddict-item]
                "state": step.state,
                "says": step.says,
                "evidence": list(step.evidence),
                "change": step.change or None,
            }
            for step in it.steps
        ],
    }


def _record(service: Service, tenure: Tenure) -> chain.Record:
    now, bridge = awake.now(), tenure.bridge
    leaves = tenure.gone or tenure.drain.requested
    return chain.Record(
        state=ReplicaState(tenure.status.state),
        state_age_s=now - tenure.status.since,
        seen=chain.Seen(
            source=tenure.sighting.source,
            age_s=now - tenure.seen_at,
            superseded=tenure.presence is Presence.SUPERSEDED,
            gone=tenure.gone_because,
            blind=_blind(service, tenure),
        ),
        socket=_socket(service, tenure),
        probe=_probing(service, tenure, now),
        bridge=chain.Bridging(
            at=None if bridge.port is None else str(Endpoint(tenure.bridge_host, bridge.port)),
            linked=bridge.linked,
            leads_to=None if bridge.leads_to is None else str(bridge.leads_to),
            problem=bridge.problem,
            peer=None if bridge.peer is None else str(bridge.peer),
            peer_problem=bridge.peer_problem,
            key_problem=bridge.key_problem,
        ),
        router=_routing(service, tenure),
        leaving=_leaving(service, tenure) if leaves else None,
        reason="" if leaves else tenure.status.reason,
        command=f"{service.name} {tenure.replica}",
    )


def _blind(service: Service, tenure: Tenure) -> str | None:
    listing = service.reflector.listing
    return None if listing is None else listing.blind or listing.unseen.get(tenure.sighting.source)


def _socket(service: Service, tenure: Tenure) -> chain.Socket:
    far, tunnel = service.prober.tunnels.far_end_of(tenure), tenure.sighting.tunnel
    path = service.prober.tunnels.path_of(tenure)
    return chain.Socket(
        path=str(tenure.sighting.socket),
        tunnel=None if tunnel is None else str(tunnel),
        tunnel_problem=None if path is None or path.is_up else str(far or path),
        problem=tenure.notes.handle_problem,
        notes_read=tenure.notes.read,
        notes_problem=tenure.notes.problem,
    )


def _probing(service: Service, tenure: Tenure, now: float) -> chain.Probing:
    probe = tenure.probe
    asking = probe.task is not None
    return chain.Probing(
        result=probe.result,
        facts=probe.facts,
        evidence=probe.evidence,
        evidence_age_s=now - probe.evidence.since,
        policy=service.prober.policy,
        ejected=probe.ejected,
        ejected_age_s=now - probe.ejected_at,
        asked_age_s=now - probe.health_asked_at if probe.asked else None,
        answered_age_s=None if math.isinf(probe.answers.answered_at) else now - probe.answers.answered_at,
        failed_requests=probe.answers.failures,
        next_s=None if math.isinf(probe.due) or not probe.due else max(0.0, probe.due - now),
        asking=asking,
        drained=tenure.drain.requested,
    )


def _routing(service: Service, tenure: Tenure) -> chain.Routing:
    router, book = service.router, service.book
    return chain.Routing(
        kind=router.kind,
        up=router.up,
        state=router.state.value,
        reason=router.reason,
        listed=book.listed,
        list_age_s=book.list_age_s,
        workers=tuple(
            chain.Worker(url, name, book.workers.get(url), book.view(url).busy, book.held_for_s(url), book.trouble(url))
            for url, name in tenure.urls.items()
        ),
    )


def _leaving(service: Service, tenure: Tenure) -> chain.Leaving:
    out_at = tenure.drain.out_at
    return chain.Leaving(
        done=tenure.drain.done.is_set(),
        in_flight=tenure.drain.in_flight,
        out_age_s=None if out_at is None else awake.monotonic() - out_at,
        gives_up_s=service.drains.gives_up_s(tenure),
    )
