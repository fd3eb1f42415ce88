"""The acts of the demo with real engines: vLLM on a CPU, as `make vllm` installs it, with a tiny random model.

Random weights write nonsense, but always the same: at temperature 0 two names of one model write the same, and an
adapter writes something else.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from examples.demo.chat import PLEASE, ChatRefused, Load
from examples.demo.engines import RealEngine
from examples.demo.gateway import DemoFailed, replicas_of
from examples.demo.show import Show, chat_state
from examples.vllm_engine import ADAPTER_NAME
from gateway_sidecar.api.models import Status
from gateway_sidecar.domain.metrics_text import samples

_NAMES = ("alpha", "beta")
_LATE = "late"
_STARTS_WITHIN_S = 300.0
_RELISTED_WITHIN_S = 60.0  # the daemon reads an engine's names every 30 s
_HUNG_WITHIN_S, _KILLED_WITHIN_S = 15.0, 10.0
_CALM_S = 3.0
_CORE = "VLLM::EngineCor"  # 15 bytes are what the kernel keeps of a name
_CONNECTOR, _ROLES = "NixlConnector", ("kv_producer", "kv_consumer")
_PAIRED_CHATS, _ANSWERED_WITHIN_S = 4, 120.0
_LONGER_THAN_A_BLOCK = PLEASE * 16  # of 128 tokens, which are bytes
_COUNTED_WITHIN_S, _LOOK_S = 30.0, 0.5
_TRANSFERS = "vllm:nixl_xfer_time_seconds_count"


class VllmShow(Show):
    """One performance with real vLLM engines alone, two at a time."""

    async def run(self, engine: str) -> None:
        """All acts, in order."""
        await self._start()
        http, grpc = await self._one_of_each()
        await self._names(http)
        await self._hang(grpc)
        await self._hang(http)
        await self._die(grpc, "dead")
        await self._engines.start("chat", "s1", "vllm-http", model="alpha")
        await self._watch.until(lambda status: chat_state(status, "s1") == "serving", "s1 serves")
        await self._die(http, "unreachable")
        for each in (http, grpc):
            await each.stop()
            each.socket.unlink(missing_ok=True)
        await self._transfer("p1", "d1", grpc=False)
        await self._transfer("p2", "d2", grpc=True)
        await self._figures()

    async def _one_of_each(self) -> tuple[RealEngine, RealEngine]:
        self._act(f"Two vLLM engines of one model: over HTTP with the names {' and '.join(_NAMES)}, and over gRPC")
        names = ("--served-model-name", *_NAMES)
        models = self._gateway.directory / "models"
        http = await self._engines.start_real(
            *("chat", "v1", "vllm", *names, "--lora-modules", f"{ADAPTER_NAME}={models / ADAPTER_NAME}"),
            VLLM_ALLOW_RUNTIME_LORA_UPDATING="True",
        )
        await self._serving("chat", v1="serving")
        # Over gRPC an engine tells its first name only.
        self._note("chat", "v2", model=[*_NAMES])
        grpc = await self._engines.start_real("chat", "v2", "vllm", "--grpc", *names)
        await self._serving("chat", v1="serving", v2="serving")
        return http, grpc

    async def _names(self, http: RealEngine) -> None:
        self._act(f"Every name is answered, and the adapter {ADAPTER_NAME} by itself; one more is loaded meanwhile")
        await self._routed("v2", {*_NAMES})
        await self._routed("v1", {*_NAMES, ADAPTER_NAME})
        said = {name: await self._chat("chat", name) for name in (*_NAMES, ADAPTER_NAME)}
        if said["alpha"] != said["beta"]:
            raise DemoFailed("alpha and beta are one model, and answered differently")
        if said[ADAPTER_NAME] == said["alpha"]:
            raise DemoFailed(f"{ADAPTER_NAME} was answered by the model without the adapter")
        path = str(self._gateway.directory / "models" / ADAPTER_NAME)
        await http.post("/v1/load_lora_adapter", {"lora_name": _LATE, "lora_path": path})
        await self._routed("v1", {*_NAMES, ADAPTER_NAME, _LATE})
        if await self._chat("chat", _LATE) != said[ADAPTER_NAME]:
            raise DemoFailed(f"{_LATE} is the adapter {ADAPTER_NAME} again, and answered differently")
        await http.post("/v1/unload_lora_adapter", {"lora_name": _LATE})
        await self._routed("v1", {*_NAMES, ADAPTER_NAME})

    async def _hang(self, engine: RealEngine) -> None:
        self._act(f"The core of {engine.name} is stopped under load; its server goes on to say that it is well")
        async with self._load():
            engine.send(signal.SIGSTOP, to=_CORE)
            try:
                await self._out(engine.name, "dead", within_s=_HUNG_WITHIN_S)
            finally:
                engine.send(signal.SIGCONT, to=_CORE)
            await self._serving("chat", v1="serving", v2="serving")

    async def _die(self, engine: RealEngine, state: str) -> None:
        """Over gRPC the server lives on and says that it does not serve; over HTTP it ends."""
        self._act(f"The core of {engine.name} is killed under load")
        async with self._load(may_fail=True):  # what it is in the middle of, and what SMG sends it until it is out
            engine.send(signal.SIGKILL, to=_CORE)
            await self._out(engine.name, state, within_s=_KILLED_WITHIN_S)
        async with self._load():
            await asyncio.sleep(_CALM_S)

    async def _transfer(self, prefill: str, decode: str, *, grpc: bool) -> None:
        self._act(f"A prefill and a decode engine over {'gRPC' if grpc else 'HTTP'}: KV goes from one to the other")
        *side_channels, metrics = self._gateway.spare_ports[::2][:3]
        engines = []
        for name, role, port in zip((prefill, decode), _ROLES, side_channels, strict=True):
            environment = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
            if not grpc and name == decode:  # over HTTP an engine says what it is in development mode
                environment["VLLM_SERVER_DEV_MODE"] = "1"
            elif not grpc:  # else its notes have to
                self._note("pair", name, kv_connector=_CONNECTOR, kv_role=role)
            transfer = {"kv_connector": _CONNECTOR, "kv_role": role, "kv_buffer_device": "cpu"}
            options = ["--served-model-name", "alpha", "--kv-transfer-config", json.dumps(transfer)]
            if grpc:
                options += ["--grpc", *(("--metrics", str(metrics)) if name == decode else ())]
            engine = await self._engines.start_real("pair", name, "vllm", *options, **environment)
            engines.append(engine)
        await self._serving("pair", **{prefill: "serving", decode: "serving"})
        for number in range(_PAIRED_CHATS):  # only blocks that are full and not cached are transferred
            await self._paired_chat(f"{number}: {_LONGER_THAN_A_BLOCK}")
        await self._transferred(engines[1], metrics if grpc else None)
        for engine in engines:
            await engine.stop()
            engine.socket.unlink(missing_ok=True)
        await self._watch.states("pair")

    async def _paired_chat(self, text: str) -> None:
        """One chat with the pair. A machine that is busy may need more than the 3 s that SMG gives either engine."""
        began = time.monotonic()
        while True:
            try:
                await self._chat("pair", "alpha", text=text)
            except ChatRefused as refused:
                if refused.status != 504 or time.monotonic() - began > _ANSWERED_WITHIN_S:
                    raise
                print(f"  once more: {refused}", flush=True)
            else:
                return

    async def _transferred(self, decode: RealEngine, port: int | None) -> None:
        """Waits until the decode engine has counted a transfer for each chat."""
        count = 0.0
        with suppress(TimeoutError):
            async with asyncio.timeout(_COUNTED_WITHIN_S):
                while count < _PAIRED_CHATS:
                    page = await decode.get("/metrics", port)
                    count = sum(value for _, _, value in samples(page, (_TRANSFERS,)))
                    await asyncio.sleep(_LOOK_S)
        print(f"  {decode.name} counts {count:g} transfers of KV for {_PAIRED_CHATS} chats")
        if count < _PAIRED_CHATS:
            raise DemoFailed("a chat was answered without the KV of the prefill engine")

    # -- what they have in common

    @asynccontextmanager
    async def _load(self, *, may_fail: bool = False) -> AsyncIterator[None]:
        async with Load(self._session, self._gateway.url("chat"), "alpha", clients=4) as load:
            yield
        print(f"  {load.answered} chats answered, {len(load.failures)} failed")
        if (load.failures and not may_fail) or not load.answered:
            raise DemoFailed(f"chats failed: {load.failures[:3] or 'none was answered'}")

    def _note(self, service: str, replica: str, **notes: object) -> None:
        """Writes the notes beside a replica's socket; JSON is YAML, too."""
        (self._gateway.sockets(service) / f"{replica}.yaml").write_text(json.dumps(notes), encoding="utf-8")

    async def _serving(self, service: str, **states: str) -> None:
        await self._real_states(service, within_s=_STARTS_WITHIN_S, **states)

    async def _routed(self, replica: str, names: set[str]) -> None:
        """Waits until the engine has just these names."""

        def routed(status: Status) -> bool:
            return set(replicas_of(status)["chat", replica]["models"]) == names

        await self._watch.until(routed, f"{replica}: {', '.join(sorted(names))}", within_s=_RELISTED_WITHIN_S)
        print(f"  {replica} answers to {', '.join(sorted(names))}")

    async def _out(self, name: str, state: str, *, within_s: float) -> None:
        """Waits until a replica is in this state, out of rotation."""
        began = time.monotonic()
        status = await self._watch.until(
            lambda status: chat_state(status, name) == state, f"{name} is {state}", within_s=within_s
        )
        print(f"  {state} after {time.monotonic() - began:.1f} s: {replicas_of(status)['chat', name]['reason']}")
