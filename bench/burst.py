"""Figures: many requests for one engine at the same moment. They are counted, not timed.

burst    1,000 chats at once, a connection of its own each, for one HTTP engine whose queue of connections holds 128
         (asyncio's and most servers' own choice), and one chat after them. A chat fails if it is not answered 200 and
         whole. `more` is what the engine began beyond one request for each chat.
streams  200 streams at once for one gRPC engine that wants an API key: how many of them the engine has under way at the
         same time, of 10 seconds each. nginx, which shows the key, gets all of them over one connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from bench.chat import MODEL, PATH, chat, flaw
from bench.engines import EngineHost, EngineKind, settings
from bench.gateway import Ours, running_gateway
from bench.place import scratch_directory
from bench.report import Row, Scale
from bench.wire import ExchangeFailed

NAME = "burst"
_CHATS, _STREAMS = 1000, 200
_TOKENS = 100
_KEY = "sekrit"


async def run(scale: Scale) -> list[Row]:
    """Five bursts, two with `--quick`; the streams once."""
    return [await _bursts(scale.pick(5, 2)), await _streams()]


async def _bursts(rounds: int) -> Row:
    flaws: list[str] = []
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            await engines.start(settings(ours.socket("r1"), name="r1", model=MODEL, token_interval_s=0.05))
            await ours.until_serving("r1")
            for _ in range(rounds):
                found = await asyncio.gather(*(_flaw(ours, tokens=2, stream=False) for _ in range(_CHATS)))
                flaws += filter(None, [*found, await _flaw(ours, tokens=2, stream=False)])
            begun = int((await engines.counts())["r1"]["received"])
    sent = rounds * (_CHATS + 1)
    more = begun - (sent - len(flaws))
    return Row(
        NAME, f"{rounds} x {_CHATS} chats at once, a queue of 128: failed", "0", "-",
        f"{len(flaws)} of {sent}, {more} more begun", f"{len(flaws)} failed", not flaws,
        {"sent": sent, "failed": len(flaws), "begun_by_the_engine": begun, "failures": flaws[:20]},
    )  # fmt: skip


async def _streams() -> Row:
    most = 0
    with scratch_directory() as directory:
        async with EngineHost(directory / "engines.log") as engines, running_gateway() as ours:
            key, notes = ours.socket("r1").with_suffix(".key"), ours.socket("r1").with_suffix(".yaml")
            key.touch(0o600)
            key.write_text(_KEY)
            notes.write_text(f"api_key_file: {key.name}\n")
            engine = settings(ours.socket("r1"), EngineKind.VLLM_GRPC, name="r1", model=MODEL, token_interval_s=0.1)
            await engines.start(engine | {"require_key": _KEY})
            await ours.until_serving("r1")
            asked = [asyncio.create_task(_flaw(ours, tokens=_TOKENS, stream=True)) for _ in range(_STREAMS)]
            while not all(it.done() for it in asked) and most < _STREAMS:
                most = max(most, int((await engines.counts())["r1"]["in_flight"]))
                await asyncio.sleep(0.05)
            flaws = [it for it in await asyncio.gather(*asked) if it is not None]
    return Row(
        NAME, f"{_STREAMS} gRPC streams through the nginx that shows a key", f"{_STREAMS} at once, 0 failed", "-",
        f"{most} at once, {len(flaws)} failed", f"{most} at once", most == _STREAMS and not flaws,
        {"streams": _STREAMS, "at_once": most, "failed": len(flaws), "failures": flaws[:20]},
    )  # fmt: skip


async def _flaw(ours: Ours, *, tokens: int, stream: bool) -> str | None:
    async with ours.client() as client:
        with suppress(ExchangeFailed):
            return flaw(
                await client.ask("POST", PATH, chat(tokens=tokens, stream=stream)), tokens=tokens, stream=stream
            )
    return "no whole answer"
