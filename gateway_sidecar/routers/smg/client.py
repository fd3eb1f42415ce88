"""SMG's REST API.

What is relied on was measured on smg 1.13: a POST is accepted (202) long before the worker is ready, `GET
/workers/{id}` shows one that the list does not, a DELETE makes it `draining` at once, and `failed` is final.

Four things are corrected here, so that no other module has to know of them:

* a gRPC worker is `ready` before SMG has its model's tokenizer, and requests get 503 until then: not ready yet;
* `external` means a hosted provider to SMG; a plain OpenAI-compatible server is `generic`;
* a TensorRT-LLM gRPC worker gets a tokenizer only if its labels name one, whatever they name;
* with `--dp-aware` SMG lists one worker for each data-parallel rank, `URL@rank`, each with an id of its own: they are
  one here. The id that a registration was answered with is gone once the ranks are there, and to remove one removes no
  other.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway_sidecar.domain.mesh import mark_of, marked, unmarked
from gateway_sidecar.domain.model import (
    ConnectionMode,
    Registered,
    WorkerSpec,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import RouterRefused, RouterUnavailable, WorkerExists
from gateway_sidecar.routers.http import RestApi, as_object, malformed, rows_of, text_or_none
from gateway_sidecar.routers.smg import mesh
from gateway_sidecar.supervision import awake

_ROWS_AT_ONCE = 500
"""A list of thousands is read in parts of 5 ms, so that others have their turn."""
_CONNECTION_ATTEMPTS = 3
"""SMG's own default, 20, leaves what does not answer pending for a long time; an engine has just been probed."""
_ENGINES = frozenset({"sglang", "vllm", "trtllm", "mlx", "tokenspeed"})
"""The engines that SMG has a name for."""
_GENERIC = "generic"
"""SMG's name for all others."""
_NAMELESS = "unknown"
"""The model of a worker that names none. No request for a model reaches it."""
_MODES = {mode.value: mode for mode in ConnectionMode}
_ID_IN_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PATIENCE_S = 5.0  # SMG has a worker, or what was changed of one, after some 20 ms; a crowd of a hundred after 1.3 s.
_CLAIM_POLL_S = 0.02  # As long as SMG takes for one worker (19 ms).
_LEAST_READY_FIRST = (
    WorkerStatus.FAILED,
    WorkerStatus.DRAINING,
    WorkerStatus.PENDING,
    WorkerStatus.NOT_READY,
    WorkerStatus.READY,
)


@dataclass(frozen=True, slots=True)
class InMesh:
    """What a client must know of a router in a mesh: its service, and what its own workers are labelled with."""

    service: str
    owner: str


class SmgClient:
    """The REST API of one SMG process.

    In a mesh, URLs at the router have marks (`domain/mesh.py`), and those that the rest of the daemon knows have none.
    A worker that came from another gateway keeps its URL as it is: nobody here stands behind that one.
    """

    def __init__(
        self,
        api: RestApi,
        *,
        health: Mapping[str, int],
        loads_tokenizers: bool = True,
        bridge_key: str = "",
        in_mesh: InMesh | None = None,
    ) -> None:
        self._in_mesh = in_mesh
        self._imports: set[str] = set()
        self._api = api
        self._bridge_key = bridge_key
        self._health = dict(health)
        self._loads_tokenizers = loads_tokenizers
        self._tokenizers: set[str] = set()
        self._ranks = RankBook()
        self._list_raw = b""
        self._list: Mapping[str, Registered] = {}
        self._list_reusable = False

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker; the data-parallel ranks of an engine are one, as ready as the least ready of them."""
        raw = await self._api.ask_raw("GET", "/workers")
        if raw == self._list_raw and self._list_reusable:
            return self._list  # At rest nothing changes: do not read the same list again and again.
        rows = rows_of(as_object(raw, f"{self._api.url}/workers"), self._api.url)
        by_url: dict[str, list[Rank]] = {}
        reusable = True
        for number, row in enumerate(rows, 1):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            listed = self._as_known(row)
            worker = await self._with_tokenizer(listed)
            reusable = reusable and worker is listed
            by_url.setdefault(worker.url, []).append(_as_rank(worker, row))
        found: dict[str, Registered] = {}
        now = awake.now()
        for url, ranks in by_url.items():
            found[url], rests = self._ranks.join(url, ranks, now)
            reusable = reusable and rests
        self._list_raw, self._list, self._list_reusable = raw, found, reusable
        return found

    async def register(self, spec: WorkerSpec) -> str:
        """Asks for a worker; its id. Accepted is not done. Raises WorkerExists if the URL is taken."""
        if spec.connection_mode is ConnectionMode.TCP:
            raise RouterRefused(f"{spec.url}: SMG has no workers of NVIDIA Dynamo; use `router: {{type: dynamo}}`", 400)
        if self._in_mesh is not None and not spec.replica:
            text = "router.mesh is for replicas without an address of their own; leave `advertise` or router.mesh out"
            raise RouterRefused(f"{spec.url}: {text}", 400)
        body: dict[str, object] = {
            "url": self._url_of(spec),
            "worker_type": spec.worker_type.value,
            "connection_mode": spec.connection_mode.value,
            "runtime_type": spec.runtime_type if spec.runtime_type in _ENGINES else _GENERIC,
            "labels": _labels(spec) | ({} if self._in_mesh is None else {mesh.OWNER: self._in_mesh.owner}),
            "max_connection_attempts": _CONNECTION_ATTEMPTS,
            "health": self._health,
        }
        name = spec.named or (spec.model_id if spec.connection_mode is ConnectionMode.HTTP else None)
        optional = {
            "model_id": spec.model_id,
            "bootstrap_port": spec.bootstrap_port,
            "kv_connector": spec.kv_connector,
            "kv_role": spec.kv_role,
            "kv_engine_id": spec.kv_engine_id,
            "api_key": self._key_of(spec),
            "priority": spec.priority,
            "cost": spec.cost,
            # It heeds model_id for some engines only, and takes what an engine lists while it is registered.
            "models": [{"id": name}] if name else None,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        try:
            answer = await self._api.ask("POST", "/workers", body)
        except RouterRefused as refusal:
            if refusal.status == 409:
                named = _ID_IN_TEXT.search(str(refusal))
                raise WorkerExists(spec.url, named[0] if named else None) from refusal
            raise
        worker_id = answer.get("worker_id")
        if not isinstance(worker_id, str):
            raise RouterUnavailable(f"{self._api.url}/workers: accepted {spec.url} without a worker_id")
        self._ranks.submitted(spec.url, worker_id)
        return worker_id

    def _url_of(self, spec: WorkerSpec) -> str:
        return spec.url if self._in_mesh is None else marked(spec.url, mark_of(self._in_mesh.service, spec.replica))

    def _key_of(self, spec: WorkerSpec) -> str | None:
        """What SMG shows the worker: a bridge wants its own key, and shows the engine's itself."""
        if not spec.bridged:
            return spec.api_key
        return self._bridge_key if spec.connection_mode is ConnectionMode.HTTP else None

    async def find(self, worker_id: str) -> Registered | None:
        """One worker, even if it is not listed yet; None if the router does not know it."""
        try:
            return await self._with_tokenizer(self._as_known(await self._api.ask("GET", f"/workers/{worker_id}")))
        except RouterRefused as refusal:
            if refusal.status != 404:
                raise
        url = self._ranks.url_of(worker_id)
        return None if url is None else (await self.list_workers()).get(url)

    async def deregister(self, worker_id: str) -> None:
        """Asks for a worker's removal: no new requests from now on. An unknown worker is no error."""
        for each in self._ranks.ids_of(worker_id):
            try:
                if each in self._imports:
                    await self._claim(each)
                await self._api.ask("DELETE", f"/workers/{each}")
            except RouterRefused as refusal:
                if refusal.status != 404:
                    raise

    async def _claim(self, worker_id: str) -> None:
        """Makes an import the router's own: what is removed then does not come back. Raises RouterError."""
        assert self._in_mesh is not None
        await self._api.ask("PATCH", f"/workers/{worker_id}", mesh.claim(self._in_mesh.owner))
        deadline = awake.now() + _PATIENCE_S
        while awake.now() < deadline:
            if not mesh.is_import(await self._api.ask("GET", f"/workers/{worker_id}"), self._in_mesh.owner):
                self._imports.discard(worker_id)
                return
            await asyncio.sleep(_CLAIM_POLL_S)

    def _as_known(self, row: Mapping[str, Any]) -> Registered:
        """A row of SMG's list, as the rest of the daemon knows the worker. Raises RouterUnavailable."""
        worker = _read_worker(row)
        if self._in_mesh is None:
            return worker
        if not mesh.is_import(row, self._in_mesh.owner) or self._ranks.url_of(worker.worker_id) is not None:
            return replace(worker, url=unmarked(worker.url))
        self._imports.add(worker.worker_id)
        return worker

    async def close(self) -> None:
        """Closes the client's connections, for good."""
        await self._api.close()

    async def _with_tokenizer(self, worker: Registered) -> Registered:
        """A gRPC worker whose model has no tokenizer yet is not ready, even if the list says so."""
        if (
            not self._loads_tokenizers
            or worker.connection_mode is not ConnectionMode.GRPC
            or worker.status is not WorkerStatus.READY
            or (worker.model_id or _NAMELESS) in self._tokenizers
        ):
            return worker
        rows = (await self._api.ask("GET", "/v1/tokenizers")).get("tokenizers")
        if isinstance(rows, list):
            self._tokenizers = {str(row.get("name")) for row in rows if isinstance(row, dict)}
        if (worker.model_id or _NAMELESS) in self._tokenizers:
            return worker
        return replace(worker, status=WorkerStatus.NOT_READY, note="the router has not loaded its tokenizer yet")


def _labels(spec: WorkerSpec) -> dict[str, str]:
    if spec.runtime_type == "trtllm" and spec.connection_mode is ConnectionMode.GRPC:
        return {"tokenizer_path": spec.model_id or "engine", **spec.labels}
    return dict(spec.labels)


def _read_worker(row: Mapping[str, Any]) -> Registered:
    """One row of SMG's list. Raises RouterUnavailable where it has not the form that SMG 1.13 gives it."""
    try:
        job = row.get("job_status")
        failed = isinstance(job, dict) and job.get("status") == "failed"
        status = WorkerStatus.FAILED if failed and row["status"] == "pending" else WorkerStatus(row["status"])
        runtime, mode = row.get("runtime_type"), row["connection_mode"]
        return Registered(
            worker_id=str(row["id"]),
            url=_base_url(str(row["url"])),
            status=status,
            worker_type=WorkerType(row["worker_type"]),
            # One that somebody else registered may speak what we do not; it is an orphan all the same.
            connection_mode=_MODES.get(mode, ConnectionMode.HTTP),
            # A worker that is still being added has not got its runtime_type yet.
            runtime_type=runtime if runtime in _ENGINES else None,
            model_id=None if row.get("model_id") == _NAMELESS else text_or_none(row.get("model_id")),
            bootstrap_port=row.get("bootstrap_port") if isinstance(row.get("bootstrap_port"), int) else None,
            kv_connector=text_or_none(row.get("kv_connector")),
            kv_role=text_or_none(row.get("kv_role")),
            kv_engine_id=text_or_none(row.get("kv_engine_id")),
            note=printable(text_or_none(job.get("message")) or "") or None if isinstance(job, dict) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(error, row) from error


def _as_rank(worker: Registered, row: Mapping[str, object]) -> Rank:
    number, of = row.get("dp_rank"), row.get("dp_size")
    return Rank(worker, number, of) if isinstance(number, int) and isinstance(of, int) else Rank(worker)


def _base_url(url: str) -> str:
    """`URL@rank` of a data-parallel worker -> URL."""
    base, at, rank = url.rpartition("@")
    return base if at and rank.isdigit() else url


@dataclass(frozen=True, slots=True)
class Rank:
    """One row of SMG's list. `of` is how many ranks the engine has; None for a worker that is not split."""

    worker: Registered
    number: int = 0
    of: int | None = None


class RankBook:
    """What belongs together: the ranks of each engine, and the id that it goes by.

    An engine goes by the id that its registration was answered with, or, registered before our time, by that of its
    first rank.
    """

    def __init__(self) -> None:
        self._submitted: dict[str, str] = {}
        self._ids: dict[str, tuple[str, ...]] = {}
        self._partial_since: dict[str, float] = {}

    def submitted(self, url: str, worker_id: str) -> None:
        """A registration was accepted."""
        self._submitted[url] = worker_id
        self._ids.pop(worker_id, None)

    def url_of(self, worker_id: str) -> str | None:
        """The URL that was registered under this id, if it was by us."""
        return next((url for url, submitted in self._submitted.items() if submitted == worker_id), None)

    def ids_of(self, worker_id: str) -> Sequence[str]:
        """All that has to be removed to remove this worker."""
        return self._ids.get(worker_id, (worker_id,))

    def join(self, url: str, ranks: Sequence[Rank], now: float) -> tuple[Registered, bool]:
        """One worker for the rows of one URL, the least ready of them; and whether that may rest until the rows change.

        An engine that some ranks are missing of, for seconds on end, has failed: it has to be registered anew.
        """
        first = min(ranks, key=lambda rank: rank.number)
        if first.of is None:
            return min(ranks, key=_readiness).worker, True
        worker_id = self._submitted.get(url, first.worker.worker_id)
        self._ids[worker_id] = tuple(rank.worker.worker_id for rank in ranks)
        worker = replace(min(ranks, key=_readiness).worker, worker_id=worker_id)
        missing = first.of - len({rank.number for rank in ranks})
        if missing <= 0 or worker.status is WorkerStatus.DRAINING:
            self._partial_since.pop(url, None)
            return worker, True
        since = self._partial_since.setdefault(url, now)
        status = WorkerStatus.FAILED if now - since >= _PATIENCE_S else WorkerStatus.NOT_READY
        note = f"{missing} of {first.of} data-parallel ranks are missing"
        return replace(worker, status=status, note=note), False


def _readiness(rank: Rank) -> int:
    return _LEAST_READY_FIRST.index(rank.worker.status)
