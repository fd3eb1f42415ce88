"""Simulated engines in a process of their own: `python -m bench.engine_host`, driven by JSON lines on its pipes.

    {"id": 1, "do": "start", "engines": [SETTINGS, ...]}   -> {"id": 1, "listening_at": [SECONDS, ...]}
    {"id": 2, "do": "stop", "name": "r1", "grace_s": 5}     -> {"id": 2}
    {"id": 3, "do": "behave", "name": "r1", "changes": {}}  -> {"id": 3}
    {"id": 4, "do": "counts"}                               -> {"id": 4, "counts": {"r1": {...}}}

Requests are served side by side; an answer that failed is `{"id", "error"}`. It ends when its input does. Instants are
of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from examples.simulated.fleet import Fleet


async def _start(fleet: Fleet, settings: Mapping[str, Any]) -> float:
    """Start one engine; the instant it began to listen, or a fraction of a millisecond later."""
    await fleet.start(settings)
    delay_s = settings.get("listen_delay_s")
    if delay_s:
        # The engine's own timer is set in the next turn of the loop; ours after it, so that it fires after it.
        await asyncio.sleep(0)
        await asyncio.sleep(float(delay_s))
    return time.monotonic()


async def _do(fleet: Fleet, ask: Mapping[str, Any]) -> dict[str, Any]:
    match ask["do"]:
        case "start":
            return {"listening_at": await asyncio.gather(*[_start(fleet, each) for each in ask["engines"]])}
        case "stop":
            await fleet.stop(ask["name"], grace_s=ask["grace_s"], unlink=True)
            return {}
        case "behave":
            fleet[ask["name"]].behave(**ask["changes"])
            return {}
        case "counts":
            return {"counts": {engine.spec.name: engine.ledger.as_dict() for engine in fleet}}
        case other:
            raise ValueError(f"cannot do {other!r}")


async def _answer(fleet: Fleet, line: bytes) -> None:
    ask = json.loads(line)
    try:
        answer = await _do(fleet, ask)
    except (ValueError, KeyError, OSError) as error:
        answer = {"error": repr(error)}
    print(json.dumps({"id": ask["id"], **answer}), flush=True)


async def _run() -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    fleet, answers = Fleet(), set[asyncio.Task[None]]()
    async for line in reader:
        task = asyncio.create_task(_answer(fleet, line))
        answers.add(task)
        task.add_done_callback(answers.discard)
    for engine in list(fleet):
        await engine.kill()


if __name__ == "__main__":
    asyncio.run(_run())
