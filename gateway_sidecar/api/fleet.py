"""The fleet over the admin API: which gateways there are, and what each of them sees of each replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from gateway_sidecar.api.answers import DAEMON, Refused, json_text
from gateway_sidecar.api.models import (
    FleetMember,
    FleetReplica,
    FleetService,
    FleetStatus,
    FleetUsage,
    FleetUsageRow,
    SeenReplica,
)
from gateway_sidecar.control.edge.used_up import periods
from gateway_sidecar.domain.fleet import Gateway
from gateway_sidecar.domain.fleet_usage import UsedAt
from gateway_sidecar.errors import StoreError
from gateway_sidecar.frontend.certificate import today

if TYPE_CHECKING:
    from gateway_sidecar.control.fleet.fleet import Fleet
    from gateway_sidecar.control.fleet.seen import FleetSeen


async def show_fleet(request: web.Request) -> web.Response:
    """Reads it from the store."""
    fleet = _fleet_of(request)
    try:
        seen = await fleet.seen.read()
    except StoreError as error:
        raise Refused(503, error=f"the store cannot be read: {error}") from error
    return web.json_response(fleet_view(seen, fleet.membership.name, fleet.membership.gone_s), dumps=json_text)


async def show_fleet_usage(request: web.Request) -> web.Response:
    """Reads it from the store."""
    fleet = _fleet_of(request)
    try:
        records = await fleet.usage.read()
    except StoreError as error:
        raise Refused(503, error=f"the store cannot be read: {error}") from error
    day, month = (period for _, period, _ in periods(today()))
    return web.json_response(usage_view(records, day, month), dumps=json_text)


def _fleet_of(request: web.Request) -> Fleet:
    fleet = request.app[DAEMON].shared.fleet
    if fleet is None:
        raise Refused(409, error="this gateway has no store; set `store` in the configuration")
    return fleet


def usage_view(records: Mapping[str, UsedAt], day: str, month: str) -> FleetUsage:
    """What instances of gateways tell, added up. Several may have had one name, one after the other."""
    rows: dict[tuple[str, str], FleetUsageRow] = {}
    for record in records.values():
        of_day, of_month = record.in_period("tokens_per_day", day), record.in_period("tokens_per_month", month)
        for service, keys in of_month.items():
            for key, tokens in keys.items():
                of_today = of_day.get(service, {}).get(key, 0)
                none: FleetUsageRow = {"service": service, "key": key, "day": 0, "month": 0, "gateways": {}}
                row = rows.setdefault((service, key), none)
                at = row["gateways"].setdefault(record.gateway, {"day": 0, "month": 0})
                for part in (row, at):
                    part["day"] += of_today
                    part["month"] += tokens
    found = sorted(rows.values(), key=lambda it: (-it["month"], it["service"], it["key"]))
    cut = sorted({it.gateway for it in records.values() if it.is_cut})
    return {"day": day, "month": month, "cut": cut, "rows": found}


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
