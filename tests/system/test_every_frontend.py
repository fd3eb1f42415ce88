"""Whatever frontend a configuration can describe is served, adopted, changed, and refused whole, and nobody says
otherwise: `status`, `plan`, `check`, exit codes, metrics and what a client gets agree at every step.

`make frontends EXAMPLES=60` draws so many at random.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import random
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from examples.simulated import EngineKind, EngineSpec, SimulatedEngine, start_engine
from gateway_sidecar.cli import main
from gateway_sidecar.commands.exit_codes import Exit
from gateway_sidecar.config import FrontendSettings, LimitSettings, ServiceSettings, load_config
from gateway_sidecar.frontend.edit_keys import add_key
from tests.certificates import Authority, certificate
from tests.frontends import FLEET, ORIGINS, SERVICES, SLOW, SLOW_PATH, STRANGE, Ground, names, services
from tests.system.gateway import Gateway, Status, service_of
from tests.system.test_frontend_tls import own_serial
from tests.system.test_operation import metrics_of

AT_RANDOM = int(os.environ.get("FRONTENDS", "0"))
KEY, BANNED = "right", "banned"
_CHAT = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
_MCP = {
    "model": "tiny",
    "input": "x",
    "tools": [{"type": "mcp", "server_label": "x", "server_url": "http://10.1.1.1/"}],
}
_forwarded = itertools.count()

Drawn = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got; `code` is that of an error in OpenAI's form, unless it is the router's own."""

    status: int
    headers: Mapping[str, str]
    code: str | None


class Site:
    """One gateway with an engine for each service, and a server that decides where `auth.url` asks."""

    def __init__(self) -> None:
        self.gateway: Gateway
        self.ground: Ground
        self._engines: list[SimulatedEngine] = []
        self._decider: web.AppRunner | None = None

    async def open(self) -> None:
        self.gateway = Gateway(services=SERVICES)
        first = self.gateway.ports[SERVICES[0]]
        self.ground = Ground(self.gateway.directory, first, first + 8)
        for service in SERVICES:
            examples = [name.replace("*", "any") for name in names(service)]
            certificate(self.ground.pem(service).parent, *names(service), *examples, stem=service)
            add_key(self.ground.keys(service), "alice", KEY * 5)
            socket_of = self.gateway.socket("r1", service)
            self._engines.append(await start_engine(EngineSpec(kind=EngineKind.SGLANG_HTTP, socket=socket_of)))

        async def decide(request: web.Request) -> web.Response:
            status = {f"Bearer {KEY * 5}": 204, f"Bearer {BANNED}": 403}
            return web.Response(status=status.get(request.headers.get("Authorization", ""), 401))

        Authority(self.ground.client_ca.parent, self.ground.client_ca.stem).sign("alice")
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", decide)
        self._decider = web.AppRunner(app)
        await self._decider.setup()
        await web.TCPSite(self._decider, "127.0.0.1", self.ground.decider).start()

    async def close(self) -> None:
        for engine in self._engines:
            await engine.stop(grace_s=0)
        if self._decider is not None:
            await self._decider.cleanup()
        await self.gateway.close()

    def write(self, drawn: Drawn) -> Sequence[ServiceSettings]:
        """The configuration file, with these services; what it says."""
        whole = [self.gateway.service(it["name"]) | it for it in drawn]
        self.gateway.configure(services=whole)
        return load_config(self.gateway.config_path).services

    async def cli(self, *arguments: str) -> tuple[int, str]:
        """One command in this process, which takes a tenth of the time; its exit code and all that it printed."""
        return await asyncio.to_thread(self._cli, *arguments, "--config", str(self.gateway.config_path))

    def _cli(self, *arguments: str) -> tuple[int, str]:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended:
            main(arguments)
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.getvalue()

    async def serving(self) -> None:
        await self.gateway.until(
            lambda status: (
                all(service_of(status, it)["replicas"] for it in SERVICES)
                and all(row["state"] == "serving" for it in SERVICES for row in service_of(status, it)["replicas"])
            ),
            within_s=60,
        )

    async def begin(self, drawn: Drawn) -> Sequence[ServiceSettings]:
        """A daemon, and nginx and routers of its own."""
        wanted = self.write(drawn)
        await self.gateway.start()
        await self.serving()
        return wanted

    async def end(self) -> None:
        """Everything."""
        assert (await self.cli("stop", "--all", "--timeout", "1"))[0] == 0
        assert self.gateway.process is not None
        await self.gateway.process.wait()

    async def adopt(self) -> None:
        """Another daemon."""
        assert await self.gateway.terminate() == 0
        await self.gateway.start(ready=False)
        await self.serving()

    async def reload(self, exit_code: int) -> str:
        """Takes the file in; what it said, which the metrics have to agree with."""
        before = await self.reloads()
        code, said = await self.cli("reload")
        assert code == exit_code, said
        after = await self.reloads()
        outcome = "refused" if exit_code else "done"
        assert {it: after[it] - before[it] for it in after} == {"done": 0, "refused": 0} | {outcome: 1}, said
        return said

    async def reloads(self) -> dict[str, float]:
        metrics = await metrics_of(self.gateway)
        name = "gateway_sidecar_config_reloads_total"
        return {it: metrics[name, frozenset({("outcome", it)})] for it in ("done", "refused")}

    # -- what agrees

    async def agree(
        self, now: Sequence[ServiceSettings], *, not_in_force: Sequence[str] = (), taken: Sequence[str] = ()
    ) -> None:
        """Everybody says that this is in force, and what is not; `taken`: where somebody else listens."""
        status = await self.gateway.until(lambda it: not _moving(it))
        assert {it["name"] for it in status["services"] if it["not_in_force"]} == set(not_in_force)
        assert {it.name: str(it.listen) for it in now} == {it["name"]: it["listen"] for it in status["services"]}
        assert len(status["problems"]) == len(not_in_force), status["problems"]
        code, said = await self.cli("status")
        assert (code, said.count("NOT IN FORCE")) == (0, len(not_in_force)), said
        metrics = await metrics_of(self.gateway)
        for it in now:
            value = metrics["gateway_sidecar_service_in_force", frozenset({("service", it.name)})]
            assert value == (it.name not in not_in_force), it.name
        await self.clients_agree(now, taken)

    async def commands_agree(self, not_in_force: Sequence[str] = ()) -> None:
        """As far as they go by the file."""
        code, said = await self.cli("plan", "--json")
        actions = json.loads(said)["actions"]
        assert (code, sorted(it["service"] for it in actions)) == (0, sorted(not_in_force)), said
        assert all("put listen and frontend in force" in it["action"] for it in actions), said
        code, said = await self.cli("check")
        assert code == (Exit.FAILED if not_in_force else 0), said
        for it in not_in_force:
            assert f"FAIL  the running daemon: {it}: listen and frontend" in said

    async def clients_agree(self, now: Sequence[ServiceSettings], taken: Sequence[str]) -> None:
        served = set(taken)
        for service in now:
            frontend = service.frontend
            served |= {str(it) for it in (service.listen, *frontend.listen, *frontend.redirect)}
            await Client(self, service, str(service.listen), tls=False, named=False).agrees()
            for endpoint in frontend.listen:
                client = Client(
                    self, service, str(endpoint), tls=frontend.tls is not None, named=bool(frontend.server_names)
                )
                await client.agrees()
            for endpoint in frontend.redirect:
                client = Client(self, service, str(endpoint), tls=False, named=bool(frontend.server_names))
                await client.is_led_to_https()
        for address in set(self.ground.addresses) - served:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*_split(address))


def _moving(status: Status) -> bool:
    """Whether something is under way that frontends have nothing to do with."""
    return any(
        service["router"]["state"] != "up" or any(row["state"] != "serving" for row in service["replicas"])
        for service in status["services"]
    )


def _split(address: str) -> tuple[str, int]:
    """Where a client finds what listens there."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)


class Client:
    """Asks one address of one service what its frontend says that it must answer."""

    def __init__(self, site: Site, service: ServiceSettings, address: str, *, tls: bool, named: bool) -> None:
        self._site, self._service, self._address = site, service, address
        self._frontend: FrontendSettings = service.frontend
        self._tls, self._named = tls, named
        wanted = self._frontend.server_names[0] if named else "whatever.example.net"
        self._name = wanted.replace("*", "any")
        self._where = f"{service.name} at {address}"
        spoken = self._frontend.tls if tls else None
        self._asks_certificate = spoken is not None and spoken.client_ca is not None
        self._certified = self._asks_certificate and spoken is not None and spoken.client_certificates == "required"

    def _may_ask(self, address: str) -> bool:
        """Whether a client of this address may ask: the most specific network that it is in decides."""
        lists = ((self._frontend.allow, True), (self._frontend.deny, False))
        said = [
            (ip_network(it).prefixlen, may)
            for each, may in lists
            for it in each
            if ip_address(address) in ip_network(it)
        ]
        return max(said)[1] if said else not self._frontend.allow

    @property
    def _own_address(self) -> str:
        return "::1" if "[" in self._address else "127.0.0.1"

    async def agrees(self) -> None:
        frontend = self._frontend
        if not self._may_ask(self._own_address):
            for method, path, key in (
                ("GET", "/health", None),
                ("GET", "/nothing", None),
                ("POST", SLOW_PATH, KEY * 5),
            ):
                await self._meets(method, path, key, 0, b"", 403, "address_refused")
            return
        await asyncio.gather(*(self._meets(*it) for it in self._questions()))
        if frontend.limits:
            await self._meets_its_limit()
        allowed = await self._ask("GET", "/v1/models", Origin=ORIGINS[0])
        strange = await self._ask("GET", "/v1/models", Origin="https://other.example.com")
        said = [it.headers.get("access-control-allow-origin") for it in (allowed, strange)]
        origins = frontend.cors.origins if frontend.cors else ()
        anybody = "*" if "*" in origins else None
        assert said == [anybody or (ORIGINS[0] if ORIGINS[0] in origins else None), anybody], self._where
        if self._tls:
            await self._speaks_tls(allowed)
        if self._asks_certificate:
            self._certified = not self._certified
            status, code = (200, None) if self._certified else (401, "invalid_client_certificate")
            await self._meets("GET", "/v1/models", None, 0, b"", status, code)

    def _questions(self) -> Iterator[tuple[str, str, str | None, int, bytes, int, str | None]]:
        """Method, path, key, bytes announced, body -> status (0: any but a refusal by the frontend), code."""
        frontend, auth = self._frontend, self._frontend.auth
        public = auth is None or "/v1/models" in auth.public_paths
        nobody = (200, None) if public else (401, "invalid_api_key")
        by_url = auth is not None and auth.url is not None and not public
        yield ("GET", "/v1/models", KEY * 5, 0, b"", 200, None)
        yield ("GET", "/v1/models", None, 0, b"", *nobody)
        yield ("GET", "/v1/models", "wrong", 0, b"", *nobody)
        yield ("GET", "/v1/models", BANNED, 0, b"", *((403, "forbidden") if by_url else nobody))
        healthy = auth is None or "/health" in auth.public_paths
        yield ("GET", "/health", None, 0, b"", *((200, None) if healthy else (401, "invalid_api_key")))
        yield ("POST", "/v1/chat/completions", KEY * 5, len(_CHAT), _CHAT, 200, None)
        yield ("GET", "/workers", KEY * 5, 0, b"", 404, "unknown_url")
        yield ("GET", f"{FLEET}", KEY * 5, 0, b"", *((0, None) if FLEET in frontend.paths else (404, "unknown_url")))
        passes = "all" in frontend.paths or STRANGE in frontend.paths
        yield ("GET", f"{STRANGE}/x", KEY * 5, 0, b"", *((0, None) if passes else (404, "unknown_url")))
        too_much = (frontend.max_body_mb << 20) + 1
        yield ("POST", "/v1/chat/completions", KEY * 5, too_much, b"", 413, "request_too_large")
        if not {"any", "10.1.1.1"} & set(frontend.mcp_servers):
            body = json.dumps(_MCP).encode()
            yield ("POST", "/v1/responses", KEY * 5, len(body), body, 403, "mcp_server_refused")

    async def _meets(
        self, method: str, path: str, key: str | None, announced: int, body: bytes, status: int, code: str | None
    ) -> None:
        said = await self._ask(method, path, key, body=body, announced=announced)
        where = f"{self._where}: {method} {path} with {key}: {said}"
        if status:
            assert (said.status, said.code) == (status, code), where
        else:
            assert said.code not in ("unknown_url", "invalid_api_key", "forbidden"), where

    async def _meets_its_limit(self) -> None:
        team, seen = f"team{next(_forwarded)}", []
        for _ in range(2):
            client = f"198.18.{random.randrange(256)}.{next(_forwarded) % 256}"
            if self._is_believed and not self._may_ask(client):
                return
            more = {"X-Team": team, "X-Forwarded-For": client}
            said = await self._ask("POST", SLOW_PATH, KEY * 5, body=b"{}", announced=2, **more)
            seen.append(said.code == "rate_limit_exceeded" and said.status == 429)
        assert any(seen) == any(map(self._is_met, self._frontend.limits)), (self._where, seen)

    def _is_met(self, limit: LimitSettings) -> bool:
        """By the second request of one client, who says that he is another each time."""
        is_others = limit.per == "ip" and self._is_believed
        return limit.rps is not None and abs(limit.rps - SLOW) < 0.001 and not is_others

    @property
    def _is_believed(self) -> bool:
        """Whether it counts as a proxy that says whose a request is."""
        return any(ip_address(self._own_address) in ip_network(it) for it in self._frontend.trusted_proxies)

    async def _speaks_tls(self, answer: Answer) -> None:
        tls = self._frontend.tls
        assert tls is not None
        days = int(answer.headers.get("strict-transport-security", "max-age=0").partition("=")[2]) / 86400
        assert days == tls.hsts_days, self._where
        async with self._connection("h2", "http/1.1") as (_, writer):
            spoken: ssl.SSLObject = writer.get_extra_info("ssl_object")
            assert spoken.selected_alpn_protocol() == ("h2" if tls.http2 else "http/1.1"), self._where
            found = x509.load_der_x509_certificate(spoken.getpeercert(binary_form=True) or b"")
        assert found.serial_number == own_serial(self._site.ground.pem(self._service.name)), self._where

    async def is_led_to_https(self) -> None:
        """GET and HEAD, and nothing that is worth more."""
        said = await self._ask("GET", "/v1/models")
        assert said.status == 308, (self._where, said)
        assert said.headers["location"].startswith(f"https://{self._name}"), (self._where, said)
        assert (await self._ask("GET", "/v1/models", KEY)).status == 403, self._where
        assert (await self._ask("POST", "/v1/chat/completions", body=b"{}", announced=2)).status == 403, self._where

    async def _ask(
        self, method: str, path: str, key: str | None = None, *, body: bytes = b"", announced: int = 0, **headers: str
    ) -> Answer:
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        headers |= {"Content-Length": str(announced), "Content-Type": "application/json"} if announced else {}
        if self._named:
            stranger = await self._send("GET", "/health", {}, b"", host="stranger.example.net")
            assert (stranger.status, stranger.code) == (421, "unknown_host"), (self._where, stranger)
        return await self._send(method, path, headers, body, host=self._name)

    async def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, host: str) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        async with self._connection() as (reader, writer):
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            found = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            # Not to the connection's end: nginx waits 5 s for the rest of a body that it has refused.
            rest = await reader.readexactly(int(found.get("content-length", "0")))
            rest = rest or await reader.read() if "transfer-encoding" in found else rest
        code = None
        if b'"error"' in rest and "x-smg-error-code" not in found:
            code = json.loads(rest[rest.index(b"{") : rest.rindex(b"}") + 1])["error"].get("code")
        return Answer(int(head[0].split()[1]), found, code)

    @asynccontextmanager
    async def _connection(self, *alpn: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        context = None
        if self._tls:
            context = ssl._create_unverified_context()
            context.set_alpn_protocols(list(alpn) or ["http/1.1"])
            if self._certified:
                alice = self._site.ground.client_ca.with_name("alice.crt")
                context.load_cert_chain(alice, alice.with_suffix(".key"))
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(
                *_split(self._address), ssl=context, server_hostname=self._name if context else None
            )
            try:
                yield reader, writer
            finally:
                writer.transport.abort()


# -- how a change can be refused


@contextmanager
def somebody_listens(site: Site, before: Sequence[ServiceSettings], wanted: Sequence[ServiceSettings]) -> Iterator[str]:
    """Where one of these is to listen, and nothing of ours does yet; which one that is."""
    had = {str(it) for service in before for it in _addresses(service)}
    host, port, service = next(
        (*_split_as_it_is(it), service.name)
        for service in wanted
        for it in map(str, _addresses(service))
        if it not in had
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):
        yield service


@contextmanager
def nginx_has_no_files(
    site: Site, before: Sequence[ServiceSettings], wanted: Sequence[ServiceSettings]
) -> Iterator[str]:
    """It cannot open its configuration, whatever is in it."""
    record = json.loads((site.gateway.directory / "run" / "processes.json").read_text())
    pid = int(record["nginx"]["pid"])
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield ""
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _addresses(service: ServiceSettings) -> Sequence[Any]:
    return (service.listen, *service.frontend.listen, *service.frontend.redirect)


def _split_as_it_is(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def one_of_both(
    site: Site, before: Sequence[ServiceSettings], wanted: Sequence[ServiceSettings]
) -> AbstractContextManager[str]:
    """The first, if there is an address that is new."""
    had, has = ({str(it) for service in each for it in _addresses(service)} for each in (before, wanted))
    return somebody_listens(site, before, wanted) if has - had else nginx_has_no_files(site, before, wanted)


REFUSALS: Sequence[Callable[..., Any]] = (one_of_both, nginx_has_no_files)


async def one_example(
    site: Site, drawn: Sequence[Drawn], refusal: Callable[..., Any], *, cold: bool, again: bool
) -> None:
    first, second, third = drawn
    # Served.
    running = site.gateway.process is not None
    if running and cold:
        await site.end()
    if running and not cold:
        now = site.write(first)
        await site.reload(0)
    else:
        now = await site.begin(first)
    await site.agree(now)
    await site.commands_agree()
    # Adopted.
    await site.adopt()
    await site.agree(now)
    # Changed.
    now = site.write(second)
    await site.reload(0)
    await site.agree(now)
    await site.commands_agree()
    # A file that cannot be used.
    good = site.gateway.config_path.read_text()
    site.gateway.config_path.write_text(good.replace("frontend:", "frontent:", 1))
    await site.reload(Exit.CONFIG)
    for command in ("check", "plan"):
        assert (await site.cli(command))[0] == Exit.CONFIG
    site.gateway.config_path.write_text(good)
    await site.agree(now)
    # A change that is refused: each service is as it was, or as it is to be, and it is said which.
    wanted = site.write(third)
    changed = {it.name for it, old in zip(wanted, now, strict=True) if _addressed(it) != _addressed(old)}
    if not changed:
        return
    with refusal(site, now, wanted) as refused:
        await site.reload(Exit.FAILED)
        await refused_whole(site, now, wanted, changed, refused)
        if again:
            await site.adopt()
            await refused_whole(site, now, wanted, changed, refused)
    await site.reload(0)
    await site.agree(wanted)
    await site.commands_agree()


def _addressed(service: ServiceSettings) -> object:
    return service.listen, service.frontend


async def refused_whole(
    site: Site, before: Sequence[ServiceSettings], wanted: Sequence[ServiceSettings], changed: set[str], refused: str
) -> None:
    status = await site.gateway.status()
    missing = [it["name"] for it in status["services"] if it["not_in_force"]]
    assert (refused in missing) if refused else (set(missing) == changed), status["problems"]
    now = [old if it.name in missing else it for it, old in zip(wanted, before, strict=True)]
    taken = [str(it) for service in wanted for it in _addresses(service)] if refused else ()
    await site.agree(now, not_in_force=missing, taken=taken)
    await site.commands_agree(missing)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.mark.timeout(0 if AT_RANDOM else 900)
def test_every_frontend_is_served_adopted_changed_and_refused_whole(runner: asyncio.Runner) -> None:
    """What `status`, `plan`, `check`, exit codes and metrics say is what a client gets, at every step."""
    sites: list[Site] = []

    # An example that fails is not made smaller: what came before it in the same nginx is part of it.
    @settings(
        max_examples=AT_RANDOM or 8,
        derandomize=not AT_RANDOM,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        if not sites:
            sites.append(Site())
            runner.run(sites[0].open())
        site = sites[0]
        drawn = [data.draw(services(site.ground)) for _ in range(3)]
        refusal = data.draw(st.sampled_from(REFUSALS))
        cold, again = (data.draw(st.sampled_from((False, False, True)), label=it) for it in ("cold", "again"))
        try:
            runner.run(one_example(site, drawn, refusal, cold=cold, again=again))
        except BaseException:
            note(site.gateway.log()[-6000:])
            runner.run(sites.pop().close())
            raise

    try:
        examples()
    finally:
        for site in sites:
            runner.run(site.close())
