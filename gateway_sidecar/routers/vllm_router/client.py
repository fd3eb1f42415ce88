"""vllm-router's REST API, as measured on 0.1.17.

With `models: one` it asks a worker for its health before it answers, tells no id, and knows neither models nor roles;
with `many` (`--enable-igw`) it adds what it is told, at once. In both a worker is done when it is answered, is removed
by its URL, and then finishes what it has. There is no key: who reaches its port controls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal
from urllib.parse import quote, unquote

from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerSpec, WorkerStatus, WorkerType
from gateway_sidecar.domain.planning import base_of
from gateway_sidecar.errors import RouterError, RouterRefused, WorkerExists
from gateway_sidecar.routers.http import RestApi, malformed, rows_of, text_or_none
from gateway_sidecar.routers.one_model import refuse_another_model
from gateway_sidecar.routers.vllm_router.paths import HEADERS
from gateway_sidecar.supervision.awake import within

_MODELS_S = 0.5
"""How long an engine may take to name its models: long before the router would be given up."""
_NAMELESS = "unknown"
"""The model of a worker that was told of none."""


class VllmRouterClient:
    """The API of one vllm-router. A worker's id is its URL.

    objection: why the router cannot take a worker of this type, spoken to like this. bridge_key: what it shows bridges.
    """

    def __init__(
        self,
        url: str,
        objection: Callable[[WorkerType, ConnectionMode], str | None],
        bridge_key: str,
        *,
        timeout_s: float,
        models: Literal["one", "many"],
    ) -> None:
        self._api = RestApi(url, "", timeout_s, {HEADERS.bridge_key: bridge_key})
        self._objection = objection
        self._many = models == "many"
        self._first = asyncio.Lock()
        self._model: str | None = None
        self._may_ask = not self._many

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker. With one model, of which the list says nothing, that model is each worker's."""
        workers = [_read(row) for row in rows_of(await self._api.ask("GET", "/workers"), self._api.url)]
        if workers and self._model is None and self._may_ask:
            self._may_ask = False  # An engine may be slow, and the list must not be. The next registration tells.
            self._model = next(iter(await self._models()), None)
        if not self._many:
            workers = [replace(worker, model_id=_name_in(worker.url) or self._model) for worker in workers]
        return {worker.url: worker for worker in workers}

    async def register(self, spec: WorkerSpec) -> str:
        """Has a worker added; its id. Raises WorkerExists if the URL is taken."""
        objection = self._objection(spec.worker_type, spec.connection_mode)
        if objection is not None:
            raise RouterRefused(objection, 400)
        if self._many:
            more: dict[str, object] = {"worker_type": spec.worker_type.value, "model_id": spec.model_id}
            more |= {"priority": spec.priority, "cost": spec.cost, "bootstrap_port": spec.bootstrap_port}
            await self._add(spec.url, {name: value for name, value in more.items() if value is not None})
        else:
            await self._add_to_one_model(spec)
        return spec.url

    async def find(self, worker_id: str) -> Registered | None:
        """One worker; None if the router does not know it."""
        return (await self.list_workers()).get(worker_id)

    async def deregister(self, worker_id: str) -> None:
        """Has a worker removed: no new requests from now on. An unknown worker is no error."""
        try:
            await self._api.ask("DELETE", f"/workers/{quote(worker_id, safe='')}")
        except RouterRefused:
            if await self.find(worker_id) is not None:
                raise

    async def close(self) -> None:
        """Closes the client's connections, for good."""
        await self._api.close()

    async def _add_to_one_model(self, spec: WorkerSpec) -> None:
        """The first worker decides which model it is, so no other is added beside it."""
        async with self._first:
            urls = (await self.list_workers()).keys()
            if not urls:
                await self._add(spec.url, {})
                self._model = spec.model_id
                return
        refuse_another_model(
            spec, urls, await self._models() or [*filter(None, [self._model])], "use router.models: many"
        )
        await self._add(spec.url, {})

    async def _add(self, url: str, more: Mapping[str, object]) -> None:
        try:
            await self._api.ask("POST", "/workers", {"url": url, **more})
        except RouterRefused as refusal:
            if "already exists" in str(refusal):
                raise WorkerExists(url, url) from refusal
            raise

    async def _models(self) -> list[str]:
        """The models that one of its engines names, its first one first; none if that engine does not answer."""
        try:
            async with within(_MODELS_S):
                rows = (await self._api.ask("GET", "/v1/models")).get("data")
        except (RouterError, TimeoutError):
            return []
        return (
            [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row] if isinstance(rows, list) else []
        )


def _name_in(url: str) -> str | None:
    """The name that a worker of a further name of its engine has in its URL."""
    return unquote(url.removeprefix(base_of(url)).removeprefix("/=")) or None


def _read(row: Mapping[str, object]) -> Registered:
    """One row of its list. Raises RouterUnavailable where it has not the form that 0.1.17 gives it."""
    try:
        url, model = str(row["url"]), text_or_none(row.get("model_id"))
        return Registered(
            worker_id=url,
            url=url,
            status=WorkerStatus.READY if row["is_healthy"] is True else WorkerStatus.NOT_READY,
            worker_type=WorkerType(str(row["worker_type"])),
            connection_mode=ConnectionMode.HTTP,
            runtime_type=None,
            model_id=None if model == _NAMELESS else model,
        )
    except (KeyError, ValueError) as error:
        raise malformed(error, row) from error
