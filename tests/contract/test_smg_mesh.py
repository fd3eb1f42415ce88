"""Two real SMGs in a mesh: what one knows of the other's workers, and what the client of its API makes of that."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gateway_sidecar.domain.fleet_authority import AUTHORITY_S, CERTIFICATE_S
from gateway_sidecar.domain.mesh import mark_of, marked
from gateway_sidecar.domain.model import ConnectionMode, Registered, WorkerSpec, WorkerStatus
from gateway_sidecar.errors import RouterError, RouterRefused
from gateway_sidecar.frontend.authority import bundle_of, make_authority, sign
from gateway_sidecar.frontend.certificate import today
from gateway_sidecar.routers.base import MeshMember, RouterPorts
from gateway_sidecar.routers.http import MetricsPages
from gateway_sidecar.routers.smg.client import SmgClient
from gateway_sidecar.routers.smg.settings import SmgSettings
from gateway_sidecar.routers.smg.setup import SmgSetup
from tests.system.gateway import PortBlock

SMG = Path(sys.executable).parent / "smg"
SETUP = SmgSetup(
    SmgSettings(mesh=True), {"timeout_secs": 5, "failure_threshold": 3, "drain_settle_secs": 0}, "", "chat"
)
_LATE_S = 60.0
_RECONCILED_S = 33.0
"""SMG takes up what it lacks of others' workers every 30 s."""

pytestmark = pytest.mark.skipif(not SMG.exists() and shutil.which("smg") is None, reason="smg is not installed")


async def answer(request: web.Request) -> web.Response:
    """As an engine behind a bridge, which takes the mark away."""
    path = "/" + request.path.partition("/=")[2].partition("/")[2] if "/=" in request.path else request.path
    pages = {
        "/v1/models": {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "sglang"}]},
        "/model_info": {"model_path": "tiny", "is_generation": True},
        "/server_info": {"model_path": "tiny", "served_model_name": "tiny", "version": "0.5"},
        "/health": {},
    }
    return web.json_response(pages[path]) if path in pages else web.Response(status=404)


@asynccontextmanager
async def engine(port: int, replica: str) -> AsyncIterator[WorkerSpec]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield WorkerSpec(f"http://127.0.0.1:{port}", "sglang", ConnectionMode.HTTP, model_id="tiny", replica=replica)
    await runner.cleanup()


@asynccontextmanager
async def router(ports: RouterPorts, log: Path) -> AsyncIterator[SmgClient]:
    command = SETUP.command(ports, log.name)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command.argv, stdout=output, stderr=output, env=command.env)
    client = SETUP.client(ports, log.name)
    try:
        await until(client, lambda _: True)
        yield client
    finally:
        await client.close()
        process.kill()
        await process.wait()


async def until(client: SmgClient, condition: Callable[[dict[str, Registered]], bool]) -> dict[str, Registered]:
    """Its list, once it is so."""
    async with asyncio.timeout(_LATE_S):
        while True:
            try:
                listed = dict(await client.list_workers())
                if condition(listed):
                    return listed
            except RouterError:
                pass
            await asyncio.sleep(0.05)


def is_ready(url: str) -> Callable[[dict[str, Registered]], bool]:
    return lambda listed: url in listed and listed[url].status is WorkerStatus.READY


async def test_a_worker_of_another_router_is_nobodys_here_and_leaves_for_good(tmp_path: Path) -> None:
    """Law 4 in a mesh: a delete is done when the router does not list the worker, nor takes it up again. A worker of
    our own has its plain URL, whichever of the two came first. Each sees the other, over TLS.
    """
    block = PortBlock()
    first, now = block.first, today()
    authority = make_authority(now, AUTHORITY_S)
    places = []
    for number, name in enumerate(("a", "b")):
        signed = sign(authority, name, "127.0.0.1", now, now + CERTIFICATE_S)
        files = {"ca": bundle_of([authority]), "certificate": signed.certificate, "key": signed.key}
        for what, text in files.items():
            (tmp_path / f"{name}-{what}").write_text(text)
        peer = f"127.0.0.1:{first}" if number else ""
        ca, certificate, key = (str(tmp_path / f"{name}-{what}") for what in files)
        places.append(MeshMember(name, "127.0.0.1", first + number, peer, ca, certificate, key, now + CERTIFICATE_S))
    ports = [RouterPorts(first + 2 + 2 * n, first + 3 + 2 * n, place) for n, place in enumerate(places)]
    async with (
        engine(first + 8, "r1") as lost,
        engine(first + 9, "r2") as kept,
        router(ports[0], tmp_path / "a.log") as a,
        router(ports[1], tmp_path / "b.log") as b,
    ):
        for spec, replica in ((lost, "r1"), (kept, "r2")):
            await a.register(spec)
            await until(a, is_ready(spec.url))
            foreign = marked(spec.url, mark_of("chat", replica))
            imported = (await until(b, is_ready(foreign)))[foreign]
            found = await b.find(imported.worker_id)
            assert found is not None
            assert found.url == foreign
            await b.deregister(imported.worker_id)
            await until(b, lambda listed: not listed)

        own = await b.register(kept)
        assert (await until(b, is_ready(kept.url)))[kept.url].worker_id == own
        await a.deregister((await a.list_workers())[kept.url].worker_id)
        await until(a, lambda listed: listed.keys() == {lost.url})
        await asyncio.sleep(_RECONCILED_S)
        assert (await a.list_workers()).keys() == {lost.url}
        listed = dict(await b.list_workers())
        assert listed.keys() == {kept.url}
        assert is_ready(kept.url)(listed)

        with pytest.raises(RouterRefused, match="leave `advertise` or router"):
            await a.register(WorkerSpec("http://127.0.0.1:1", "sglang", ConnectionMode.HTTP))
        pages = MetricsPages()
        rounds = [SETUP.read_mesh(await pages.read(it.metrics_url, 10.0)) for it in ports]
        await pages.close()
        assert (list(rounds[0]), list(rounds[1])) == (["b"], []), "the first by name connects"
        assert rounds[0]["b"] > 0
    block.release()
