"""An engine and a source of another package: known, served and checked, and no file of the product knows them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from tests.other_packages import install_from
from tests.system.conftest import MakeGateway
from tests.system.gateway import replica_of, service_of


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both toys, for whatever Python is started from here on."""
    for page in ("write-your-own-engine.md", "write-your-own-source.md"):
        install_from(page, tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{tmp_path}")
    return tmp_path


async def _answer(request: web.Request) -> web.Response:
    """What a toy says of itself, and to a chat."""
    if request.path == "/v1/models":
        model = {"id": "tiny", "object": "model", "owned_by": "Toys Inc."}
        return web.json_response({"object": "list", "data": [model]})
    if request.path == "/toy":
        return web.json_response({"version": "1.2"})
    if request.path == "/health":
        return web.json_response({})
    if request.method == "POST":
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "squeak"}}
        chat = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
        return web.json_response(chat)
    return web.json_response({}, status=404)


@pytest_asyncio.fixture
async def toy(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a toy engine."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "toy.sock")).start()
    yield tmp_path / "toy.sock"
    await runner.cleanup()


async def test_a_toy_engine_that_a_toy_source_lists_is_served(
    make_gateway: MakeGateway, installed: Path, toy: Path
) -> None:
    """Found, identified, registered and asked; kept as it is by the next daemon; gone when it is listed no more."""
    toys = installed / "toys.json"
    toys.write_text(json.dumps({"r1": str(toy)}))
    gateway = make_gateway()
    gateway.settings["services"][0]["replicas"] = {"toy": {"file": str(toys)}}
    gateway.configure()
    code, out, err = await gateway.cli("check")
    assert code == 0, out + err
    assert "chat: toy lists 1 replica" in out
    await gateway.start()
    row = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert (row["source"], row["runtime_type"], row["connection_mode"]) == ("toy", "toy", "http")
    status = await gateway.status()
    assert service_of(status)["source"]["settings"] == {"toy": str(toys)}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    async with gateway.client() as session, session.post(f"{gateway.url()}/v1/chat/completions", json=body) as answer:
        assert "squeak" in await answer.text()
    await gateway.until_written(1)
    await gateway.kill()
    await gateway.start()
    again = replica_of(await gateway.until_states({"r1": "serving"}), "r1")
    assert again["worker_id"] == row["worker_id"], (
        "SMG has no word for a toy, and that is no reason to register it anew"
    )
    toys.unlink()
    await gateway.until(lambda s: "cannot read" in str(service_of(s)["source"]["blind"]))
    assert replica_of(await gateway.status(), "r1")["state"] == "serving", "unknown is not empty"
    toys.write_text("{}")
    await gateway.until_states({})


def test_the_schema_and_the_errors_know_a_toy_source(installed: Path) -> None:
    """The setting is in the schema, and what is wrong with it is told with line and cure."""
    command = [sys.executable, "-m", "gateway_sidecar"]
    schema = json.loads(subprocess.run([*command, "schema"], capture_output=True, check=True).stdout)
    assert "toy" in schema["$defs"]["ReplicaSettings"]["properties"]
    config = installed / "gateway-sidecar.yaml"
    config.write_text("services:\n- name: chat\n  listen: 127.0.0.1:1\n  replicas:\n    toy: {fil: /a}\n    toys: {}\n")
    said = subprocess.run([*command, "check", "--config", config], capture_output=True, text=True, check=False)
    assert said.stderr.splitlines() == [
        f"{config}:5: services[0].replicas.toy.file: is missing; add it, for example /etc/toys.json",
        f"{config}:5: services[0].replicas.toy.fil: unknown setting; did you mean 'file'?",
        f"{config}:6: services[0].replicas.toys: unknown setting; did you mean 'toy'?",
    ]


@pytest.mark.parametrize(("group", "value"), [("sources", "toy_source:SOURCE"), ("engines", "toy_engine:ENGINE")])
def test_a_package_that_cannot_be_imported_is_named(installed: Path, group: str, value: str) -> None:
    """One line, not a traceback."""
    (installed / f"{value.partition(':')[0]}.py").write_text("import no_such_module\n")
    config = installed / "gateway-sidecar.yaml"
    config.write_text("services: [{name: chat, listen: '127.0.0.1:1', replicas: {}}]\n")
    said = subprocess.run(
        [sys.executable, "-m", "gateway_sidecar", "check", "--config", config],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"gateway-sidecar: entry point toy = {value} in gateway_sidecar.{group}: No module")


def test_the_tests_on_the_pages_pass(installed: Path) -> None:
    """What a newcomer copies works."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(installed)],
        cwd=installed, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
