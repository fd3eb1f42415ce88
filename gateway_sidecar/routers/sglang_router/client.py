"""sglang-router's REST API, as measured on 0.3.2: SMG's, before workers had a status.

A POST is accepted (202) before the worker is there, also for a URL that is taken, whose worker stays as it is. A worker
that is listed is routed to; of one that is not, `GET /workers/{id}` tells how its registration went. A DELETE takes a
worker out within milliseconds, and what it has in flight ends. Requests go to any worker, whatever model they name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerSpec, WorkerStatus, WorkerType
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import RouterRefused, RouterUnavailable
from gateway_sidecar.routers.http import RestApi, malformed, rows_of, text_or_none
from gateway_sidecar.routers.one_model import refuse_another_model

_NAMELESS = "unknown"
"""The model, type and mode of a worker that is not there yet."""


class SglangRouterClient:
    """The REST API of one sglang-router.

    objection: why the router cannot take a worker of this type, spoken to like this. bridge_key: what it shows bridges.
    """

    def __init__(
        self,
        url: str,
        key: str,
        objection: Callable[[WorkerType, ConnectionMode], str | None],
        bridge_key: str,
        timeout_s: float,
    ) -> None:
        self._api = RestApi(url, key, timeout_s)
        self._objection = objection
        self._bridge_key = bridge_key
        self._first = asyncio.Lock()

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker."""
        rows = rows_of(await self._api.ask("GET", "/workers"), self._api.url)
        return {worker.url: worker for worker in map(_read, rows)}

    async def register(self, spec: WorkerSpec) -> str:
        """Asks for a worker; its id. Accepted is not done."""
        objection = self._objection(spec.worker_type, spec.connection_mode)
        if objection is not None:
            raise RouterRefused(objection, 400)
        async with self._first:
            listed = await self.list_workers()
            models = {worker.model_id for worker in listed.values() if worker.model_id}
            if listed:
                refuse_another_model(spec, listed.keys(), models, "give each model a service, or use router.type: smg")
            body = {
                "url": spec.url,
                "worker_type": spec.worker_type.value,
                "runtime": spec.runtime_type,
                "model_id": spec.model_id,
                "labels": dict(spec.labels),
                "bootstrap_port": spec.bootstrap_port,
                "api_key": None if spec.bridged else spec.api_key,
                "priority": spec.priority,
                "cost": spec.cost,
            }
            answer = await self._api.ask(
                "POST", "/workers", {name: value for name, value in body.items() if value is not None}
            )
        worker_id = answer.get("worker_id")
        if not isinstance(worker_id, str):
            raise RouterUnavailable(f"{self._api.url}/workers: accepted {spec.url} without a worker_id")
        return worker_id

    async def find(self, worker_id: str) -> Registered | None:
        """One worker, even if it is not listed yet; None if the router does not know it."""
        try:
            return _read(await self._api.ask("GET", f"/workers/{worker_id}"))
        except RouterRefused as refusal:
            if refusal.status != 404:
                raise
            return None

    async def deregister(self, worker_id: str) -> None:
        """Asks for a worker's removal: no new requests from now on. An unknown worker is no error."""
        with suppress(RouterRefused):
            await self._api.ask("DELETE", f"/workers/{worker_id}")

    async def close(self) -> None:
        """Closes the client's connections, for good."""
        await self._api.close()


def _read(row: Mapping[str, object]) -> Registered:
    """One row of its list. Raises RouterUnavailable where it has not the form that 0.3.2 gives it."""
    try:
        job, kind, model = row.get("job_status"), row["worker_type"], text_or_none(row.get("model_id"))
        port = row.get("bootstrap_port")
        return Registered(
            worker_id=str(row["id"]),
            url=str(row["url"]),
            status=_status(row["is_healthy"], job),
            worker_type=WorkerType.REGULAR if kind == _NAMELESS else WorkerType(str(kind)),
            connection_mode=ConnectionMode.GRPC if row["connection_mode"] == "gRPC" else ConnectionMode.HTTP,
            runtime_type=None,
            model_id=None if model == _NAMELESS else model,
            bootstrap_port=port if isinstance(port, int) else None,
            note=printable(text_or_none(job.get("message")) or "") or None if isinstance(job, dict) else None,
        )
    except (KeyError, ValueError) as error:
        raise malformed(error, row) from error


def _status(is_healthy: object, job: object) -> WorkerStatus:
    if not isinstance(job, dict):
        return WorkerStatus.READY if is_healthy is True else WorkerStatus.NOT_READY
    if job.get("job_type") == "RemoveWorker":
        return WorkerStatus.DRAINING
    return WorkerStatus.FAILED if job.get("status") == "failed" else WorkerStatus.PENDING
