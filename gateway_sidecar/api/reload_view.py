"""What a reload of the file on disk would do, and to which replicas. It looks, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from gateway_sidecar.api import models
from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.config.differences import Change
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.service import Service
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.sources.listing import Listing

LEAVES, MOVES, COMES = "leaves", "moves to another place", "comes"
STAYS = "its requests stay with the old router"


async def reload_plan(daemon: Daemon) -> models.ReloadPlan:
    """What a reload of the file on disk would change, by the last look at it."""
    found = daemon.file.found
    fresh = {it.name: it for it in found.settings.services} if found.settings is not None else {}
    touched = await asyncio.gather(*(_touched(daemon, it, fresh.get(it.part)) for it in found.changes))
    return {
        "file": str(daemon.file.path),
        "on_disk": found.state,
        "changes": [
            {"part": it.part, "what": it.what, "interrupts": it.interrupts, "replicas": replicas}
            for it, replicas in zip(found.changes, touched, strict=True)
        ],
        "problems": list(found.problems),
    }


async def _touched(daemon: Daemon, change: Change, fresh: ServiceSettings | None) -> list[models.TouchedReplica]:
    """The replicas of a service that a change of it touches, by id."""
    service = daemon.services.get(change.part)
    if service is None:
        return []
    here = {it.replica: it for it in service.tenures.values() if not it.gone}
    effects: dict[ReplicaId, str] = {}
    if fresh is None:
        effects = dict.fromkeys(here, LEAVES)
    elif "replicas" in change.settings:
        effects = _by_sources(here, await daemon.listing_by(fresh))
    rows = {it: _row(daemon, service, it, here.get(it), effect) for it, effect in effects.items()}
    if "router" in change.settings:
        stay = {it: _row(daemon, service, it, tenure, STAYS) for it, tenure in here.items() if it not in rows}
        rows |= {it: row for it, row in stay.items() if row["in_flight"]}
    return [row for _, row in sorted(rows.items())]


def _by_sources(here: Mapping[ReplicaId, Tenure], listing: Listing) -> dict[ReplicaId, str]:
    """What other sources do to replicas. What they cannot see stays as it is."""
    if listing.blind is not None:
        return {}
    effects = dict.fromkeys(listing.present.keys() - here.keys(), COMES)
    for replica, tenure in here.items():
        sighting = listing.present.get(replica)
        if replica in listing.absent or (sighting is not None and sighting.place != tenure.sighting.place):
            effects[replica] = MOVES
        elif listing.is_gone(replica, tenure.sighting.source):
            effects[replica] = LEAVES
    return effects


def _row(
    daemon: Daemon, service: Service, replica: ReplicaId, tenure: Tenure | None, effect: str
) -> models.TouchedReplica:
    signals = daemon.signals.of.get(service.name)
    in_flight = None
    if signals is not None and tenure is not None and tenure.urls:
        in_flight = signals.active_at(tenure.urls, time.monotonic())
    return {"replica": replica, "effect": effect, "in_flight": in_flight}
