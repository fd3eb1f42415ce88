"""What a daemon that starts would do, without doing it: engines are asked what they are, and that is all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from gateway_sidecar.api.models import Action
from gateway_sidecar.config import ServiceSettings, Settings, load_overrides
from gateway_sidecar.control.process.left_running import LeftRunning
from gateway_sidecar.control.replicas.notes import open_path
from gateway_sidecar.control.state.api_replicas import read_entries
from gateway_sidecar.domain.model import Overrides, Ready, ReplicaId
from gateway_sidecar.domain.planning import Register, describe, worker_spec
from gateway_sidecar.domain.printable import counted
from gateway_sidecar.engines.probe import EngineProbe
from gateway_sidecar.errors import ConfigError, StateError
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.nginx.config import SUCCESSOR
from gateway_sidecar.nginx.server import engine_behind
from gateway_sidecar.sources.build import given_to, source_of
from gateway_sidecar.sources.entry import ApiRecord, RawEntry
from gateway_sidecar.sources.listing import Sighting
from gateway_sidecar.sources.placed import OwnSockets

_AT_ONCE = 32  # A choice: well below the 1,024 descriptors that a process has by default.


async def dry_run(settings: Settings, left: LeftRunning) -> list[Action]:
    """The actions of a daemon that starts now beside what is `left`, in order, each with its service and replica ('-'
    for all).
    """
    links = _links_of(settings.run_dir) if left.nginx else {}
    bridges = f"nginx with {len(settings.bridges.ports)} bridges on {settings.bridges.host}"
    actions = [_row("-", "-", f"adopt {bridges} (pid {left.nginx[0].pid})" if left.nginx else f"start {bridges}")]
    try:
        entries = {**await asyncio.to_thread(read_entries, settings.state_dir / "replicas.json")}
        if settings.store is not None:
            entries |= await asyncio.to_thread(_of_the_store, settings.state_dir)
    except StateError as error:
        actions.append(_row("-", "-", f"nothing for replicas that were put over the admin API: {error}"))
        entries = {}
    for service in settings.services:
        router = left.router_in(service.name, service.name + SUCCESSOR)
        kind = service.router.type
        how = f"start {kind}" if router is None else f"adopt {kind} (pid {router.pid})"
        if ROUTERS[kind].is_nginx:
            how = "have nginx balance over its replicas"
        actions.append(_row(service.name, "-", f"{how} and serve it at {service.listen}"))
        known = links if router is not None or ROUTERS[kind].is_nginx else {}
        actions += await _service_plan(service, ApiRecord(dict(entries.get(service.name, {}))), settings, known)
    for address in settings.addresses:
        models = f"{counted(len(address.models), 'model')} of {', '.join(address.services)}"
        actions.append(_row(address.name, "-", f"serve {models} at {address.listen}"))
    return actions


def _of_the_store(state_dir: Path) -> Mapping[str, Mapping[ReplicaId, RawEntry]]:
    """What an earlier daemon knew of the store, which is what the next one begins with. Raises StateError."""
    from gateway_sidecar.control.fleet.replicas import read_remembered

    return read_remembered(state_dir)


def _links_of(run_dir: Path) -> dict[Path, int]:
    """Where the bridges lead that an earlier daemon left: socket -> port."""
    links = [link for link in (run_dir / "bridges").glob("*.sock") if link.stem.isdigit() and link.is_symlink()]
    return {engine_behind(link.readlink()): int(link.stem) for link in links}


def _row(service: str, replica: str, action: str) -> Action:
    return {"service": service, "replica": replica, "action": action}


async def _service_plan(
    service: ServiceSettings, record: ApiRecord, settings: Settings, links: Mapping[Path, int]
) -> list[Action]:
    own = OwnSockets((settings.run_dir, settings.state_dir))
    given = given_to(service, lambda tunnel: Path(f"/{tunnel.owner}"), own, record)
    listing = await source_of(service, given).look()
    if listing.blind:
        return [_row(service.name, "-", f"nothing for its replicas: {listing.blind}")]
    unseen = [_row(service.name, "-", f"nothing for {source}: {why}") for source, why in listing.unseen.items()]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(sighting: Sighting) -> str:
        if (port := links.get(sighting.place)) is not None:
            return f"adopt, with its bridge on port {port}"
        async with slots:
            return await _replica_plan(service, sighting, settings.peers.interface)

    found = await asyncio.gather(*(one(sighting) for sighting in listing.present.values()))
    rows = [_row(service.name, replica, action) for replica, action in zip(listing.present, found, strict=True)]
    return unseen + rows + [_row(service.name, name, f"refuse: {reason}") for name, reason in listing.refused.items()]


async def _replica_plan(service: ServiceSettings, sighting: Sighting, interface: str) -> str:
    if sighting.tunnel is not None:
        return f"open an SSH tunnel to {sighting.tunnel}, ask the engine, then bridge it"
    try:
        handle = open_path(sighting.place)
    except OSError as error:
        return f"wait: cannot open {sighting.place}: {error.strerror}"
    try:
        overrides = sighting.overrides or Overrides()
        if sighting.notes:
            overrides = load_overrides(sighting.notes.path, os.fstat(handle).st_uid)
        address = f"/proc/self/fd/{handle}"
        access = overrides.access(service.access())
        result = await EngineProbe().identify(address, timeout_s=service.probe.timeout_s, access=access)
    except ConfigError as error:
        return f"wait until its notes are fixed: {error.problems[0]}"
    finally:
        os.close(handle)
    if isinstance(result, Ready):
        scheme = result.facts.connection_mode.value
        peer = overrides.peer
        step = describe(Register(worker_spec(result.facts, f"{scheme}://{peer or '<bridge>'}", overrides)))
        if peer is None:
            return f"bridge, then {step}"
        return step if peer.direct else f"bridge at {peer} on {interface}, then {step}"
    return f"wait, without a bridge: {type(result).__name__.lower()}: {result.reason}"
