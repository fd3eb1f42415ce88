"""What is reported as done is in force: nginx says itself what it serves, and whoever cannot be served is told of."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway_sidecar.config import FrontendSettings
from gateway_sidecar.config.access_log import AccessLogSettings
from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.config import ServiceAddress
from gateway_sidecar.nginx.server import TEMP, Nginx, NginxSettings, ask_in_force
from gateway_sidecar.supervision.process import session_members
from tests.certificates import certificate
from tests.smg import RULES, smg_address
from tests.stopping import stop
from tests.system.clients import ask
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, PortBlock, Status, service_of
from tests.system.test_operation import metrics_of

NAMES = ("api.example.com", "*.example.org")
LIMITS = ({"per": "ip", "rps": 50}, {"per": "header:X-Team", "concurrent": 3, "path": "/v1/chat/completions"})


class Frontends:
    """An nginx of its own, whose daemon may be another at each step."""

    def __init__(self, directory: Path) -> None:
        self.ports = PortBlock()
        self.directory = directory
        self.settings = NginxSettings(
            *("127.0.0.1", "127.0.0.2"),
            *(self.ports.first + 20, self.ports.first + 23),
            rules=RULES,
            command="nginx",
            worker_processes="2",
            held_mb=1024,
            run_dir=directory / "run",
            state_dir=directory / "state",
            access_log=AccessLogSettings(),
        )
        for part in (self.settings.run_dir, self.settings.state_dir / "log"):
            part.mkdir(parents=True)
        self.pem = certificate(directory / "tls", "api.example.com")

    def endpoint(self, port: int, host: str = "127.0.0.1") -> str:
        return f"{host}:{self.ports.first + port}"

    def address(self, frontend: dict[str, Any]) -> ServiceAddress:
        it = smg_address(
            *("chat", self.endpoint(0), self.endpoint(1), self.endpoint(2)), FrontendSettings.model_validate(frontend)
        )
        shutil.copy(self.pem, self.directory / "run" / "frontends" / "chat.pem")
        with (self.directory / "run" / "frontends" / "chat.pem").open("a") as file:
            file.write(self.pem.with_suffix(".key").read_text())
        return it

    def begin(self) -> Nginx:
        nginx = Nginx(self.settings)
        nginx.bridge_key = "k" * 32
        nginx.prepare()
        return nginx

    async def again(self, nginx: Nginx) -> Nginx:
        """Another daemon's: it knows nothing but the process."""
        assert nginx.process is not None
        nginx.process.detach()
        other = self.begin()
        assert await other.adopt(nginx.process.identity)
        return other

    def status_at(self, endpoint: str, *, tls: bool) -> int:
        """What a client without a key gets there. Blocks."""
        host, _, port = endpoint.rpartition(":")
        with ExitStack() as stack:
            stream = stack.enter_context(socket.create_connection((host.strip("[]"), int(port)), timeout=10))
            if tls:
                context = ssl._create_unverified_context()
                stream = stack.enter_context(context.wrap_socket(stream, server_hostname="api.example.com"))
            request = "GET /v1/models HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n"
            stream.sendall(request.encode())
            return int(stream.recv(4096).split()[1])


@asynccontextmanager
async def frontends_at(directory: Path) -> AsyncIterator[Frontends]:
    frontends = Frontends(directory)
    try:
        yield frontends
    finally:
        frontends.ports.release()


@pytest.fixture
def short_path() -> Any:
    """Short, because a Unix socket's path is."""
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


def every_frontend(frontends: Frontends) -> list[dict[str, Any]]:
    """Frontends that differ in all that decides how nginx listens, and in a random part of the rest."""
    chosen = random.Random(13)
    tls = {"certificate": str(frontends.pem), "key": str(frontends.pem.with_suffix(".key"))}
    found = []
    listens = ((), (frontends.endpoint(5),), (frontends.endpoint(5), f"[::1]:{frontends.ports.first + 6}"))
    for listen, named, secured in itertools.product(listens, (False, True), (None, False, True)):
        frontend: dict[str, Any] = {}
        if not listen and (named or secured is not None):
            continue
        if listen:
            frontend["listen"] = list(listen)
        if named:
            frontend["server_names"] = list(NAMES)
        if secured is not None:
            frontend["tls"] = {**tls, "http2": secured, "hsts_days": chosen.choice((0, 30))}
            if chosen.random() < 0.5:
                frontend["redirect"] = [frontends.endpoint(7)]
        if chosen.random() < 0.5:
            frontend["limits"] = [dict(limit) for limit in LIMITS]
        if chosen.random() < 0.5:
            frontend["cors"] = {"origins": chosen.choice((["*"], ["https://app.example.com"]))}
        if chosen.random() < 0.5:
            frontend["trusted_proxies"] = ["10.0.0.0/8"]
        found.append(frontend)
    return found


async def test_every_frontend_is_adopted_and_changed(short_path: Path) -> None:
    """Whatever nginx serves, the next daemon finds it served, changes nothing, and then puts a change in force."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        await nginx.start([frontends.address({})])
        events = nginx.events
        try:
            for frontend in every_frontend(frontends):
                address = frontends.address(frontend)
                assert await nginx.apply([address]) is (nginx.reloads > 0), frontend
                nginx = await frontends.again(nginx)
                assert await nginx.objections([address]) == {}, "its own addresses are nobody else's"
                assert not await nginx.apply([address]), f"nothing changed: {frontend}"
                assert (nginx.events, nginx.reloads) == (events, 0)
                guarded = frontends.address(frontend | {"auth": {"keys_file": str(frontends.directory / "chat.keys")}})
                assert await nginx.apply([guarded])
                for endpoint in guarded.listens:
                    if endpoint not in map(str, guarded.frontend.redirect):
                        tls = "tls" in frontend and endpoint != guarded.listen
                        assert await asyncio.to_thread(frontends.status_at, endpoint, tls=tls) == 401, (
                            frontend,
                            endpoint,
                        )
        finally:
            await nginx.stop(grace_s=1)


async def test_a_configuration_that_was_written_and_never_told_is_put_in_force(short_path: Path) -> None:
    """What the file says is not what nginx does: a daemon may have died between the two."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        await nginx.start([frontends.address({})])
        try:
            guarded = frontends.address({"auth": {"keys_file": str(frontends.directory / "chat.keys")}})
            (frontends.directory / "run" / "nginx" / "nginx.conf").write_text(nginx._config([guarded]).rendered().text)
            nginx = await frontends.again(nginx)
            assert await nginx.apply([guarded])
            assert await asyncio.to_thread(frontends.status_at, guarded.listen, tls=False) == 401
        finally:
            await nginx.stop(grace_s=1)


async def test_what_is_in_force_is_known_whenever_a_daemon_dies(short_path: Path) -> None:
    """Also in the middle of a change that nginx has not taken: what each service has is not what the file says."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        plain = frontends.address({"max_body_mb": 7})
        await nginx.start([plain])
        assert nginx.process is not None
        log = frontends.settings.state_dir / "log" / "nginx.log"
        try:
            for number, listen in enumerate((frontends.endpoint(8), frontends.endpoint(9)), 1):
                limits = resource.prlimit(nginx.process.pid, resource.RLIMIT_NOFILE)
                resource.prlimit(nginx.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
                changing = asyncio.create_task(nginx.apply([replace(plain, listen=listen)]))
                while listen not in (frontends.directory / "run" / "nginx" / "nginx.conf").read_text():
                    await asyncio.sleep(0)
                changing.cancel()
                await asyncio.gather(changing, return_exceptions=True)
                async with asyncio.timeout(60):  # Later it would have its descriptors back, and take the change.
                    while log.read_text().count("Too many open files") < number:
                        await asyncio.sleep(0.01)
                nginx = await frontends.again(nginx)
                assert nginx.process is not None
                resource.prlimit(nginx.process.pid, resource.RLIMIT_NOFILE, limits)
                assert await nginx.in_force() == [plain]
        finally:
            await nginx.stop(grace_s=1)


async def test_a_change_is_in_force_when_it_is_said_to_be(short_path: Path) -> None:
    """At once and for every connection: nginx's old processes have let go of the addresses by then."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        plain = frontends.address({})
        guarded = frontends.address({"auth": {"keys_file": str(frontends.directory / "chat.keys")}})
        await nginx.start([plain])
        try:
            for _ in range(5):
                await nginx.apply([guarded])
                statuses = {frontends.status_at(guarded.listen, tls=False) for _ in range(20)}
                assert statuses == {401}
                await nginx.apply([plain])
        finally:
            await nginx.stop(grace_s=1)


async def test_a_change_is_not_in_force_while_an_old_process_serves(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx's new processes answer the new number while one that has not ended yet still takes requests by the old."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        guarded = frontends.address({"auth": {"keys_file": str(frontends.directory / "chat.keys")}})
        await nginx.start([frontends.address({})])
        assert nginx.process is not None
        slow = session_members(nginx.process.identity)[0].pid
        try:
            with monkeypatch.context() as soon:
                soon.setattr("gateway_sidecar.nginx.server._IN_FORCE_S", 2.0)
                stop(slow)
                try:
                    # The kernel may hand the question to the stopped process too: then nobody answers it. A busy
                    # machine's other old process may serve on as well.
                    serves = rf"its old processes serve on: (.*, )?{slow}(,|$)"
                    with pytest.raises(NginxError, match=f"{serves}|does not say what it|has not taken its new"):
                        await nginx.apply([guarded])
                finally:
                    os.kill(slow, signal.SIGCONT)
            await nginx.apply([guarded])
            assert await asyncio.to_thread(frontends.status_at, guarded.listen, tls=False) == 401
        finally:
            await nginx.stop(grace_s=1)


async def test_an_nginx_that_is_late_once_is_asked_again(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it may not say in time what it serves: a change is not refused for that."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        await nginx.start([frontends.address({})])
        asked = 0

        async def late(alive: Path) -> str:
            nonlocal asked
            asked += 1
            return "" if asked == 1 else await ask_in_force(alive)

        monkeypatch.setattr("gateway_sidecar.nginx.server.ask_in_force", late)
        try:
            assert await nginx.apply([frontends.address({"max_body_mb": 7})])
        finally:
            await nginx.stop(grace_s=1)


async def test_what_nginx_refuses_is_put_back(short_path: Path) -> None:
    """An address that somebody takes in the last moment: the error says so, and the file is the one before."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        plain = frontends.address({})
        await nginx.start([plain])
        try:
            file = frontends.directory / "run" / "nginx" / "nginx.conf"
            before = file.read_text()
            moved = replace(plain, listen=frontends.endpoint(8))
            assert await nginx.objections([moved]) == {}
            with socket.create_server(("127.0.0.1", frontends.ports.first + 8)):
                assert "EADDRINUSE" in (await nginx.objections([moved]))["chat"]
                with pytest.raises(NginxError, match=r"goes on with the old one: .*could not bind"):
                    await nginx.apply([moved])
            assert file.read_text() == before
            assert not await nginx.apply([plain])
            assert await nginx.apply([moved])
        finally:
            await nginx.stop(grace_s=1)


def lenient_nginx(directory: Path) -> Path:
    """An nginx whose `-t` likes everything, as that of an upgraded program may like what the running one refuses."""
    program = directory / "nginx"
    program.write_text('#!/bin/sh\ncase "$1" in -t) exit 0;; esac\nexec /usr/sbin/nginx "$@"\n')
    program.chmod(0o755)
    return program


async def without_key(gateway: Gateway, port: int | None = None) -> int:
    url = f"http://127.0.0.1:{port or gateway.ports['chat']}/v1/models"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def in_force(gateway: Gateway, service: str = "chat") -> float:
    return (await metrics_of(gateway))["gateway_sidecar_service_in_force", frozenset({("service", service)})]


async def test_a_reload_that_nginx_refuses_is_no_success(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """It cannot make its directories: keys are not in force, and everybody says so until they are."""
    gateway = make_gateway()
    gateway.settings["nginx"]["command"] = str(lenient_nginx(gateway.directory))
    gateway.settings["services"][0]["frontend"] = {}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    assert await in_force(gateway) == 1
    file = gateway.directory / "run" / "nginx" / "nginx.conf"
    before = file.read_text()
    bodies = gateway.directory / "state" / TEMP
    shutil.rmtree(bodies)
    bodies.touch()
    keys = gateway.directory / "chat.keys"
    keys.write_text("# nobody\n")
    keys.chmod(0o600)
    gateway.settings["services"][0]["frontend"]["auth"] = {"keys_file": str(keys)}
    gateway.configure()
    code, _, err = await gateway.cli("reload")
    assert code == 1
    assert "PROBLEM: not in force: chat: listen and frontend: nginx refuses its new configuration" in err
    assert "Not a directory" in err, "nginx's own words"
    assert file.read_text() == before
    assert await without_key(gateway) == 200
    status = await gateway.status()
    assert any("listen and frontend: nginx refuses" in text for text in status["problems"])
    assert "NOT IN FORCE" in (await gateway.cli("status"))[1]
    assert "chat/-: put listen and frontend in force" in (await gateway.cli("plan"))[1]
    code, out, _ = await gateway.cli("check")
    assert code == 1
    assert "FAIL  the running daemon: chat: listen and frontend" in out
    metrics = await metrics_of(gateway)
    assert metrics["gateway_sidecar_config_reloads_total", frozenset({("outcome", "refused")})] == 1
    assert await in_force(gateway) == 0

    bodies.unlink()
    await gateway.until(lambda s: not s["problems"])
    assert await without_key(gateway) == 401
    assert await in_force(gateway) == 1
    assert (await gateway.cli("reload"))[0] == 0


async def test_an_address_that_is_taken_is_not_shown_as_live(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The old one goes on, also when nginx is started anew; the new one comes when it is free."""
    gateway = make_gateway()
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    old, new = gateway.ports["chat"], gateway.ports["chat"] + 5
    with socket.create_server(("127.0.0.1", new)):
        gateway.settings["services"][0]["listen"] = f"127.0.0.1:{new}"
        gateway.configure()
        code, out, _ = await gateway.cli("check")
        assert code == 1
        assert f"FAIL  cannot listen on 127.0.0.1:{new}: EADDRINUSE" in out
        assert (await gateway.cli("reload"))[0] == 1
        status = await gateway.status()
        assert service_of(status)["listen"] == f"127.0.0.1:{old}"
        assert "EADDRINUSE" in service_of(status)["not_in_force"]
        assert await without_key(gateway, old) == 200
        before = status["nginx"]["pid"]
        os.kill(before, 9)
        await gateway.until(lambda s: s["nginx"]["state"] == "up" and s["nginx"]["pid"] != before)
        assert await without_key(gateway, old) == 200
    status = await gateway.until(lambda s: service_of(s)["not_in_force"] is None)
    assert service_of(status)["listen"] == f"127.0.0.1:{new}"
    assert await without_key(gateway, new) == 200


async def test_all_addresses_of_the_sixth_version_are_not_those_of_the_fourth(short_path: Path) -> None:
    """`[::]:PORT` may come while `0.0.0.0:PORT` is served, and go again."""
    async with frontends_at(short_path) as frontends:
        nginx = frontends.begin()
        fourth, sixth = frontends.endpoint(5, "0.0.0.0"), frontends.endpoint(5, "[::]")
        await nginx.start([frontends.address({"listen": [fourth]})])
        try:
            for listens in ([fourth, sixth], [sixth], [sixth, fourth], [fourth]):
                address = frontends.address({"listen": listens})
                assert await nginx.objections([address]) == {}
                assert await nginx.apply([address])
                for endpoint, host in ((fourth, "127.0.0.1"), (sixth, "[::1]")):
                    if endpoint in listens:
                        assert await asyncio.to_thread(frontends.status_at, frontends.endpoint(5, host), tls=False)
        finally:
            await nginx.stop(grace_s=1)


async def test_nginx_in_its_own_way_is_told_with_what_to_do(make_gateway: MakeGateway) -> None:
    """It cannot exchange one address of a port for all of them, nor back; over another port it can."""
    gateway = make_gateway()
    await gateway.start()
    port = gateway.ports["chat"]
    for old, new in (("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")):
        gateway.settings["services"][0]["listen"] = f"{new}:{port}"
        gateway.configure()
        why = f"nginx itself listens on {old}:{port} and cannot exchange one for the other"
        for command in ("check", "reload"):
            code, out, err = await gateway.cli(command)
            assert (code, f"{why}; reload with another port first" in out + err) == (1, True), out + err
        assert service_of(await gateway.status())["listen"] == f"{old}:{port}"
        assert await asyncio.to_thread(status_of_nothing, port) == 404
        for then in (port + 5, port):
            gateway.settings["services"][0]["listen"] = f"{new}:{then}"
            gateway.configure()
            assert (await gateway.cli("reload"))[0] == 0
            assert await asyncio.to_thread(status_of_nothing, then) == 404


def is_told(status: Status, service: str, words: str) -> bool:
    """Whether these are among the words why a service is not in force: a daemon that begins has others at first."""
    return words in (service_of(status, service)["not_in_force"] or "")


async def test_one_busy_address_does_not_stop_the_others(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """At a cold start, and at the next daemon's: that one says why and comes when it can."""
    gateway = make_gateway(services=("chat", "code"))
    await engine(gateway.socket("r1"))
    await engine(gateway.socket("r2", "code"))
    with socket.create_server(("127.0.0.1", gateway.ports["code"])):
        await gateway.start(ready=False)
        await gateway.until_states({"r1": "serving"})
        assert "r1" in await ask(gateway, "tiny", stream=False)
        status = await gateway.status()
        assert not status["ready"]
        assert "EADDRINUSE" in service_of(status, "code")["not_in_force"]
        assert any("it has no address until then" in text for text in status["problems"])
        assert [event["service"] for event in gateway.events("service.not_in_force")] == ["code"]
        assert (await in_force(gateway), await in_force(gateway, "code")) == (1, 0)
        assert await gateway.terminate() == 0
        await gateway.start(ready=False)
        status = await gateway.until(
            lambda s: service_of(s)["router"]["state"] == "up" and is_told(s, "code", "EADDRINUSE")
        )
        assert service_of(status)["not_in_force"] is None
    status = await gateway.until(lambda s: s["ready"])
    await gateway.until_states({"r2": "serving"}, service="code")
    assert status["problems"] == []
    assert [event["service"] for event in gateway.events("service.in_force")] == ["code"]


async def test_a_service_refused_at_adoption_holds_up_no_other(make_gateway: MakeGateway) -> None:
    """The next daemon knows what each service had: that one keeps it, and the others go on changing."""
    gateway = make_gateway(services=("chat", "code"))
    await gateway.start()
    assert await gateway.terminate() == 0
    old = dict(gateway.ports)
    chat, code = (it["listen"] for it in gateway.settings["services"])
    busy = gateway.ports["code"] + 5
    with socket.create_server(("127.0.0.1", busy)):
        gateway.settings["services"][1]["listen"] = f"127.0.0.1:{busy}"
        for port in (old["chat"] + 4, old["chat"] + 7):
            gateway.settings["services"][0]["listen"] = f"127.0.0.1:{port}"
            if port == old["chat"] + 4:
                await gateway.start(ready=False)
            else:
                gateway.configure()
                assert (await gateway.cli("reload"))[0] == 1
            status = await gateway.until(
                lambda s: service_of(s)["not_in_force"] is None and is_told(s, "code", "EADDRINUSE")
            )
            assert service_of(status)["listen"] == f"127.0.0.1:{port}" != chat
            assert service_of(status, "code")["listen"] == code
            assert status["problems"] == [it for it in status["problems"] if it.startswith("code: listen and frontend")]
            assert (await in_force(gateway), await in_force(gateway, "code")) == (1, 0)
            for at in (port, old["code"]):
                assert await asyncio.to_thread(status_of_nothing, at) == 404
    await gateway.until(lambda s: s["problems"] == [])
    assert await asyncio.to_thread(status_of_nothing, busy) == 404


def status_of_nothing(port: int) -> int:
    """What a frontend says to a path that it does not pass. Blocks."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        stream.sendall(b"GET /nothing HTTP/1.0\r\n\r\n")
        return int(stream.recv(4096).split()[1])


async def test_nginx_is_back_as_soon_as_its_file_is_repaired(make_gateway: MakeGateway) -> None:
    """A reload that repairs what kept it down does not wait for the next try."""
    gateway = make_gateway()
    program = gateway.directory / "nginx"
    works = '#!/bin/sh\nexec /usr/sbin/nginx "$@"\n'
    program.write_text(works)
    program.chmod(0o755)
    gateway.settings["nginx"]["command"] = str(program)
    await gateway.start()
    program.write_text('#!/bin/sh\n[ "$1" = -V ] && exec /usr/sbin/nginx -V\nexit 1\n')
    os.kill((await gateway.status())["nginx"]["pid"], 9)
    async with asyncio.timeout(60):  # Until the pause is the longest: 10 s.
        while len(gateway.events("nginx.not_started")) < 7:
            await asyncio.sleep(0.05)
    assert (await gateway.cli("reload"))[0] == 1
    program.write_text(works)
    assert (await gateway.cli("reload"))[0] == 0
    assert (await gateway.status())["nginx"]["state"] == "up"
