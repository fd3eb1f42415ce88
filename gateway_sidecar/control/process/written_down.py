"""What the daemon writes down for the next one: the processes that run, and who has which port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from gateway_sidecar.config import Settings
from gateway_sidecar.control.process.services import Services
from gateway_sidecar.control.process.shared import Shared
from gateway_sidecar.control.routers.retired import RetiredRouters
from gateway_sidecar.control.state import records
from gateway_sidecar.control.state.writer import Record, RecordWriter
from gateway_sidecar.domain.model import ReplicaId
from gateway_sidecar.errors import StateError
from gateway_sidecar.sources.api import NAME as API
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Loop
from gateway_sidecar.supervision.process import boot_id
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_NOW_S = 1.0  # Requests wait for the router meanwhile.


class WrittenDown:
    """Two records: `processes.json` in run_dir, gone after a reboot as they are, and `leases.json` in state_dir."""

    def __init__(
        self,
        settings: Settings,
        shared: Shared,
        services: Services,
        departing: RetiredRouters,
        leave: Callable[[], Mapping[str, object] | None],
        metrics: Metrics,
    ) -> None:
        self._leave = leave
        self._nginx = shared.nginx
        self._port_leases = shared.leases
        self._fleet = shared.fleet
        self._services = services
        self._departing = departing
        self._logger = get_logger()
        run = Record("run", settings.run_dir / "processes.json", self._processes)
        state = Record("state", settings.state_dir / "leases.json", self._leases)
        self._run, self._state = (
            RecordWriter(record, shared.problems.of(record.name), metrics) for record in (run, state)
        )

    @property
    def loops(self) -> tuple[Loop, ...]:
        """What keeps them written."""
        return self._run.run, self._state.run

    def touch(self) -> None:
        """Something that is written down has changed."""
        self._run.touch()
        self._state.touch()

    async def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the last daemon wrote down: processes, leases."""
        return await self.read_processes(), await self._read(self._state.record)

    async def read_processes(self) -> dict[str, Any]:
        """What the last daemon wrote down of processes. Its key of the bridges is taken over: its routers show it."""
        processes = await self._read(self._run.record)
        try:
            earlier = records.bridge_key_from_json(processes)
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
            return processes
        if earlier is not None:
            self._nginx.take_over_key(earlier)
        return processes

    async def write_processes(self) -> None:
        """Writes down what runs."""
        await self._run.write()

    async def write_soon(self) -> None:
        """Writes down what runs, and what is about to. A disk that hangs does not keep a router from being started."""
        with suppress(TimeoutError):
            async with within(_NOW_S):
                await self._run.write()

    async def flush_leases(self) -> None:
        """Who has which port, and who drains, has been written down, or could not be: `status` says that then."""
        await self._state.flush()

    async def write_all(self) -> None:
        """Writes both, however long that takes, within the writers' patience."""
        await asyncio.gather(self._run.write(), self._state.write())

    def remove(self) -> None:
        """Nothing is left to take up."""
        with suppress(OSError):  # A disk that cannot be written: what is left says nothing that lives.
            for writer in (self._run, self._state):
                writer.record.path.unlink(missing_ok=True)

    async def _read(self, record: Record) -> dict[str, Any]:
        try:
            return await record.read()
        except StateError as error:
            self._logger.warning("state.ignored", reason=str(error))
            return {}

    def _processes(self) -> dict[str, object]:
        nginx = self._nginx.process
        return {
            "nginx": records.identity_to_json(nginx.identity) if nginx is not None and nginx.running else None,
            "bridge_key": self._nginx.bridge_key,
            "routers": {
                name: [records.router_to_json(saved) for saved in service.slots.saved()]
                for name, service in self._services.by_name().items()
            },
            "leave": self._leave(),
            "departing": records.departing_to_json(self._departing.identities),
        }

    def _leases(self) -> dict[str, object]:
        services = self._services.by_name()
        return {
            "boot_id": boot_id(),
            "services": {n: [records.tenure_to_json(t) for t in s.saved()] for n, s in services.items()},
            "resting": records.resting_to_json(self._port_leases),
            "told": {} if self._fleet is None else dict(self._fleet.ports.told),
            "models": {n: list(s.hold_policy.models) for n, s in services.items()},
        }


def api_replicas_before(leases: Mapping[str, Any]) -> dict[str, list[ReplicaId]]:
    """The replicas that the earlier daemon had because they were put over the API."""
    return {
        str(name): [
            ReplicaId(str(row.get("replica")))
            for row in rows
            if isinstance(row, dict) and row.get("source") == API and not row.get("leaving")
        ]
        for name, rows in leases.get("services", {}).items()
    }
