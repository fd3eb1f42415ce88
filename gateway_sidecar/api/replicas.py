"""Replicas over the admin API: added, changed, removed, listed."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from gateway_sidecar.api import view
from gateway_sidecar.api.answers import DAEMON, Refused, check_query, seconds_in, service_in
from gateway_sidecar.api.models import Drained, Put, Replica, Replicas
from gateway_sidecar.control.process.daemon import Daemon
from gateway_sidecar.control.replicas.drain import DrainReport
from gateway_sidecar.control.service import Service
from gateway_sidecar.control.state.api_replicas import is_full
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.domain.similar import near
from gateway_sidecar.errors import ConfigError, StateError, StateInDoubt
from gateway_sidecar.sources.api import NAME, read_raw
from gateway_sidecar.sources.entry import Described, RawEntry
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread

MOST_BYTES = 64 * 1024  # As the file that would say the same of a replica may have (`config/text_file.py`).
_DEFAULT_WAIT_S = 60.0
"""A choice: clients and proxies wait a minute as a rule; an engine that loads longer is asked for again."""
_FIRST_LOOK_S = 10.0  # A choice: twice what the slowest source is waited for (`DISK_S`).
_GONE_S = 5.0  # A choice: what is left then is to close its bridge, and a client waits.
_GOES_ON = "what it has in flight goes on"


async def list_replicas(request: web.Request) -> web.Response:
    """Lists a service's replicas."""
    service = service_in(request)
    answer: Replicas = {"replicas": view.replicas(request.app[DAEMON], service)}
    return web.json_response(answer)


async def get_replica(request: web.Request) -> web.Response:
    """Shows one replica."""
    service = service_in(request)
    return web.json_response(_row(request.app[DAEMON], service, ReplicaId(request.match_info["replica"])))


async def put_replica(request: web.Request) -> web.Response:
    """Adds or changes a replica; with `wait` answers when it serves."""
    daemon, service = request.app[DAEMON], service_in(request)
    replica = ReplicaId(request.match_info["replica"])
    check_query(request, "wait", "timeout_s")
    wait = _wait_in(request)
    timeout_s = seconds_in(request, "timeout_s", _DEFAULT_WAIT_S)
    entry = await object_in(request, "replica", 'send {"socket": "/path"}')
    described = await _read(service, replica, entry)
    await _has_looked(service)
    _refuse_others(service, replica)
    try:
        put = await daemon.shared.api.put(service.name, replica, entry)
    except StateError as error:
        raise _not_written(error) from error
    if put.was_leaving and service.current(replica) is not None:
        service.drains.resume(replica)
        await daemon.flush_leases()
    service.reflector.look_soon()
    if wait:
        await _until_serving(daemon, service, replica, put.entry, described, timeout_s)
    answer: Put = {"created": put.created, "changed": put.changed, "replica": _row(daemon, service, replica)}
    return web.json_response(answer, status=201 if put.created else 200)


async def delete_replica(request: web.Request) -> web.Response:
    """Removes a replica, after what it has in flight or after `drain_s`."""
    daemon, service = request.app[DAEMON], service_in(request)
    replica = ReplicaId(request.match_info["replica"])
    check_query(request, "drain_s")
    drain_s = seconds_in(request, "drain_s", 0.0)
    await _has_looked(service)
    report = await remove(daemon, service, replica, drain_s)
    return web.json_response(drained_view(report), status=200 if report.drained else 202)


async def remove(daemon: Daemon, service: Service, replica: ReplicaId, drain_s: float) -> DrainReport:
    """Removes it at every gateway, and waits up to `drain_s` seconds for what is in flight there. Raises Refused."""
    began, until = time.monotonic(), awake.now() + drain_s
    try:
        entry = await daemon.shared.api.take_out(service.name, replica)
    except KeyError:
        _refuse_others(service, replica)
        raise unknown_replica(service, replica) from None
    except StateError as error:
        raise _not_written(error) from error
    fleet = daemon.shared.fleet
    if fleet is None:
        report = await _removed(daemon, service, replica, entry, until)
    elif not drain_s:
        report = await _removed(daemon, service, replica, entry, until)
        if fleet.membership.others:
            report = replace(report, drained=False, reason="the other gateways were not asked: give drain_s")
    else:
        async with fleet.drains.asked_once(service.name, replica) as asking:
            report = await _removed(daemon, service, replica, entry, until)
            left_s = max(0.0, until - awake.now())
            report = await fleet.drains.finish(service.drains, report, asking, left_s, service.until)
    return replace(report, took_s=time.monotonic() - began)


async def _removed(
    daemon: Daemon, service: Service, replica: ReplicaId, entry: RawEntry | None, until: float
) -> DrainReport:
    """What came of it at this gateway, at `until` (awake seconds) at the latest. Raises Refused."""
    drain_s, tenure = max(0.0, until - awake.now()), service.current(replica)
    report = DrainReport(True, 0, 0.0)
    if tenure is not None and tenure.sighting.source == NAME:
        in_flight = DrainReport(False, None, 0.0, reason=_GOES_ON)
        report = await _drained(daemon, service, replica, drain_s) if drain_s else in_flight
    if not daemon.shared.api.of(service.name).forget(replica, entry):
        if service.current(replica) is not None:
            service.drains.resume(replica)  # Another gateway may have put it.
        raise Refused(409, error=f"'{replica}' was put again while it drained; it stays")
    service.reflector.look_soon()
    if tenure is not None:
        await service.until(lambda: service.current(replica) is not tenure, _GONE_S)
    # Where it was before may still have something in flight, too.
    left_s = max(0.0, until - awake.now())
    if report.drained and not await service.until(lambda: not service.others(replica, tenure), left_s):
        return replace(report, drained=False, in_flight=None, reason=_GOES_ON)
    return report


def drained_view(report: DrainReport) -> Drained:
    """What came of a drain, or of a DELETE."""
    return {
        "drained": report.drained,
        "in_flight": report.in_flight,
        "took_s": round(report.took_s, 3),
        "unanswered": dict(report.unanswered),
        "reason": report.reason or None,
        "gateways": [
            {
                "name": it.gateway,
                "safe": it.is_safe,
                "in_flight": it.in_flight,
                "reason": it.reason or None,
                "silent_s": None if it.silent_s is None else round(it.silent_s, 3),
            }
            for it in report.elsewhere
        ],
    }


async def _drained(daemon: Daemon, service: Service, replica: ReplicaId, drain_s: float) -> DrainReport:
    """What came of the drain; False if the replica is put again before it is done."""
    record = daemon.shared.api.of(service.name)
    draining = asyncio.create_task(service.drains.drain(replica, drain_s))
    try:
        await service.until(lambda: draining.done() or replica in record.entries, drain_s + _GONE_S)
        return draining.result() if draining.done() else DrainReport(False, None, 0.0, reason=_GOES_ON)
    finally:
        draining.cancel()


def unknown_replica(service: Service, replica: str) -> Refused:
    """The answer about an unknown replica."""
    known = sorted({tenure.replica for tenure in service.tenures.values() if not tenure.gone})
    return Refused(404, error=f"service '{service.name}' has no replica '{replica}'; {near(replica, known)}")


def _wait_in(request: web.Request) -> bool:
    wait = request.query.get("wait")
    if wait not in (None, "serving"):
        raise Refused(400, error=f"wait: '{wait}' is not a state to wait for; use serving, or leave it out")
    return wait is not None


async def object_in(request: web.Request, what: str, cure: str = "send one") -> dict[str, Any]:
    """The object that was sent. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused(415, error=f"'{request.content_type}' is not a supported content type; use application/json")
    body = await request.read()
    try:
        entry = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        json.dumps(entry, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(400, error="the body holds half of a surrogate pair; send whole characters") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, error=f"the body is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise Refused(422, error=f"the {what} was refused", problems=[f"is not an object; {cure}"])
    return entry


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is given twice; keep one of them")
        found[name] = value
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number in JSON")


async def _read(service: Service, replica: ReplicaId, entry: dict[str, Any]) -> Described:
    """What the entry describes. Raises Refused."""
    read = partial(read_raw, entry, service.name, replica, service.settings.replicas.ssh_defaults)
    try:
        return await OwnThread("entry").run(read, patience_s=DISK_S)
    except ConfigError as error:
        raise Refused(422, error="the replica was refused", problems=error.problems) from error
    except TimeoutError as error:
        raise Refused(503, error="the file system of its api_key_file does not answer; nothing was changed") from error


def _not_written(error: StateError) -> Refused:
    if isinstance(error, StateInDoubt):
        return Refused(503, error=f"it is not known whether this was written; send it again: {error}")
    return Refused(507 if is_full(error) else 503, error=f"nothing was changed: {error}")


async def _has_looked(service: Service) -> None:
    """Waits until all sources were read: only then is it known who owns a replica. Raises Refused."""
    if not await service.until(lambda: service.controller.looks > 0, _FIRST_LOOK_S):
        raise Refused(503, error=f"service '{service.name}' has not looked at its sources yet; nothing was changed")


def _refuse_others(service: Service, replica: ReplicaId) -> None:
    owner = service.owner_of(replica)
    if owner not in (None, NAME):
        text = f"replica '{replica}' of service '{service.name}' belongs to {owner}; change it there, or use another id"
        raise Refused(409, error=text, source=owner)


async def _until_serving(
    daemon: Daemon, service: Service, replica: ReplicaId, entry: RawEntry, described: Described, timeout_s: float
) -> None:
    """Returns once it serves as described. Raises Refused with the reason why it does not."""
    record = daemon.shared.api.of(service.name)

    def is_served() -> bool:
        tenure = service.current(replica)
        if tenure is None or tenure.sighting.source != NAME:
            return False
        place: object = tenure.sighting.tunnel or tenure.sighting.socket
        said = tenure.notes.overrides
        return place == described.place and said == described.overrides and service.is_up_to_date(tenure)

    began = time.monotonic()
    await service.until(lambda: is_served() or record.entries.get(replica) is not entry, timeout_s)
    if record.entries.get(replica) is not entry:
        raise Refused(409, error=f"'{replica}' was changed or deleted by another request while this one waited")
    if not is_served():
        row = _row(daemon, service, replica)
        waited = time.monotonic() - began
        state = "is served as it was before" if row["state"] == "serving" else f"is {row['state']}"
        why = f": {row['reason']}" if row["reason"] else ""
        raise Refused(504, error=f"'{replica}' {state} after {waited:.1f} s{why}; it stays as it was put", replica=row)


def _row(daemon: Daemon, service: Service, replica: ReplicaId) -> Replica:
    """The replica as `status` has it; its present occupant, not one that is still leaving. Raises Refused."""
    rows = view.replicas(daemon, service, only=replica)
    if not rows:
        raise unknown_replica(service, replica)
    return rows[0]
