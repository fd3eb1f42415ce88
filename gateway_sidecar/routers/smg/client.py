"""SMG's REST API.

What is relied on was measured on smg 1.13: a POST is accepted (202) long before the worker is ready, `GET
/workers/{id}` shows one that the list does not, a DELETE makes it `draining` at once, and `failed` is final.

Three things are corrected here, so that no other module has to know of them:

* a gRPC worker is `ready` before SMG has its model's tokenizer, and requests get 503 until then: not ready yet;
* `external` means a hosted provider to SMG; a plain OpenAI-compatible server is `generic`;
* a TensorRT-LLM gRPC worker gets a tokenizer only if its labels name one, whatever they name.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from gateway_sidecar.domain.model import (
    ConnectionMode,
    Registered,
    WorkerSpec,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import RouterRefused, RouterUnavailable, WorkerExists
from gateway_sidecar.routers.answers import body_within
from gateway_sidecar.routers.smg.ranks import Rank, RankBook
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within

_MOST_ANSWER_BYTES = 5 * 1024 * 1024
"""SMG says some 1.5 KiB of each worker, and of each data-parallel rank: 3,400 of them. To read so much JSON takes less
than 50 ms, in which nothing else is done."""
_ROWS_AT_ONCE = 500
"""A list of thousands is read in parts of 5 ms, so that others have their turn."""
_CONNECTION_ATTEMPTS = 3
_ENGINES = frozenset({"sglang", "vllm", "trtllm", "mlx", "tokenspeed"})
"""The engines that SMG has a name for."""
_GENERIC = "generic"
"""SMG's name for all others."""
_NAMELESS = "unknown"
"""The model of a worker that names none. No request for a model reaches it."""
_MODES = {mode.value: mode for mode in ConnectionMode}
_ID_IN_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SmgClient:
    """The REST API of one SMG process."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float,
        health: Mapping[str, int],
        loads_tokenizers: bool = True,
        bridge_key: str = "",
    ) -> None:
        self._url = url
        self._bridge_key = bridge_key
        self._health = dict(health)
        self._loads_tokenizers = loads_tokenizers
        self._tokenizers: set[str] = set()
        self._ranks = RankBook()
        self._list_raw = b""
        self._list: Mapping[str, Registered] = {}
        self._list_reusable = False
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker; the data-parallel ranks of an engine are one, as ready as the least ready of them."""
        raw = await self._ask_raw("GET", "/workers")
        if raw == self._list_raw and self._list_reusable:
            return self._list  # At rest nothing changes: do not read the same list again and again.
        answer = _as_object(raw, f"{self._url}/workers")
        rows = answer.get("workers")
        if not isinstance(rows, list):
            raise RouterUnavailable(f"{self._url}/workers: no list of workers in the answer")
        by_url: dict[str, list[Rank]] = {}
        reusable = True
        for number, row in enumerate(rows, 1):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            listed = _read_worker(row)
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
        body: dict[str, object] = {
            "url": spec.url,
            "worker_type": spec.worker_type.value,
            "connection_mode": spec.connection_mode.value,
            "runtime_type": spec.runtime_type if spec.runtime_type in _ENGINES else _GENERIC,
            "labels": _labels(spec),
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
            answer = await self._ask("POST", "/workers", body)
        except RouterRefused as refusal:
            if refusal.status == 409:
                named = _ID_IN_TEXT.search(str(refusal))
                raise WorkerExists(spec.url, named[0] if named else None) from refusal
            raise
        worker_id = answer.get("worker_id")
        if not isinstance(worker_id, str):
            raise RouterUnavailable(f"{self._url}/workers: accepted {spec.url} without a worker_id")
        self._ranks.submitted(spec.url, worker_id)
        return worker_id

    def _key_of(self, spec: WorkerSpec) -> str | None:
        """What SMG shows the worker: a bridge wants its own key, and shows the engine's itself."""
        if not spec.bridged:
            return spec.api_key
        return self._bridge_key if spec.connection_mode is ConnectionMode.HTTP else None

    async def find(self, worker_id: str) -> Registered | None:
        """One worker, even if it is not listed yet; None if the router does not know it."""
        try:
            return await self._with_tokenizer(_read_worker(await self._ask("GET", f"/workers/{worker_id}")))
        except RouterRefused as refusal:
            if refusal.status != 404:
                raise
        url = self._ranks.url_of(worker_id)
        return None if url is None else (await self.list_workers()).get(url)

    async def deregister(self, worker_id: str) -> None:
        """Asks for a worker's removal: no new requests from now on. An unknown worker is no error."""
        for each in self._ranks.ids_of(worker_id):
            try:
                await self._ask("DELETE", f"/workers/{each}")
            except RouterRefused as refusal:
                if refusal.status != 404:
                    raise

    async def close(self) -> None:
        """Closes the client's connections; the next question opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _with_tokenizer(self, worker: Registered) -> Registered:
        """A gRPC worker whose model has no tokenizer yet is not ready, even if the list says so."""
        if (
            not self._loads_tokenizers
            or worker.connection_mode is not ConnectionMode.GRPC
            or worker.status is not WorkerStatus.READY
            or (worker.model_id or _NAMELESS) in self._tokenizers
        ):
            return worker
        rows = (await self._ask("GET", "/v1/tokenizers")).get("tokenizers")
        if isinstance(rows, list):
            self._tokenizers = {str(row.get("name")) for row in rows if isinstance(row, dict)}
        if (worker.model_id or _NAMELESS) in self._tokenizers:
            return worker
        return replace(worker, status=WorkerStatus.NOT_READY, note="the router has not loaded its tokenizer yet")

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        return _as_object(await self._ask_raw(method, path, body), f"{method} {self._url}{path}")

    async def _ask_raw(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """The body of a good answer. Raises RouterRefused for a 4xx, RouterUnavailable for anything else."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(),  # `within` is the one.
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=64),
                json_serialize=lambda body: orjson.dumps(body).decode(),
            )
        what = f"{method} {self._url}{path}"
        try:
            async with (
                within(self._timeout_s),
                self._session.request(method, self._url + path, json=body) as response,
            ):
                raw, status = await body_within(response, _MOST_ANSWER_BYTES), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RouterUnavailable(f"{what}: {printable(str(error)) or type(error).__name__}") from error
        if raw is None:
            raise RouterUnavailable(f"{what}: the answer is larger than {_MOST_ANSWER_BYTES} bytes")
        if status in (401, 403):
            raise RouterUnavailable(f"{what}: {status}, this is not the router with our key")
        if status >= 500:
            raise RouterUnavailable(f"{what}: {status}: {_error_text(raw)}")
        if status >= 400:
            raise RouterRefused(f"{method} {path}: {status}: {_error_text(raw)}", status)
        return raw


def _as_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        answer = orjson.loads(raw) if raw else {}
    except ValueError as error:
        raise RouterUnavailable(f"{what}: no JSON: {raw[:200]!r}") from error
    if not isinstance(answer, dict):
        raise RouterUnavailable(f"{what}: not a JSON object: {raw[:200]!r}")
    return answer


def _labels(spec: WorkerSpec) -> dict[str, str]:
    if spec.runtime_type == "trtllm" and spec.connection_mode is ConnectionMode.GRPC:
        return {"tokenizer_path": spec.model_id or "engine", **spec.labels}
    return dict(spec.labels)


def _error_text(raw: bytes) -> str:
    """What an error answer says: `{"error": TEXT}` on the admin routes, `{"error": {"message": TEXT}}` elsewhere."""
    try:
        answer = orjson.loads(raw)
    except ValueError:
        return printable(raw[:200].decode("utf-8", "replace"))
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return printable(str(error.get("message", error) if isinstance(error, dict) else error), 500)


def _read_worker(row: object) -> Registered:
    """One row of SMG's list. Raises RouterUnavailable where it has not the form that SMG 1.13 gives it."""
    if not isinstance(row, dict):
        raise RouterUnavailable(f"a worker that is not an object: {row!r:.200}")
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
            model_id=None if row.get("model_id") == _NAMELESS else _text(row.get("model_id")),
            bootstrap_port=row.get("bootstrap_port") if isinstance(row.get("bootstrap_port"), int) else None,
            kv_connector=_text(row.get("kv_connector")),
            kv_role=_text(row.get("kv_role")),
            kv_engine_id=_text(row.get("kv_engine_id")),
            note=printable(_text(job.get("message")) or "") or None if isinstance(job, dict) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RouterUnavailable(f"a worker of an unknown form: {printable(str(error))}: {row!r:.300}") from error


def _as_rank(worker: Registered, row: Mapping[str, object]) -> Rank:
    number, of = row.get("dp_rank"), row.get("dp_size")
    return Rank(worker, number, of) if isinstance(number, int) and isinstance(of, int) else Rank(worker)


def _base_url(url: str) -> str:
    """`URL@rank` of a data-parallel worker -> URL."""
    base, at, rank = url.rpartition("@")
    return base if at and rank.isdigit() else url


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
