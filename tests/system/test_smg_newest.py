"""The newest build of SMG on PyPI (`tokenspeed-smg`) beside the release that is installed with the package."""

from __future__ import annotations

import aiohttp

from examples.simulated import EngineKind, Role
from tests.smg import NEWEST, WITHOUT_NEWEST
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import service_of, states_of
from tests.system.test_replacement import Load

pytestmark = WITHOUT_NEWEST


async def test_the_newest_smg_takes_over_and_hands_back_without_a_failed_request(
    make_gateway: MakeGateway, engine: StartEngine
) -> None:
    """With engines over HTTP and gRPC, under load, by a reload. Its metrics are read, and a drain ends."""
    gateway = make_gateway()
    await gateway.start()
    for i in range(4):
        await engine(gateway.socket(f"r{i}"), EngineKind.VLLM_GRPC if i % 2 else EngineKind.SGLANG_HTTP)
    wanted = {f"r{i}": "serving" for i in range(4)}
    await gateway.until_states(wanted)
    load = Load(gateway)
    for command in (str(NEWEST), "smg"):
        await load.answered(30)
        gateway.settings["services"][0]["router"] = {"command": command}
        gateway.configure()
        code, out, err = await gateway.cli("reload")
        assert (code, out) == (0, "changed: chat: router\n"), err
        await load.answered(30)
        if command == str(NEWEST):
            code, out, _ = await gateway.cli("drain", "chat", "r0", "--timeout", "30")
            assert code == 0, out
            assert (await gateway.cli("resume", "chat", "r0"))[0] == 0
            await gateway.until_states(wanted)
            router = service_of(await gateway.status())["router"]
            async with aiohttp.ClientSession() as session, session.get(router["metrics_url"]) as page:
                assert "smg_worker_requests_active" in await page.text()
    assert (await load.stop()).keys() == {"200"}
    assert not gateway.events("worker.operation_failed")


async def test_the_newest_smg_serves_a_prefill_and_decode_pair(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """And `check` knows it."""
    gateway = make_gateway()
    gateway.settings["services"][0]["router"] = {"command": str(NEWEST)}
    gateway.configure()
    code, out, err = await gateway.cli("check")
    assert code == 0, out + err
    assert f"router {NEWEST}: smg 1.13" in out
    await gateway.start()
    await engine(gateway.socket("p1"), EngineKind.SGLANG_GRPC, role=Role.PREFILL)
    await engine(gateway.socket("d1"), EngineKind.SGLANG_GRPC, role=Role.DECODE)
    await gateway.until(lambda s: states_of(s) == {"p1": "serving", "d1": "serving"})
    assert await ask(gateway, "tiny", stream=True)
