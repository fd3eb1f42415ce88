"""The liveness connection: kept open to an engine, only to notice at once when the engine ends. The kernel closes it
when the listening process dies, so a dead engine is noticed without a question. It is only a hint: some servers close
idle connections, and the next probe finds them well. Nothing is asked over it. A gRPC server is greeted and
answered as HTTP/2 wants it, since it closes a connection that never becomes one.

An engine that serves one connection at a time cannot have it open for long: it waits *in line* with the requests, and
says at once that nothing will be sent, so the engine closes it when its turn comes. There is never more than one of
them, so it takes one place in the engine's queue and no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

from gateway_sidecar.config import ServiceSettings
from gateway_sidecar.control.replicas.prober import Prober
from gateway_sidecar.control.replicas.tenure import Tenure
from gateway_sidecar.control.workqueue import Key, WorkQueue
from gateway_sidecar.domain.model import ConnectionMode, EngineFacts, Ready
from gateway_sidecar.engines.h2_unary import Broken, Calls
from gateway_sidecar.kinds import ENGINES
from gateway_sidecar.supervision import awake
from gateway_sidecar.supervision.awake import within
from gateway_sidecar.supervision.loops import Tasks
from gateway_sidecar.telemetry.metrics import Metrics

_GAP_S = 0.4
"""Between two connections to an engine, so that one which closes each of them is not busy with them."""
_LONG_S = 2.0
"""A connection that lasted as long was one to an engine that was well."""
_SAME = 0.2
"""Lives that differ by less than this share of one are the same."""

_MOST_BYTES = 64 * 1024
"""HTTP/2 servers greet whoever connects, and ping now and then."""


class _LivenessConnection(asyncio.Protocol):
    def __init__(self, on_close: Callable[[], None], http2: Calls | None) -> None:
        self._on_close = on_close
        self._http2 = http2
        self._transport: asyncio.Transport | None = None
        self._bytes_left = _MOST_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._http2 is not None:
            self._transport.write(self._http2.begin(())[0])

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._transport.abort()
        elif self._http2 is not None:
            try:
                self._transport.write(self._http2.feed(data))
            except Broken:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_close()


async def connect_liveness(
    address: str, on_close: Callable[[], None], *, grpc: bool = False, in_line: bool = False
) -> asyncio.Transport:
    """Connects; `on_close` is called once when either side ends the connection. Raises OSError.

    in_line: the engine may close it as soon as it has taken it.
    """
    loop = asyncio.get_running_loop()
    make = partial(_LivenessConnection, on_close, Calls(None) if grpc else None)
    transport, _ = await loop.create_unix_connection(make, address)
    if in_line:
        transport.write_eof()
    return transport


class LivenessConnections:
    """Those to the engines of one service. An engine that may have ended is asked by the prober."""

    def __init__(self, settings: ServiceSettings, queue: WorkQueue[Key], prober: Prober, metrics: Metrics) -> None:
        self._queue = queue
        self._prober = prober
        self._tasks = Tasks(settings.name, metrics)
        self.reconfigure(settings)

    def reconfigure(self, settings: ServiceSettings) -> None:
        """Takes a new time-out."""
        self._timeout_s = settings.health.timeout_s

    async def close(self, tenures: Iterable[Tenure]) -> None:
        """Ends all of them, and those that are being opened."""
        await self._tasks.close()
        for tenure in tenures:
            self.disconnect(tenure)

    def disconnect(self, tenure: Tenure) -> None:
        """Its engine is watched no more."""
        connection, tenure.probe.liveness.connection = tenure.probe.liveness.connection, None
        if connection is not None:
            connection.abort()

    def keep_up(self, tenure: Tenure) -> None:
        """Makes sure that the engine's end will be noticed at once, or within a moment; while it is drained, not."""
        probe, liveness = tenure.probe, tenure.probe.liveness
        if tenure.drain.requested or tenure.gone:
            self.disconnect(tenure)
            return
        if not isinstance(probe.result, Ready) or not tenure.bridge.linked or tenure.address is None:
            return
        if probe.access.tls:
            return  # A connection without a handshake is an error to it, or holds up a server of one thread.
        if liveness.connection is not None or liveness.is_connecting:
            return
        now = awake.now()
        is_being_asked = probe.task is not None or probe.due <= now
        pause_s = max(liveness.due - now, _GAP_S if is_being_asked else 0.0)
        if pause_s > 0:
            self._queue.add_after(tenure.key, pause_s)
        else:
            liveness.is_connecting = True
            opening = self._open(tenure, tenure.address, probe.result.facts)
            self._tasks.spawn(opening, again=partial(self._queue.add, tenure.key))

    async def _open(self, tenure: Tenure, address: str, facts: EngineFacts) -> None:
        liveness, grpc = tenure.probe.liveness, facts.connection_mode is ConnectionMode.GRPC
        in_line = ENGINES[facts.runtime_type].single_connection
        ended = self._left_the_line if in_line else partial(self._ended, opened=awake.now())
        try:
            async with within(self._timeout_s):
                connection = await connect_liveness(
                    address,
                    self._tasks.guarded(partial(ended, tenure), again=partial(self._prober.suspect, tenure)),
                    grpc=grpc,
                    in_line=in_line,
                )
        except BlockingIOError:  # Its queue is full: it is busy, and somebody listens.
            self._left_the_line(tenure)
            return
        except (OSError, TimeoutError):
            liveness.due = awake.now() + _GAP_S
            self._prober.suspect(tenure)
            return
        finally:
            liveness.is_connecting = False
        if tenure.address is None or tenure.drain.requested:
            connection.abort()
        else:
            liveness.connection = connection

    def _left_the_line(self, tenure: Tenure) -> None:
        """The engine has taken the connection, or has ended: the next one will show which."""
        tenure.probe.liveness.connection = None
        if tenure.address is not None and not tenure.drain.requested:
            tenure.probe.liveness.due = awake.now() + _GAP_S
            self._queue.add_after(tenure.key, _GAP_S)

    def _ended(self, tenure: Tenure, *, opened: float) -> None:
        if tenure.address is None or tenure.drain.requested:
            return  # We closed it ourselves.
        now, liveness = awake.now(), tenure.probe.liveness
        liveness.connection = None
        life_s, usual_s = now - opened, liveness.life_s
        liveness.life_s = life_s
        if life_s >= _LONG_S and abs(life_s - usual_s) < _SAME * usual_s:
            liveness.due = now  # The server closes idle connections after this time: no news.
            self._queue.add(tenure.key)
            return
        liveness.due = now + (0 if life_s >= _LONG_S else _GAP_S)
        self._prober.suspect(tenure)
