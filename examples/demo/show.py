"""The acts of the demo. Each raises DemoFailed if the gateway does not do what it should."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

import aiohttp

from examples.demo.chat import PLEASE, ChatRefused, Load, chat, question
from examples.demo.engines import MLX_MODEL, Engines
from examples.demo.gateway import DemoFailed, Gateway
from examples.demo.watch import Watch
from gateway_sidecar.api.models import Status

MODEL = "tiny"
_TOKEN_S = 0.04
_MOST_CHATS = 20


class Show:
    """One performance, from the first engine to the last."""

    def __init__(self, gateway: Gateway, engines: Engines, watch: Watch, session: aiohttp.ClientSession) -> None:
        self._gateway = gateway
        self._engines = engines
        self._watch = watch
        self._session = session
        self._numbers = itertools.count(1)

    async def run(self, engine: str) -> None:
        """All acts, in order. `engine`: `mlx` adds a real one."""
        await self._start()
        await self._scale_up()
        await self._pair()
        if engine == "mlx":
            await self._mlx()
        await self._drain_under_load()
        await self._kill()
        await self._to_zero_and_back()
        await self._figures()

    def _kind(self, kind: str) -> str:
        """An engine that the router of `chat` can speak to: SMG alone speaks gRPC."""
        return kind if self._gateway.router == "smg" else "sglang-http"

    # -- the acts

    async def _start(self) -> None:
        router = {"smg": "one router (SMG) for each of two services"}.get(
            self._gateway.router, f"a router of kind {self._gateway.router} for the first service, SMG for the second"
        )
        self._act(f"The daemon starts nginx and {router}")
        began = time.monotonic()
        await self._gateway.start()
        await self._watch.until(lambda status: bool(status["ready"]), "the daemon is ready", within_s=60)
        addresses = ", ".join(f"{name} at {self._gateway.url(name)}" for name in self._gateway.ports)
        print(f"  ready after {time.monotonic() - began:.1f} s: {addresses}")

    async def _scale_up(self) -> None:
        other = "vLLM over gRPC" if self._gateway.router == "smg" else "another one"
        self._act(f"Two engines appear as sockets: SGLang over HTTP, which loads for a second, and {other}")
        await self._engines.start("chat", "r1", "sglang-http", model=MODEL, load_s=1, token_interval_s=_TOKEN_S)
        await self._engines.start("chat", "r2", self._kind("vllm-grpc"), model=MODEL, token_interval_s=_TOKEN_S)
        await self._watch.states("chat", r1="serving", r2="serving")
        print("  A simulated engine answers with its own name and then counts. Streamed, through the service address:")
        waiting = {"r1", "r2"}
        for _ in range(_MOST_CHATS):  # the router draws lots between HTTP and gRPC
            waiting -= {(await self._chat("chat", MODEL)).split()[0]}
            if not waiting:
                return
        raise DemoFailed(f"{_MOST_CHATS} chats, and none was answered by {waiting}")

    async def _pair(self) -> None:
        self._act("A prefill and a decode engine: they say themselves what they are, and the router pairs them")
        kind, pace = "sglang-http", {"model": MODEL, "token_interval_s": _TOKEN_S}
        prefill = await self._engines.start("pair", "p1", kind, role="prefill", bootstrap_port=8998, **pace)
        decode = await self._engines.start("pair", "d1", kind, role="decode", **pace)
        await self._watch.states("pair", p1="serving", d1="serving")
        await self._chat("pair", MODEL)
        if not (prefill.ledger.received and decode.ledger.received):
            raise DemoFailed("the chat did not go through both engines of the pair")
        print(f"  requests seen: p1 {prefill.ledger.received}, d1 {decode.ledger.received}")

    async def _mlx(self) -> None:
        self._act("A real engine beside the simulated ones: MLX over gRPC, with a tiny model of random weights")
        await self._engines.start_real("chat", "mlx", "mlx")
        await self._real_states("chat", within_s=120, r1="serving", r2="serving", mlx="serving")
        print("  What it writes is random, and really generated:")
        await self._chat("chat", MLX_MODEL, tokens=24)

    async def _drain_under_load(self) -> None:
        self._act("Four clients ask without pause; meanwhile two more engines come, and r1 is drained and stopped")
        async with Load(self._session, self._gateway.url("chat"), MODEL, clients=4) as load:
            for name, kind in (("r3", "vllm-http"), ("r4", self._kind("trtllm-grpc"))):
                await self._engines.start("chat", name, kind, model=MODEL, token_interval_s=_TOKEN_S)
            await self._all_serving("r1", "r2", "r3", "r4")
            await asyncio.sleep(1)
            await self._cli("drain", "chat", "r1")
            await self._engines.stop("r1")
            await self._all_serving("r2", "r3", "r4")
        print(f"  {load.answered} chats answered, {len(load.failures)} failed")
        if load.failures or not load.answered:
            raise DemoFailed(f"chats failed during scaling: {load.failures[:3] or 'none was answered'}")

    async def _kill(self) -> None:
        self._act("An engine dies and leaves its socket file behind")
        await self._engines.fleet.kill("r3")
        await self._watch.until(lambda status: chat_state(status, "r3") == "unreachable", "r3 is taken out")
        print("  Its socket is removed:")
        (self._gateway.sockets("chat") / "r3.sock").unlink()
        await self._all_serving("r2", "r4")

    async def _to_zero_and_back(self) -> None:
        self._act("Down to zero and back")
        simulated = [engine.spec.name for engine in self._engines.fleet if engine.spec.name.startswith("r")]
        await self._engines.stop(*simulated)
        await self._all_serving()
        try:
            await self._chat("chat", MODEL)
        except ChatRefused as refused:
            print(f"  a client is told: {refused}")
        else:
            raise DemoFailed("a chat was answered, and there is no engine")
        for name, kind in (("r1", "sglang-http"), ("r2", self._kind("vllm-grpc"))):
            await self._engines.start("chat", name, kind, model=MODEL, token_interval_s=_TOKEN_S)
        await self._all_serving("r1", "r2")
        await self._chat("chat", MODEL)

    async def _figures(self) -> None:
        self._act("What the daemon says of itself")
        await self._cli("status")
        async with self._session.get(f"http://127.0.0.1:{self._gateway.metrics_port}/metrics") as response:
            lines = (await response.text()).splitlines()
        wanted = ("gateway_sidecar_registrations_total", "gateway_sidecar_nginx_reloads_total")
        print("", *(f"  {line}" for line in lines if line.startswith(wanted)), sep="\n")

    # -- what they have in common

    def _act(self, title: str) -> None:
        print(f"\n== {next(self._numbers)}. {title}", flush=True)
        self._watch.restart_clock()

    async def _all_serving(self, *names: str) -> None:
        """Waits until just these simulated replicas of `chat` serve, whatever the real one does."""

        def there(status: Status) -> bool:
            rows = {name: state for name, state in _states(status).items() if name != "mlx"}
            return rows == dict.fromkeys(names, "serving")

        await self._watch.until(there, f"chat: {', '.join(names) or 'nobody'} serving")

    async def _real_states(self, service: str, *, within_s: float, **states: str) -> None:
        """Waits until the service has just these replicas in these states, and says else what the real ones said."""
        try:
            await self._watch.states(service, within_s=within_s, **states)
        except DemoFailed as failed:
            raise DemoFailed(f"{failed}\n{self._engines.last_words()}") from None

    async def _chat(self, service: str, model: str, tokens: int = 12, text: str = PLEASE) -> str:
        """One chat, shown token by token; the whole answer."""
        parts: list[str] = []
        try:
            async for token in chat(self._session, self._gateway.url(service), model, tokens, text):
                print(token if parts else f"    > {token}", end="", flush=True)
                parts.append(token)
        except (aiohttp.ClientError, ValueError) as error:
            raise DemoFailed(f"a chat with {service} failed: {error!r}") from error
        print(flush=True)
        if len(parts) < 2:
            raise DemoFailed(f"the answer came in {len(parts)} pieces; it should be streamed")
        return "".join(parts)

    async def _cli(self, *arguments: str) -> None:
        print(f"  $ gateway-sidecar {' '.join(arguments)}", flush=True)
        for line in (await self._gateway.cli(*arguments)).splitlines():
            print(f"    {line}" if line else "", flush=True)


def _states(status: Status) -> dict[str, str]:
    chats = [service for service in status["services"] if service["name"] == "chat"]
    return {row["id"]: row["state"] for service in chats for row in service["replicas"]}


def chat_state(status: Status, replica: str) -> str | None:
    """The state of a replica of `chat`."""
    return _states(status).get(replica)


def bin_directory_here() -> str:
    """Where our commands are, from the directory the demo was started in."""
    binary = Path(sys.executable).parent
    return os.path.relpath(binary) if binary.is_relative_to(Path.cwd()) else str(binary)


def what_next(gateway: Gateway, engines: Engines) -> str:
    """Commands to try while the demo runs, from the directory it was started in."""
    bin_directory = bin_directory_here()
    sidecar = f"{bin_directory}/gateway-sidecar"
    body = json.dumps(question(MODEL, 20), separators=(",", ":"))
    control = f"curl -s --unix-socket {engines.control}"
    return f"""
Try, in another terminal, from this directory:

  export GATEWAY_SIDECAR_CONFIG={gateway.config}
  {sidecar} status
  {sidecar} plan
  {sidecar} drain chat r1
  {sidecar} resume chat r1
  curl -N {gateway.url("chat")}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'
  curl -s http://127.0.0.1:{gateway.metrics_port}/metrics | grep ^gateway_sidecar
  curl -s http://127.0.0.1:{gateway.metrics_port}/readyz

One more engine, until Ctrl-C; one that hangs, and recovers; one that dies:

  {bin_directory}/python -m examples.simulated --kind vllm-http --socket {gateway.sockets("chat")}/r9.sock
  {control} -X PATCH -d '{{"hang": true}}' http://engines/engines/r2
  {control} -X PATCH -d '{{"hang": false}}' http://engines/engines/r2
  {control} -X DELETE 'http://engines/engines/r1?kill=true'

The daemon's log: {gateway.log}"""
