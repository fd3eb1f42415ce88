"""Makes an OpenAI engine behind a bridge a Dynamo worker: `python shim.py RECORD ALIVE URL MODEL`.

Run by Dynamo's own interpreter, one process for each replica. What the bridge wants to be shown is in the environment.
It registers itself in its own DYN_FILE_KV, which the daemon copies from, and asks the engine over HTTP/1.0, whose
answers end with their connections.

It ends when its record is gone and nothing is in flight; when its engine takes no connection any more; and when no
frontend has held a lock on the file ALIVE for a while.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

KEY_VARIABLE = "GATEWAY_SIDECAR_BRIDGE_KEY"
MODE_VARIABLE = "GATEWAY_SIDECAR_SHIM_MODE"
"""How the frontend is to choose among shims (a name of `RouterMode`), where its own way cannot; else empty."""
ENDPOINT = "gateway.shim.generate"
_LOOK_S = 0.5  # A choice: with `_REFUSALS` a dead engine is out within two seconds; to look costs a `stat`.
_ENGINE_LOOK_S = 30.0
"""Between two looks at an engine that gives no cause for one. The daemon finds a dead one in a second; this is for when
there is no daemon."""
_REFUSALS = 3
"""In a row, half a second apart, until the engine counts as dead."""
_REFUSED_WITHIN_S = 2.0
"""A bridge tries an engine whose queue is full for five seconds before it says that it takes no connection."""
_REFUSED = b'"engine_not_connected"'
_OTHER_KEY = b"this bridge serves the gateway's router only"
"""The bridges have another key than at its start: the daemon starts a shim that knows it."""
_LATE_S = 2.0
"""For how long after its end was decided a request may still come that a busy frontend had sent before."""
_ORPHAN_S = 10.0
"""Without a frontend. One that is started again is there after a second."""
_MOST_LOG_BYTES = 1024 * 1024
"""Each request that fails leaves a traceback there."""
_LONGEST_LINE = 8 * 1024 * 1024
"""A choice: one event of a stream may carry an image or log probabilities; beyond it, it is an error."""
_LONGEST_ERROR = 8000  # Bytes of an engine's refusal that a client is told.
_PLAIN = re.compile(r"[!-~][ -~]{0,500}")


class Engine:
    """The engine behind a bridge."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._prefix = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        self._key = key
        self.is_suspect = False
        self._askers: set[asyncio.Future[Any]] = set()

    @property
    def in_flight(self) -> int:
        """How many requests somebody still waits for."""
        return len(self._askers)

    async def open(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[asyncio.StreamReader, Any]:
        """Asks; what the answer, head and all, is read from. Raises OSError."""
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items() if _PLAIN.fullmatch(value))
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=_LONGEST_LINE)
        head = (
            f"{method} {self._prefix}{path} HTTP/1.0\r\nHost: {self._host}:{self._port}\r\n"
            f"Authorization: Bearer {self._key}\r\n"
            f"{more}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        return reader, writer

    async def refuses(self) -> bool:
        """Whether its bridge says at once that it takes no connection, or not ours; silence says nothing."""
        try:
            async with asyncio.timeout(_REFUSED_WITHIN_S):
                reader, writer = await self.open("GET", "/v1/models")
                try:
                    said = await reader.read(64 * 1024)
                    return _REFUSED in said or _OTHER_KEY in said
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def answer(self, request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        """Dynamo's handler: a request of the OpenAI API in, the pieces of its answer out.

        Dynamo leaves it where it stands, unfinished, when a frontend ends while it takes a piece. So a request is in
        flight for as long as its asker is there.
        """
        left = asyncio.ensure_future(context.async_killed_or_stopped())
        self._askers.add(left)
        left.add_done_callback(self._askers.discard)
        try:
            async for piece in self._answer(request, context, left):
                yield piece
        except (CannotConnect, HttpError):
            self.is_suspect = True
            raise
        finally:
            left.cancel()

    async def _answer(
        self, request: dict[str, Any], context: Any, left: asyncio.Future[Any]
    ) -> AsyncIterator[dict[str, Any]]:
        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        try:
            body = json.dumps({**request, "stream": True}).encode()
            # The names of the request and of its trace: traceparent, tracestate, x-request-id.
            reader, writer = await self.open("POST", path, body, context.trace_headers())
        except OSError as error:
            raise CannotConnect(f"{path}: {error}") from error
        left.add_done_callback(lambda _: writer.close())  # The client is gone, so the engine may stop.
        try:
            await _past_the_head(reader)
            while line := await reader.readline():
                name, _, data = line.partition(b":")
                if name == b"data" and data.strip() == b"[DONE]":
                    return
                if name == b"data":
                    yield json.loads(data)
            if not context.is_stopped():
                raise Disconnected("the engine's answer ended before it was complete")
        except (OSError, asyncio.IncompleteReadError) as error:
            if not context.is_stopped():
                raise Disconnected(f"the engine's answer broke off: {error}") from error
        finally:
            writer.close()


async def _past_the_head(reader: asyncio.StreamReader) -> None:
    """Reads the head of an answer. Raises HttpError for an error of the engine's, CannotConnect for none at all."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise CannotConnect("the engine ended the connection without an answer") from error
    status = int(head.split(None, 2)[1])
    if status == 200:
        return
    said = await reader.read(_LONGEST_ERROR)
    if _REFUSED in said:
        raise CannotConnect("the engine takes no connection")
    if status in (400, 422):
        raise InvalidArgument(_message(said))
    raise HttpError(status, _message(said))


def _message(body: bytes) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _is_locked(path: str) -> bool:
    """Whether a process has a lock on this file. A connection would tell as much, and count as somebody's request."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


async def _until_to_end(record: str, alive: str, engine: Engine) -> None:
    """Returns when nobody needs it any more."""
    frontend_seen = time.monotonic()
    refusals, engine_due = 0, time.monotonic() + _ENGINE_LOOK_S
    while os.path.exists(record):  # noqa: PTH110
        await asyncio.sleep(_LOOK_S)
        if os.fstat(sys.stderr.fileno()).st_size > _MOST_LOG_BYTES:
            os.ftruncate(sys.stderr.fileno(), 0)
        now = time.monotonic()
        if _is_locked(alive):
            frontend_seen = now
        elif now - frontend_seen > _ORPHAN_S:
            return
        if now >= engine_due or engine.is_suspect:
            engine_due = now + _ENGINE_LOOK_S
            engine.is_suspect = await engine.refuses()
            refusals = refusals + 1 if engine.is_suspect else 0
            if refusals >= _REFUSALS:
                return
    await asyncio.sleep(_LATE_S)
    while engine.in_flight and _is_locked(alive):  # Without a frontend nobody is there to be answered.
        await asyncio.sleep(_LOOK_S)


async def _main() -> None:
    record, alive, url, model = sys.argv[1:]
    engine, mode = Engine(url, os.environ.pop(KEY_VARIABLE)), os.environ[MODE_VARIABLE]
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint(ENDPOINT)
    await register_model(
        ModelInput.Text,
        ModelType.Chat | ModelType.Completions,
        endpoint,
        model,
        model,
        worker_type=WorkerType.Aggregated,
        router_config=RouterConfig(getattr(RouterMode, mode)) if mode else None,
        skip_model_assets=True,
    )
    serving = asyncio.ensure_future(endpoint.serve_endpoint(engine.answer, graceful_shutdown=True))
    ending = asyncio.ensure_future(_until_to_end(record, alive, engine))
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    runtime.shutdown()
    await serving
    if not os.path.exists(record):  # noqa: PTH110
        shutil.rmtree(os.environ["DYN_FILE_KV"], ignore_errors=True)


if __name__ == "__main__":
    sys.path.pop(0)  # What lies beside this file is none of Dynamo's.
    from dynamo.llm import (  # type: ignore[import-not-found]
        HttpError,
        ModelInput,
        ModelType,
        RouterConfig,
        RouterMode,
        WorkerType,
        register_model,
    )
    from dynamo.llm.exceptions import (  # type: ignore[import-not-found]
        CannotConnect,
        Disconnected,
        InvalidArgument,
    )
    from dynamo.runtime import DistributedRuntime  # type: ignore[import-not-found]

    asyncio.run(_main())
