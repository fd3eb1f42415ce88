"""Keeps the files that tell other routers of a service's replicas, and says when a replica is out of all of them.

A replica enters when its engine is ready and bridged, and stays until it has to leave, whatever the service's own
router does: no file shrinks because a router is started again. A replica that drains is first out of the files, then
`read_within_s` passes, and only then do connections at its bridge count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gateway_sidecar.config import EndpointsSettings, ServiceSettings
from gateway_sidecar.control.replicas.registry import Registry
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.endpoints import FileEndpoint, document
from gateway_sidecar.domain.model import ConnectionMode, Ready
from gateway_sidecar.domain.planning import worker_spec
from gateway_sidecar.files.shared import keep_shared
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.loops import beating, heartbeat
from gateway_sidecar.supervision.own_thread import DISK_S, OwnThread
from gateway_sidecar.telemetry.logs import get_logger
from gateway_sidecar.telemetry.metrics import Metrics

_LOOK_S = 2.0
"""How soon a file that somebody else changed or removed is written again."""


class EndpointFiles:
    """The files of one service. `problem`: why one of them is not as it should be; empty if all are."""

    def __init__(self, settings: ServiceSettings, tenures: Registry, queue: WorkQueue[Key], metrics: Metrics) -> None:
        self._service = settings.name
        self._files = settings.endpoints
        self._dropped: list[EndpointsSettings] = []
        self._tenures = tenures
        self._queue = queue
        self._metrics = metrics
        self._logger = get_logger(service=settings.name)
        self._thread = OwnThread(f"endpoints-{settings.name}")
        self._rows: dict[int, FileEndpoint] = {}
        self._out_at: dict[int, float] = {}
        self._changed = asyncio.Event()
        self.problem = ""

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes new settings; a file that is not named any more is emptied."""
        paths = {file.path for file in settings.endpoints}
        self._dropped += [file for file in self._files if file.path not in paths]
        if settings.endpoints != self._files:
            self._out_at.clear()  # What a router reads from a new file nobody knows yet.
        self._files = settings.endpoints
        self._changed.set()

    def note(self, tenure: Tenure) -> None:
        """Takes note of what was found of it."""
        before, now = self._rows.get(tenure.key), None
        if self._files:
            now = _row(tenure, before)
        if now != before:
            if now is None:
                del self._rows[tenure.key]
            else:
                self._rows[tenure.key] = now
            if now is not None and not now.draining:
                self._out_at.pop(tenure.key, None)
            self._changed.set()

    def forget(self, tenure: Tenure) -> None:
        """Its stay is over."""
        self._out_at.pop(tenure.key, None)
        if self._rows.pop(tenure.key, None) is not None:
            self._changed.set()

    def out_in_s(self, tenure: Tenure) -> float | None:
        """In how many seconds no router sends there any more because of a file; None while a file still lists it."""
        if not self._files:
            return 0.0
        row, out_at = self._rows.get(tenure.key), self._out_at.get(tenure.key)
        if out_at is None or (row is not None and not row.draining):
            return None
        return max(0.0, out_at + max(file.read_within_s for file in self._files) - awake.now())

    async def run(self) -> None:
        """Runs until cancelled. The files stay."""
        while True:
            heartbeat()
            self._changed.clear()
            if self._files or self._dropped:
                await beating(self._look())
            await awake.until_set(self._changed, _LOOK_S)

    async def _look(self) -> None:
        if not self._tenures.has_all:
            return  # Who is there is not known yet: what an earlier daemon wrote stays.
        rows = dict(self._rows)
        troubles = [trouble for file in self._files if (trouble := await self._keep(file, list(rows.values())))]
        for file in list(self._dropped):
            if not await self._keep(file, []):
                self._dropped.remove(file)
        self._tell("; ".join(troubles))
        if not troubles:
            self._note_written(rows)

    def _note_written(self, rows: dict[int, FileEndpoint]) -> None:
        """The files say this now, or have said it for longer."""
        for tenure in self._tenures:
            row = rows.get(tenure.key)
            if (row is None or row.draining) and tenure.key not in self._out_at:
                self._out_at[tenure.key] = awake.now()
                self._queue.add(tenure.key)

    async def _keep(self, file: EndpointsSettings, rows: Sequence[FileEndpoint]) -> str:
        """Writes the file, if that is needed; why that failed, empty if it did not."""
        try:
            written = await self._thread.run(partial(keep_file, self._service, file, rows), patience_s=DISK_S)
        except TimeoutError:
            return f"{file.path}: its disk does not answer"
        except (OSError, LookupError) as error:
            return f"{file.path}: {getattr(error, 'strerror', None) or error}"
        if written:
            serving = sum(not it.draining for it in rows)
            self._logger.info("endpoints.written", path=file.path, serving=serving, draining=len(rows) - serving)
        return ""

    def _tell(self, problem: str) -> None:
        self._metrics.endpoints_up.labels(self._service).set(not problem)
        if problem and problem != self.problem:
            self._logger.error("endpoints.not_written", reason=problem)
        self.problem = problem

    async def withdraw(self) -> None:
        """The service is no more, or all of it ends: nobody is to be sent here."""
        for file in (*self._files, *self._dropped):
            if trouble := await self._keep(file, []):
                self._logger.error("endpoints.not_written", reason=trouble)
        self._thread.end()


def keep_file(service: str, file: EndpointsSettings, rows: Sequence[FileEndpoint]) -> bool:
    """Sees that a file says this; whether it had to be written. Raises OSError, LookupError. Blocks."""
    here = [it if file.host is None else replace(it, host=file.host) for it in rows]
    text = document(file.format, service, here, file.fields)
    return keep_shared(Path(file.path), text, int(file.mode, 8), file.group)


def _row(tenure: Tenure, before: FileEndpoint | None) -> FileEndpoint | None:
    """The tenure as it is to stand in the files; None if it is not to."""
    facts, bridge, url = tenure.probe.facts, tenure.bridge, tenure.base_url
    if facts is None or url is None or facts.connection_mode is not ConnectionMode.HTTP:
        return None
    if tenure.leaving is not None:
        return None if before is None else replace(before, draining=True)
    if not (bridge.linked or (bridge.peer is not None and bridge.peer.direct)):
        return None
    view = tenure.view()
    is_restored = tenure.probe.result is None and bridge.linked  # An earlier daemon found it ready.
    if (
        before is None
        and not is_restored
        and not (isinstance(tenure.probe.result, Ready) and view.wanted and view.reachable)
    ):
        return None
    host, _, port = url.removeprefix("http://").rpartition(":")
    first = worker_spec(facts, url, tenure.notes.overrides)
    names = [first.model_id, *(name for name in tenure.urls.values() if name)]
    models = tuple(dict.fromkeys(name for name in names if name))
    return FileEndpoint(str(tenure.replica), host.strip("[]"), int(port), models, facts.runtime_type, first.worker_type)
