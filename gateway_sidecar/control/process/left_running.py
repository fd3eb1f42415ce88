"""What an earlier daemon left running, seen while no daemon runs: by the logs of its children, and by its record.

All of it serves on and is adopted by the next daemon; `stop --all` ends it without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway_sidecar.domain.leaving import LeavePhase
from gateway_sidecar.errors import StateError
from gateway_sidecar.supervision.process import Identity, Process, session_members, writers_below

if TYPE_CHECKING:
    from gateway_sidecar.routers.base import RouterPorts

_START = "`systemctl start gateway-sidecar`"


@dataclass(frozen=True, slots=True)
class LeftRunning:
    """Processes of an earlier daemon.

    nginx: its master, or the dead master of workers that still run.
    routers: process -> slot. ports: where those listen, as far as that was written down.
    small: the nginx of advertised addresses and of API keys.
    ssh_connections: what keeps the tunnels. holders: what keeps the hold's socket open.
    leaves: the phase in which the gateway was leaving, if the next daemon is to go on with that.
    """

    nginx: tuple[Identity, ...] = ()
    routers: Mapping[Identity, str] = field(default_factory=dict)
    ports: Mapping[Identity, RouterPorts] = field(default_factory=dict)
    small: tuple[Identity, ...] = ()
    ssh_connections: tuple[Identity, ...] = ()
    holders: tuple[Identity, ...] = ()
    leaves: LeavePhase | None = None

    def __bool__(self) -> bool:
        return any((self.nginx, self.routers, self.small, self.ssh_connections, self.holders))

    @property
    def pids(self) -> set[int]:
        """All of them, and the workers of nginx."""
        workers = {worker.pid for master in self.nginx for worker in session_members(master)}
        singles = (*self.nginx, *self.routers, *self.small, *self.ssh_connections, *self.holders)
        return workers | {identity.pid for identity in singles}

    def router_in(self, *slots: str) -> Identity | None:
        """A router in the first of these slots that has one; None if there is none."""
        return next((it for slot in slots for it, its_slot in self.routers.items() if its_slot == slot), None)

    def __str__(self) -> str:
        return ", ".join(self._words())

    @property
    def prospect(self) -> str:
        """What it is and what becomes of it, as a clause."""
        leaves = "" if self.leaves is None else f" and goes on leaving (it was {self.leaves})"
        return (
            f"an earlier daemon left {self}: that serves on; the next daemon ({_START}) adopts it{leaves}, "
            "`gateway-sidecar stop --all` ends it"
        )

    def _words(self) -> Iterator[str]:
        yield from (f"nginx (pid {it.pid})" for it in self.nginx)
        yield from (f"the router of {slot} (pid {it.pid})" for it, slot in sorted(self.routers.items(), key=_slot))
        for number, one, many in (
            (len(self.small), "nginx of a replica's own", "nginx of replicas' own"),
            (len(self.ssh_connections), "SSH connection", "SSH connections"),
            (len(self.holders), "process that keeps waiting requests", "processes that keep waiting requests"),
        ):
            if number:
                yield f"{number} {one if number == 1 else many}"


class LeftRouter:
    """A router of an earlier daemon that gets no more requests (an `Ending`)."""

    def __init__(self, process: Process, ports: RouterPorts | None) -> None:
        self.process = process
        self.ports = ports

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.process.running else None

    async def close_client(self) -> None:
        """There are no connections of ours to it."""

    async def stop(self, grace_s: float) -> None:
        """Ends it."""
        await self.process.stop(grace_s=grace_s)


def look_for_left(run_dir: Path, state_dir: Path | None) -> LeftRunning:
    """Looks, and changes nothing. Of processes of another user's only root sees all. Blocks.

    state_dir: None where the configuration does not tell; what the record does not name is then not found.
    """
    logs: dict[str, list[Identity]] = {}
    for directory in (run_dir, state_dir) if state_dir is not None else (run_dir,):
        for log, writers in writers_below(directory / "log").items():
            logs.setdefault(log, []).extend(writers)
    left = LeftRunning(
        nginx=tuple(logs.get("nginx.log", ())),
        routers={it: _slot_of(log) for log, found in logs.items() if log.startswith("router-") for it in found},
        small=tuple(logs.get("peers.log", ())),
        ssh_connections=tuple(it for found in writers_below(run_dir / "tunnels").values() for it in found),
        holders=tuple(logs.get("hold.log", ())),
    )
    record = run_dir / "processes.json"
    return _with_recorded(left, record) if record.exists() else left


def _with_recorded(left: LeftRunning, path: Path) -> LeftRunning:
    """And what the earlier daemon has written down."""
    # To import it takes half a second of CPU: who asks in vain where no daemon ever ran does without.
    from gateway_sidecar.control.state import records

    try:
        record = records.read_record(path)
    except StateError:
        return left
    routers, ports, nginx = dict(left.routers), dict(left.ports), left.nginx
    for rows in record.get("routers", {}).values():
        for row in rows:
            with suppress(StateError):
                saved = records.router_from_json(row)
                if saved.identity is not None and saved.identity.is_alive():
                    routers[saved.identity], ports[saved.identity] = saved.slot, saved.ports
    for identity, service in records.departing_from_json(record, still_there=record.get("routers", {})).items():
        if identity.is_alive():
            routers.setdefault(identity, service)
    with suppress(StateError):
        recorded = records.identity_from_json(record["nginx"]) if record.get("nginx") else None
        if recorded is not None and recorded not in nginx and (recorded.is_alive() or session_members(recorded)):
            nginx = (recorded, *nginx)
    leaves: LeavePhase | None = None
    with suppress(StateError):  # It cannot be read, or was written long ago: the next daemon serves.
        leave = records.leave_from_json(record)
        leaves = None if leave is None else leave.phase
    return replace(left, nginx=nginx, routers=routers, ports=ports, leaves=leaves)


def _slot_of(log: str) -> str:
    return log.removeprefix("router-").removesuffix(".log")


def _slot(item: tuple[Identity, str]) -> str:
    return item[1]
