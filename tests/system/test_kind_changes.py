"""A reload puts a router of another kind in the place of the old one, under load, and no request fails.

Each kind comes once and goes once; `make kinds` plays every pair of those whose programs are installed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from examples.simulated import EngineKind
from gateway_sidecar.config.router import OfItsKind
from gateway_sidecar.domain.findings import Level
from gateway_sidecar.kinds import ROUTERS
from gateway_sidecar.supervision.process import start_ticks
from tests.dynamo import PYTHON
from tests.other_routers import KINDS as OTHERS
from tests.other_routers import program_of
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_replacement import Load
from tests.system.test_toy_router import with_toy

TOY = "toy"
KINDS = [*(kind.name for kind in ROUTERS if kind.name != TOY), TOY]
COMMANDS = {"dynamo": PYTHON, **{kind: str(program_of(kind) or kind) for kind in OTHERS}}
"""Where a program is that has an environment of its own."""
ROUND = list(zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True))
PAIRS = list(itertools.permutations(KINDS, 2)) if os.environ.get("PAIRS") == "all" else ROUND


@pytest.mark.parametrize(("old", "new"), PAIRS)
async def test_a_router_of_another_kind_takes_over_without_a_failed_request(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path, old: str, new: str
) -> None:
    """What the old one has begun runs to its end there, and then it ends."""
    for kind in (old, new):
        await skip_without(kind)
    env = dict(with_toy(tmp_path))
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = router(old)
    await gateway.start(env=env)
    for name in ("r1", "r2"):
        await engine(gateway.socket(name), EngineKind.VLLM_HTTP, token_interval_s=0.02)
    wanted = dict.fromkeys(("r1", "r2"), "serving")
    before = service_of(await gateway.until_states(wanted))["router"]
    load = Load(gateway)
    await load.answered(50)
    stream = await begun(gateway, 300)
    gateway.settings["services"][0]["router"] = router(new)
    gateway.configure()
    code, out, err = await gateway.cli("reload", before=["env", *(f"{name}={value}" for name, value in env.items())])
    assert (code, out) == (0, "changed: chat: router\n"), err
    after = service_of(await gateway.until_states(wanted))["router"]
    assert (before["type"], after["type"]) == (old, new)
    await load.answered(50)
    assert (await stream).split()[-1] == "299"
    while before["pid"] is not None and start_ticks(before["pid"]) is not None:  # `none` has no process.
        await load.answered(1)
    await load.answered(200)
    assert (await load.stop()).keys() == {"200"}


def router(kind: str) -> dict[str, str]:
    """The settings of a service's router of this kind."""
    return {"type": kind, **({"command": COMMANDS[kind]} if kind in COMMANDS else {})}


async def skip_without(kind: str) -> None:
    """Skips the test where a kind's program is not installed."""
    if kind != TOY:
        found = await ROUTERS[kind].check({"chat": OfItsKind().read(router(kind))})
        for finding in found:
            if finding.level is Level.FAIL:
                pytest.skip(finding.text)


async def begun(gateway: Gateway, tokens: int) -> asyncio.Task[str]:
    """A streamed chat whose first token has come; raises if that does not come."""
    started = asyncio.Event()
    stream = asyncio.create_task(stream_chat(gateway, tokens, started))
    first = asyncio.create_task(started.wait())
    await asyncio.wait({stream, first}, return_when=asyncio.FIRST_COMPLETED)
    if stream.done():
        stream.result()
    return stream


async def test_a_kind_that_cannot_be_started_changes_nothing(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """The reload says at once why, and neither the router nor nginx has been touched."""
    env = dict(with_toy(tmp_path))
    gateway = make_gateway()
    await gateway.start(env=env)
    await engine(gateway.socket("r1"))
    before = await gateway.until_states({"r1": "serving"})
    gateway.settings["services"][0]["router"] = {"type": "toy", "command": "/no/python"}
    gateway.configure()
    code, out, err = await gateway.cli("reload", before=["env", *(f"{name}={value}" for name, value in env.items())])
    assert (code, out) == (1, "nothing changed\n")
    assert "chat: router: the new router was not put in place: router.command: /no/python is not an executable" in err
    after = await gateway.until_states({"r1": "serving"})
    assert service_of(after)["router"]["pid"] == service_of(before)["router"]["pid"]
    assert after["nginx"]["reloads"] == 0
