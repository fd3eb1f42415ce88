"""Whoever may place a socket may speak from behind it: floods, endless lines and terminal escapes harm nobody else."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc
import pytest

from gateway_sidecar.control.process.watchdog import _STALLED_S
from gateway_sidecar.engines.h2_unary import MOST_STEPS
from tests.contract import engine_replay as replay
from tests.contract.engine_replay import GrpcReplay, HttpReplay, serve_raw
from tests.contract.test_engine_lies import ESCAPES, SETTINGS, frame, repeat, say_and_hold
from tests.system.conftest import StartAs
from tests.system.gateway import Gateway, replica_of
from tests.system.test_waiting import post
from tests.users import ONE, OTHER

pytestmark = pytest.mark.own_users

FLOODS = {
    "ping": say_and_hold(SETTINGS, frame(6, 0, bytes(8)) * 100_000),
    "goaway": say_and_hold(frame(7, 0, bytes(8))),
    "continuation": repeat(SETTINGS + frame(1, 0, b"\x88", 1), frame(9, 0, b"\x88" * 1000, 1) * 60),
}
WHY = {
    "ping": f"more than {MOST_STEPS} pieces",
    "goaway": "GOAWAY",
    "continuation": "header fields",
    "escaping": r"GetServerInfo answers INTERNAL (\x1b]0;x\x07\x1b[2J\n",
}
LONG_LINE = 'vllm:time_to_first_token_seconds_bucket{le="' + "x" * 7 * 1024 * 1024


class Escaping(GrpcReplay):
    """An engine whose errors move the cursor and begin a log line."""

    async def answer(self, path: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if path.endswith("GetServerInfo"):
            await context.abort(grpc.StatusCode.INTERNAL, f'{ESCAPES}\n{{"event": "daemon.stopped"}}\n')
        return await super().answer(path, request, context)


async def test_hostile_engines_harm_nobody(gateway: Gateway, start: StartAs) -> None:
    """The daemon goes on, a good engine serves, and what is shown of the others is one line each."""
    metered = HttpReplay.of("vllm-http")
    metered.answers["/metrics"] = (200, LONG_LINE)
    escaping = GrpcReplay.of("vllm-grpc", replay.VLLM)
    async with AsyncExitStack() as stack:
        for name, talk in FLOODS.items():
            await stack.enter_async_context(serve_raw(gateway.socket(name), talk, OTHER))
        evil = Escaping(escaping.service, escaping.answers, escaping.health, escaping.listed)
        await stack.enter_async_context(evil.serve(gateway.socket("escaping"), OTHER))
        await stack.enter_async_context(metered.serve(gateway.socket("metered"), OTHER))
        await start(ONE, gateway.socket("good"))
        await gateway.until_state("good", "serving")
        await gateway.until_state("metered", "serving")
        await gateway.until(lambda _: any(seen.path == "/metrics" for seen in metered.seen))
        # A busy machine's first question may get no further than its time-out.
        await gateway.until(
            lambda status: all(words in (replica_of(status, name)["reason"] or "") for name, words in WHY.items())
        )
        # Again and again: each is asked on.
        seen = len(evil.called)
        await gateway.until(lambda _: len(evil.called) > seen + 20)
        async with aiohttp.ClientSession() as session:
            code, _ = await post(session, gateway)
        _, shown, _ = await gateway.cli("status")
        _, listed, _ = await gateway.cli("replica", "list")
    assert code == 200
    for text in (shown, listed):
        assert all(line.isprintable() for line in text.split("\n"))
        assert text.count("GetServerInfo answers INTERNAL") == 1
    lines = gateway.log().split("\n")[:-1]
    assert all(line.isprintable() and json.loads(line)["event"] != "daemon.stopped" for line in lines)
    assert gateway.process is not None
    # On a busy machine it waits for a CPU: so many ns say the second of the numbers there.
    starved_s = int(Path(f"/proc/{gateway.process.pid}/schedstat").read_text().split()[1]) / 1e9
    assert sum(event["for_s"] for event in gateway.events("daemon.stalled")) <= starved_s + _STALLED_S
