"""Figure: how many prompts meet the same replica through another gateway, with `router.mesh` and without it.

Two real gateways on machines of their own (network namespaces, which need root), a real etcd, SMG with `cache_aware`,
and two replicas. 24 prompts that have nothing in common go through the first gateway, and then through the second one.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.report import Row, Scale
from examples.simulated import Behaviour, EngineKind, EngineSpec, start_engine
from tests.namespaces import why_not
from tests.system.gateway import Gateway
from tests.system.machines import PROMPTS, on_machines, prompts, who_answers

NAME = "mesh"
_TOLD_S = 8.0
"""Routers tell each other what is new once a second. One that cannot place it asks for the whole tree, and once more
after 5 s."""


async def _same(*, mesh: bool) -> int:
    """How many prompts met the same replica at both."""
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        made.append(Gateway(**settings))
        return made[-1]

    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-", dir="/tmp")))
        fleet = stack.enter_context(on_machines(make, 2, {"type": "smg", "mesh": mesh}))
        for gateway in fleet.gateways:
            stack.push_async_callback(gateway.close)
        await asyncio.gather(*(gateway.start() for gateway in fleet.gateways))
        engines = {}
        for name in ("r1", "r2"):
            spec = EngineSpec(kind=EngineKind.SGLANG_HTTP, socket=directory / f"{name}.sock", model="tiny")
            engines[name] = await start_engine(spec, Behaviour())
            stack.push_async_callback(engines[name].stop, grace_s=0)
            await fleet.put(name, spec.socket)
        await fleet.until_serving(*engines)
        if mesh:
            await fleet.until_in_mesh()
        first = [await who_answers(fleet.gateways[0], engines, prompt) for prompt in prompts()]
        await asyncio.sleep(_TOLD_S)
        second = [await who_answers(fleet.gateways[1], engines, prompt) for prompt in prompts()]
        return sum(one == other for one, other in zip(first, second, strict=True))


async def run(_scale: Scale) -> list[Row]:
    """The same with `--quick`."""
    if (why := why_not()) is not None:
        raise RuntimeError(why)
    without, same = await _same(mesh=False), await _same(mesh=True)
    return [
        Row(
            NAME, "prompts that meet the same replica through another gateway", f"{PROMPTS} of {PROMPTS}",
            f"without mesh {without} of {PROMPTS}", f"{same} of {PROMPTS}", f"{same - without:+d}",
            same == PROMPTS, {"same": same, "without": without},
        )
    ]  # fmt: skip
