"""The fleet over the admin API: which gateways there are, and what each of them sees of each replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from gateway_sidecar.api.answers import DAEMON, Refused, json_text
from gateway_sidecar.api.models import FleetMember, FleetReplica, FleetService, FleetStatus, SeenReplica
from gateway_sidecar.domain.fleet import Gateway
from gateway_sidecar.errors import StoreError

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.seen import FleetSeen


async def show_fleet(request: web.Request) -> web.Response:
    """Reads it from the store."""
    fleet = request.app[DAEMON].shared.fleet
    if fleet is None:
        raise Refused(409, error="this gateway has no store; set `store` in the configuration")
    try:
        seen = await fleet.seen.read()
    except StoreError as error:
        raise Refused(503, error=f"the store cannot be read: {error}") from error
    return web.json_response(fleet_view(seen, fleet.membership.name, fleet.membership.gone_s), dumps=json_text)


def fleet_view(seen: FleetSeen, own: str, gone_s: Mapping[str, float]) -> FleetStatus:
    """What the gateways say. own: the name of the one that answers. gone_s: others, and how long ago they went."""
    alive = {it.name for it in seen.gateways}
    gone: list[FleetMember] = [
        {
            "name": name,
            "is_this": False,
            "state": "gone",
            "gone_s": round(for_s, 3),
            "version": None,
            "since": None,
            "services": [],
            "heard_s": None,
        }
        for name, for_s in gone_s.items()
        if name not in alive
    ]
    services = sorted({name for it in alive for name in seen.states.get(it, {})})
    return {
        "gateways": sorted([*gone, *(_member(it, own, seen) for it in seen.gateways)], key=lambda it: it["name"]),
        "services": [_service(name, seen) for name in services],
    }


def _member(it: Gateway, own: str, fleet: FleetSeen) -> FleetMember:
    return {
        "name": it.name,
        "is_this": it.name == own,
        "state": "leaving" if it.leaving else "ready" if it.ready else "not ready",
        "gone_s": None,
        "version": it.version,
        "since": it.since,
        "services": list(it.services),
        "heard_s": fleet.kept_s.get(it.name),
    }


def _service(name: str, fleet: FleetSeen) -> FleetService:
    seen: dict[str, dict[str, SeenReplica]] = {}
    for gateway in fleet.gateways:
        for replica, stay in fleet.states.get(gateway.name, {}).get(name, {}).items():
            seen.setdefault(replica, {})[gateway.name] = _seen(stay, f"{name}/{replica}", gateway, fleet)
    asked = {replica: fleet.drains.get(f"{name}/{replica}") for replica in seen}
    rows: list[FleetReplica] = [
        {"id": replica, "drain": None if (it := asked[replica]) is None else it.gateway, "gateways": by_gateway}
        for replica, by_gateway in sorted(seen.items())
    ]
    return {"name": name, "voice": fleet.voices.get(name), "scaled": name in fleet.voices, "replicas": rows}


def _seen(stay: tuple[str, int | None], key: str, gateway: Gateway, fleet: FleetSeen) -> SeenReplica:
    (state, port), asked, said = stay, fleet.drains.get(key), gateway.drains.get(key)
    if asked is None or said is None or said.id != asked.id:
        return {"state": state, "port": port, "in_flight": None, "safe": None}
    return {"state": state, "port": port, "in_flight": said.in_flight, "safe": said.is_safe if said.holds else None}
