"""The frontend of Dynamo, told of its workers by files and asked over HTTP which of them it has.

Measured on ai-dynamo 1.6.1: `/health` lists every instance that it found, and says `healthy` without any;
`/v1/models/MODEL/ready` says whether requests for a model are answered. An entry that is deleted is out within 20 ms,
and what is in flight there goes on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from gateway_sidecar.domain.model import (
    ENTRIES_LABEL,
    ConnectionMode,
    Registered,
    WorkerSpec,
    WorkerStatus,
    WorkerType,
)
from gateway_sidecar.domain.printable import printable
from gateway_sidecar.errors import ProcessError, RouterRefused, RouterUnavailable, WorkerExists
from gateway_sidecar.files import dynamo_entries as entries
from gateway_sidecar.files.dynamo_entries import Entry
from gateway_sidecar.routers.base import LaunchCommand, find_program
from gateway_sidecar.routers.dynamo.inside import shim
from gateway_sidecar.routers.dynamo.settings import INSTALL
from gateway_sidecar.routers.http import Connections, as_object
from gateway_sidecar.supervision.process import Identity, Process

_MOST_ANSWER_BYTES = 16 * 1024 * 1024
"""Some 300 bytes of each instance."""
_LAST_WORDS_BYTES = 2000  # As long as a router's message (`LONGEST_MESSAGE`): the end of a traceback.


class DynamoClient:
    """One frontend: the records of its workers in `directory`, and its API at `port`.

    python: Dynamo's interpreter, and the environment that shims run in.
    """

    def __init__(self, port: int, directory: Path, timeout_s: float, python: LaunchCommand, bridge_key: str) -> None:
        self._port, self._directory = port, directory
        self._timeout_s = timeout_s
        self._python = python
        self._bridge_key = bridge_key
        self._connections = Connections()

    async def list_workers(self) -> Mapping[str, Registered]:
        """Worker URL -> worker, ready once the frontend has found it and answers for its model."""
        found = await self._instances()
        records = await self._read_records()
        try:
            listed = await asyncio.to_thread(self._judge, records, found)
        except OSError as error:
            raise RouterUnavailable(f"{error.filename}: {error.strerror}") from error
        for model in {worker.model_id for worker in listed.values() if worker.status is WorkerStatus.READY}:
            if model is not None and not await self._is_ready(model):
                listed = {
                    url: _unready(worker) if worker.model_id == model else worker for url, worker in listed.items()
                }
        if any(worker.status is WorkerStatus.PENDING for worker in listed.values()):
            await self._keep_up()
        return listed

    async def register(self, spec: WorkerSpec) -> str:
        """Writes a worker down, and starts its shim if it needs one; its id."""
        if (objection := objection_to(spec)) is not None:
            raise RouterRefused(f"{spec.url}: {objection}", 400)
        for known_id, known in (await self._read_records()).items():
            if known["url"] == spec.url:
                raise WorkerExists(spec.url, known_id)
        worker_id = secrets.token_hex(8)
        record: Entry = {
            "url": spec.url,
            "worker_type": spec.worker_type,
            "connection_mode": spec.connection_mode,
            "runtime_type": spec.runtime_type,
            "model_id": spec.named or spec.model_id,
            "leaves": False,
        }
        if spec.connection_mode is ConnectionMode.TCP:
            record |= {"source": spec.labels[ENTRIES_LABEL], "address": urlsplit(spec.url).netloc, "shim": None}
            await self._write(worker_id, record)
            await self._keep_up()
            return worker_id
        process = await self._start_shim(worker_id, spec)
        source = str(entries.shim_directory(self._directory, worker_id))
        record |= {"source": source, "address": None, "shim": astuple(process.identity)}
        try:
            await self._write(worker_id, record)
        except RouterUnavailable:
            process.send(signal.SIGTERM)
            raise
        return worker_id

    async def find(self, worker_id: str) -> Registered | None:
        """One worker; None if there is no record of it."""
        return next((it for it in (await self.list_workers()).values() if it.worker_id == worker_id), None)

    async def deregister(self, worker_id: str) -> None:
        """Takes a worker's entries away: no new requests from now on.

        Its record goes when the frontend has lost sight of it, and then its shim, when nothing is in flight there.
        """
        record = (await self._read_records()).get(worker_id)
        if record is not None:
            await self._write(worker_id, record | {"leaves": True})
            await self._keep_up()

    async def close(self) -> None:
        """Closes the client's connections, for good. Shims go on."""
        await self._connections.close()

    # -- files

    async def _read_records(self) -> dict[str, Entry]:
        try:
            return await asyncio.to_thread(entries.records, self._directory)
        except OSError as error:
            raise RouterUnavailable(f"{error.filename}: {error.strerror}") from error

    async def _write(self, worker_id: str, record: Entry) -> None:
        try:
            await asyncio.to_thread(entries.write_record, self._directory, worker_id, record)
        except OSError as error:
            raise RouterUnavailable(f"{error.filename}: {error.strerror}") from error

    async def _keep_up(self) -> None:
        try:
            await asyncio.to_thread(entries.keep_up, self._directory)
        except OSError as error:
            raise RouterUnavailable(f"{error.filename}: {error.strerror}") from error

    def _judge(self, records: Mapping[str, Entry], found: frozenset[int]) -> dict[str, Registered]:
        """Worker URL -> worker, ready if the frontend has found it. Blocks."""
        listed = {}
        now = entries.now_of_files()
        for worker_id, record in records.items():
            status, note = WorkerStatus.PENDING, None
            is_found = not found.isdisjoint(entries.instances(Path(record["source"]), now))
            if record["leaves"] and not is_found:
                entries.forget(self._directory, worker_id)
                continue
            if record["leaves"]:
                status = WorkerStatus.DRAINING
            elif record["shim"] is not None and not Identity(*record["shim"]).is_alive():
                status, note = WorkerStatus.FAILED, f"its shim ended: {self._last_words(worker_id)}"
            elif is_found:
                status = WorkerStatus.READY
            listed[record["url"]] = Registered(
                worker_id,
                record["url"],
                status,
                WorkerType(record["worker_type"]),
                ConnectionMode(record["connection_mode"]),
                record["runtime_type"],
                model_id=record["model_id"],
                note=note,
            )
        return listed

    def _last_words(self, worker_id: str) -> str:
        try:
            log = (entries.shim_directory(self._directory, worker_id) / "log").read_bytes()[-_LAST_WORDS_BYTES:]
        except OSError:
            return "it left no log"
        lines = log.decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1], 500) if lines else "it said nothing"

    async def _start_shim(self, worker_id: str, spec: WorkerSpec) -> Process:
        own = entries.shim_directory(self._directory, worker_id)
        argv = [
            shim.__file__,
            entries.record_path(self._directory, worker_id),
            entries.alive_path(self._directory),
            spec.url,
            spec.named or spec.model_id,
        ]
        env = {**self._python.env, "DYN_FILE_KV": str(own), shim.KEY_VARIABLE: self._bridge_key}
        try:
            python = await asyncio.to_thread(find_program, self._python.argv[0], INSTALL)
            own.mkdir(parents=True)
            log = os.open(own / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            return await Process.spawn([str(python), *map(str, argv)], log_fd=log, env=env)
        except (OSError, ProcessError) as error:
            raise RouterUnavailable(f"the shim of {spec.url} cannot be started: {error}") from error

    # -- the API

    async def _instances(self) -> frozenset[int]:
        """The ids of all that the frontend has found."""
        rows = (await self._ask("/health")).get("instances")
        if not isinstance(rows, list):
            raise RouterUnavailable(f"http://127.0.0.1:{self._port}/health: no list of instances in the answer")
        return frozenset(row["instance_id"] for row in rows if isinstance(row, dict) and "instance_id" in row)

    async def _is_ready(self, model: str) -> bool:
        return (await self._ask(f"/v1/models/{quote(model, safe='/')}/ready")).get("ready") is True

    async def _ask(self, path: str) -> dict[str, Any]:
        """A JSON object, whatever its status is. Raises RouterUnavailable."""
        what = f"http://127.0.0.1:{self._port}{path}"
        _, raw = await self._connections.ask("GET", what, self._timeout_s, _MOST_ANSWER_BYTES)
        return as_object(raw, what)


def _unready(worker: Registered) -> Registered:
    """The frontend does not answer for its model yet, or any more."""
    is_half = worker.worker_type is not WorkerType.REGULAR  # A pair is complete or not, which the service knows.
    return (
        worker if is_half or worker.status is not WorkerStatus.READY else replace(worker, status=WorkerStatus.PENDING)
    )


def objection_to(spec: WorkerSpec) -> str | None:
    """Why the frontend cannot have this worker, and the cure; None if it can."""
    if spec.connection_mode is ConnectionMode.GRPC:
        return "Dynamo's frontend speaks no engine's gRPC; serve HTTP, or use `router: {type: smg}`"
    if spec.connection_mode is ConnectionMode.HTTP and spec.worker_type is not WorkerType.REGULAR:
        return (
            f"a {spec.worker_type} worker must be a Dynamo worker itself (`dynamo` in its notes); for plain engines use"
            " `router: {type: smg}`"
        )
    if (spec.named or spec.model_id) is None:
        return "its engine names no model, by which Dynamo routes; write `model: NAME` in its notes"
    return None
