"""Where clients are, and which certificate they bring: who is refused before any key is looked at."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway_sidecar.config import FrontendSettings, LimitSettings
from gateway_sidecar.frontend.edit_keys import add_key
from tests.certificates import Authority, certificate
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of
from tests.system.test_access_log import until_lines
from tests.system.test_frontend_keys import listening, post, serving
from tests.system.test_frontend_tls import NAME, problem_of, public
from tests.system.test_shared_address import shared
from tests.system.test_trust_frontend import Router, frontend_at
from tests.users import DAEMON, give

pytestmark = pytest.mark.own_users

PROXIES = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """The daemon's user's, so that nginx runs as him: pytest's own lies where nobody else can go."""
    with TemporaryDirectory(prefix="gw-", dir="/tmp") as made:
        give(Path(made), DAEMON, 0o750)
        yield Path(made)


async def ask(url: str, *forwarded: str, method: str = "GET", path: str = "/v1/models", **headers: str) -> int:
    """The status of an answer; a refusal by address has its form, and no other answer of 403 is awaited here."""
    sent = [("X-Forwarded-For", it) for it in forwarded] + list(headers.items())
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{url}{path}", headers=sent, allow_redirects=False) as response,
    ):
        if response.status == 403:
            error = json.loads(await response.text())["error"]
            assert (error["code"], set(error)) == ("address_refused", {"message", "type", "param", "code"})
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["X-Request-Id"]
        return response.status


@pytest.mark.parametrize(
    ("allow", "deny", "let_in", "refused"),
    [
        (["192.0.2.0/24"], [], ["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0", "::", "2001:db8::1"]),
        ([], ["192.0.2.0/24"], ["192.0.1.255", "192.0.3.0", "2001:db8::1"], ["192.0.2.0", "192.0.2.255"]),
        (["192.0.2.0/24"], ["192.0.2.128/25"], ["192.0.2.127"], ["192.0.2.128", "192.0.3.1"]),
        (["192.0.2.7"], ["192.0.2.0/24"], ["192.0.2.7"], ["192.0.2.6", "198.51.100.1"]),
        (["192.0.2.7"], ["0.0.0.0/0"], ["192.0.2.7"], ["192.0.2.6", "2001:db8::1"]),
        (["0.0.0.0/0"], [], ["192.0.2.6"], ["2001:db8::1"]),
        ([], ["::/0"], ["192.0.2.6"], ["2001:db8::1", "::1"]),
        (["2001:db8::/32"], ["2001:db8:1::/48"], ["2001:db8::1", "2001:DB8:2::1"], ["2001:db8:1::1", "2001:db9::1"]),
        (["2001:db8::7"], [], ["2001:db8::7", "2001:db8:0:0::7"], ["2001:db8::8", "192.0.2.7"]),
        # IPv4 in IPv6's clothes is IPv4, whichever list it is in.
        (["192.0.2.0/24"], ["::/0"], ["::ffff:192.0.2.1"], ["::ffff:198.51.100.1", "::192.0.2.1"]),
        ([], ["192.0.2.1"], ["::ffff:192.0.2.2"], ["::ffff:192.0.2.1", "::ffff:c000:201"]),
    ],
    ids=str,
)
async def test_the_most_specific_network_decides(
    tmp_path: Path, allow: list[str], deny: list[str], let_in: list[str], refused: list[str]
) -> None:
    """With `allow` everybody else is refused, of IPv4 and of IPv6."""
    settings = FrontendSettings.model_validate({"trusted_proxies": PROXIES, "allow": allow, "deny": deny})
    async with frontend_at(tmp_path, settings, Router()) as (url, _):
        assert {it: await ask(url, it) for it in let_in} == dict.fromkeys(let_in, 200)
        assert {it: await ask(url, it) for it in refused} == dict.fromkeys(refused, 403)
    assert "duplicate network" not in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1:8443"], "192.0.2.1"),
        (["[2001:db8::1]:8443"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        ([" 192.0.2.1 ,10.1.2.3,fd00::1 "], "192.0.2.1"),
        # What a client wrote before the proxies that are known does not count.
        (["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
        (["10.9.9.9, 198.51.100.1, 192.0.2.1, 10.0.0.1"], "192.0.2.1"),
        (["198.51.100.1", "192.0.2.1"], "192.0.2.1"),
        (["198.51.100.1, 192.0.2.1", "10.0.0.1", "fd00::1, 10.0.0.2"], "192.0.2.1"),
        (["::ffff:192.0.2.1, ::ffff:10.0.0.1"], "::ffff:192.0.2.1"),
        # Proxies all the way: the farthest of them.
        (["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        # Where it cannot be read, the last proxy that said something readable counts as the client.
        (["198.51.100.1, unknown"], "127.0.0.1"),
        (["198.51.100.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        (["198.51.100.1, 192.0.2.999"], "127.0.0.1"),
        (["[2001:db8::1]"], "127.0.0.1"),
        (["fe80::1%eth0"], "127.0.0.1"),
        (["unix:/run/x"], "127.0.0.1"),
        ([""], "127.0.0.1"),
        ([","], "127.0.0.1"),
        (["x" * 7_000], "127.0.0.1"),
        ([", ".join(["198.51.100.1"] * 400 + ["192.0.2.1"])], "192.0.2.1"),
        ([", ".join(["192.0.2.1"] + ["10.0.0.1"] * 600)], "192.0.2.1"),
    ],
    ids=lambda it: str(it)[:40],
)
async def test_chains_of_proxies_are_read_from_the_end(tmp_path: Path, forwarded: list[str], client: str) -> None:
    """Of `X-Forwarded-For` only what proxies said that are named: the first from the end that is none of them."""
    router = Router()
    proxies = FrontendSettings(trusted_proxies=PROXIES)
    async with frontend_at(tmp_path, proxies, router) as (url, _):
        assert await ask(url, *forwarded) == 200
        assert router.seen[-1][1]["X-Forwarded-For"] == client


async def test_who_is_no_named_proxy_says_nothing(tmp_path: Path) -> None:
    """Neither without `trusted_proxies`, nor from another address than theirs; no other header is believed."""
    allow = {"allow": ["192.0.2.0/24", "2001:db8::/32"]}
    told = {"Forwarded": "for=192.0.2.1", "X-Real-IP": "192.0.2.1", "X-Client-IP": "192.0.2.1", "CF-Connecting-IP": "x"}
    for proxies in ((), ("10.0.0.0/8", "127.0.0.2")):
        directory = tmp_path / str(len(proxies))
        directory.mkdir()
        give(directory, DAEMON, 0o750)
        settings = FrontendSettings.model_validate({"trusted_proxies": proxies, **allow})
        async with frontend_at(directory, settings, Router()) as (url, _):
            assert await ask(url, "192.0.2.1", **told) == 403


async def test_an_address_is_judged_before_all_else(tmp_path: Path) -> None:
    """Path, browser's question, key, limit, body and hold: nobody who is refused learns of any of these."""
    router = Router()
    settings = FrontendSettings.model_validate(
        {
            "trusted_proxies": PROXIES,
            "deny": ["192.0.2.66"],
            "cors": {"origins": ["*"]},
            "auth": {"keys_file": str(tmp_path / "unused"), "public_paths": ["/health"]},
            "limits": [LimitSettings(per="ip", rps=1 / 60)],
            "max_body_mb": 1,
        }
    )
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with frontend_at(tmp_path, settings, router) as (url, client):
        for _ in range(3):
            for method, path in (("GET", "/health"), ("GET", "/workers"), ("POST", "/v1/completions"), ("GET", "/")):
                assert await ask(url, "192.0.2.66", method=method, path=path) == 403
            assert await ask(url, "192.0.2.66", method="OPTIONS", path="/v1/completions", **preflight) == 403
            assert await ask(url, "192.0.2.66", Origin="https://a.example") == 403
        large = {"X-Forwarded-For": "192.0.2.66", "Origin": "https://a.example"}
        async with client.post(f"{url}/v1/completions", data=io.BytesIO(b"x" * 2_000_000), headers=large) as response:
            assert response.status == 403
            assert response.headers["Access-Control-Allow-Origin"] == "*", "so that a page can read why"
        assert await ask(url, "192.0.2.67", method="OPTIONS", path="/v1/completions", **preflight) == 204
        assert await ask(url, "192.0.2.67") == 401
        assert await ask(url, "192.0.2.67", path="/health") == 200
        # Nobody counts who was refused.
        assert await ask(url, "192.0.2.68", path="/health") == 200
        assert await ask(url, "192.0.2.68", path="/health") == 429
    assert len(router.seen) == 2


async def test_lists_change_by_a_reload(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Who is refused does not wait for a replica; the service's own address counts too; a mistake changes nothing."""
    gateway = make_gateway()
    here = await serving(gateway, engine)
    assert (await post(gateway, None))[0] == 200
    frontend: dict[str, Any] = {"allow": ["192.0.2.0/24"]}
    gateway.settings["services"][0]["frontend"] = frontend
    gateway.configure()
    assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: frontend\n")
    status, body, _ = await post(gateway, None)
    assert (status, body["error"]["code"]) == (403, "address_refused")
    await here.stop(grace_s=0)
    await gateway.until(lambda s: not service_of(s)["replicas"])
    assert (await asyncio.wait_for(post(gateway, None), 20))[0] == 403
    frontend["deny"] = ["192.0.2.0/24"]
    gateway.configure()
    code, _, err = await gateway.cli("reload")
    assert code != 0
    assert "services[0].frontend.deny[0]: 192.0.2.0/24 is services[0].frontend.allow[0]" in err
    assert (await post(gateway, None))[0] == 403, "what was in force stays"


# -- client certificates


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """One whose certificates count."""
    return Authority(tmp_path, "ours")


def with_mtls(gateway: Gateway, file: Path, service: int = 0, **more: Any) -> int:
    """Gives a service a public address that asks for certificates of this file's authorities; its port."""
    tls = {"client_ca": str(file)} | {it: more.pop(it) for it in list(more) if it.startswith("client_")}
    port = public(gateway, service, **more)
    gateway.settings["services"][service]["frontend"]["tls"] |= tls
    for path in (gateway.directory / "tls").iterdir():
        give(path, DAEMON, path.stat().st_mode & 0o777)
    return port


def context(pair: tuple[Path, Path] | None, **options: Any) -> ssl.SSLContext:
    """A client that shows this certificate, or none."""
    made = ssl._create_unverified_context()
    for option, value in options.items():
        setattr(made, option, value)
    if pair is not None:
        made.load_cert_chain(*pair)
    return made


async def over_tls(
    port: int, pair: tuple[Path, Path] | None, path: str = "/v1/models", *, method: str = "GET", **headers: str
) -> tuple[int, str | None]:
    """The status, and the code of an error."""
    connector = aiohttp.TCPConnector(ssl=context(pair), force_close=True)
    host = headers.get("Host", NAME)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(
            method, f"https://127.0.0.1:{port}{path}", headers={"Host": host, **headers}, server_hostname=host
        ) as response,
    ):
        text = await response.text()
        code = None
        if response.status >= 400:
            assert response.headers["Content-Type"] == "application/json"
            code = json.loads(text)["error"]["code"]
        return response.status, code


REFUSED = (401, "invalid_client_certificate")
NO_KEY = (401, "invalid_api_key")
LET_IN = (200, None)


async def test_only_certificates_of_the_authority_come_in(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority
) -> None:
    """One clear answer to none, another authority's, one that is over, one that is for servers, one of itself."""
    gateway = make_gateway()
    port = with_mtls(gateway, ca.certificate, cors={"origins": ["https://a.example"]})
    await serving(gateway, engine)
    foreign = Authority(ca.directory, "foreign")
    names = [(NameOID.COMMON_NAME, "alice"), (NameOID.ORGANIZATION_NAME, "Example")]
    subject = x509.Name([x509.NameAttribute(*it) for it in names])
    assert await over_tls(port, ca.sign("alice", subject)) == LET_IN
    assert await over_tls(port, ca.sign("client", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)) == LET_IN
    assert await over_tls(port, None) == REFUSED
    assert await over_tls(port, foreign.sign("bob")) == REFUSED
    assert await over_tls(port, ca.sign("old", days=-1)) == REFUSED
    assert await over_tls(port, ca.sign("server", purpose=ExtendedKeyUsageOID.SERVER_AUTH)) == REFUSED
    alone = certificate(ca.directory, "alone", stem="alone")
    assert await over_tls(port, (alone, alone.with_suffix(".key"))) == REFUSED
    long = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x" * 60) for _ in range(4)])
    assert await over_tls(port, ca.sign("long", long)) == REFUSED, "it could not be counted by its name"
    assert await over_tls(port, None, "/health") == REFUSED
    assert (await over_tls(port, None, "/workers"))[1] == "unknown_url"
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert await over_tls(port, None, method="OPTIONS", **asks) == (204, None), "browsers send none with this question"
    assert (await post(gateway, None))[0] == 200, "the service's own address speaks no TLS"


@pytest.mark.parametrize(
    ("certificates", "auth", "answers"),
    [
        # With: nothing, a key, a certificate, both, a wrong key and a certificate.
        ("required", "none", (REFUSED, REFUSED, LET_IN, LET_IN, LET_IN)),
        ("required", "keys", (REFUSED, REFUSED, NO_KEY, LET_IN, NO_KEY)),
        ("required", "url", (REFUSED, REFUSED, NO_KEY, LET_IN, NO_KEY)),
        ("optional", "keys", (NO_KEY, LET_IN, LET_IN, LET_IN, LET_IN)),
        ("optional", "url", (NO_KEY, LET_IN, LET_IN, LET_IN, LET_IN)),
    ],
)
async def test_which_combinations_of_key_and_certificate_hold(
    make_gateway: MakeGateway,
    engine: StartEngine,
    ca: Authority,
    certificates: str,
    auth: str,
    answers: tuple[tuple[int, str | None], ...],
) -> None:
    """Both where certificates are required, one of the two where they are optional."""
    gateway = make_gateway()
    key, file = "sk-right-and-long-enough", gateway.directory / "chat.keys"
    add_key(file, "alice", key)
    give(file, DAEMON, 0o600)
    asked: list[str] = []

    async def judge(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization", ""))
        return web.Response(status=204 if asked[-1] == f"Bearer {key}" else 401)

    async with listening(judge) as decider:
        ways: dict[str, dict[str, Any]] = {
            "none": {},
            "keys": {"auth": {"keys_file": str(file)}},
            "url": {"auth": {"url": f"http://127.0.0.1:{decider}/auth", "timeout_s": 60}},
        }
        port = with_mtls(gateway, ca.certificate, client_certificates=certificates, **ways[auth])
        await serving(gateway, engine)
        pair = ca.sign("alice")
        shown = {"Authorization": f"Bearer {key}"}
        wrong = {"Authorization": "Bearer wrong"}
        found = [
            await over_tls(port, None),
            await over_tls(port, None, **shown),
            await over_tls(port, pair),
            await over_tls(port, pair, **shown),
            await over_tls(port, pair, **wrong),
        ]
        assert tuple(found) == answers
        other = Authority(ca.directory, "other").sign("alice")
        assert await over_tls(port, other, **shown) == REFUSED, "one that is sent must be good, even where none need be"


async def test_of_one_authority_only_named_certificates_count(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority
) -> None:
    """By the common name as a whole: no other part of a subject, however it is spelt, passes for it."""
    gateway = make_gateway()
    port = with_mtls(gateway, ca.certificate, client_names=["alice", "a.b c@d_e-f"])
    await serving(gateway, engine)

    def subject(*parts: tuple[Any, str]) -> x509.Name:
        return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])

    cn, o = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME
    for good in (
        subject((cn, "alice")),
        subject((cn, "a.b c@d_e-f")),
        subject((o, "Example, Inc."), (cn, "alice")),
        subject((cn, "alice"), (o, "Example\\, \u00e9")),
    ):
        assert await over_tls(port, ca.sign("one", good)) == LET_IN, good
    together = x509.RelativeDistinguishedName([x509.NameAttribute(o, "x"), x509.NameAttribute(cn, "alice")])
    for bad in (
        subject((cn, "alice2")),
        subject((cn, "Alice")),
        subject((cn, "xalice")),
        subject((cn, "a-b c@d_e-f")),
        subject((o, "alice")),
        subject((o, "CN=alice")),
        subject((cn, "bob"), (o, "x,CN=alice")),
        subject((cn, "bob"), (o, "x,CN=alice,O=y")),
        subject((cn, "bob"), (o, "x\\,CN=alice")),
        subject((cn, "bob,CN=alice")),
        subject((cn, "bob\\,CN=alice")),
        subject((cn, 'bob",CN=alice')),
        subject((cn, "bob\nCN=alice")),
        subject((cn, "alice\n")),
        x509.Name([together]),
        x509.Name([]),
    ):
        assert await over_tls(port, ca.sign("one", bad)) == REFUSED, bad


async def test_who_came_by_certificate_is_nobody_else(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """A limit by key counts its subject, which no key's name can be."""
    ca = Authority(tmp_path, "ours")
    gateway = make_gateway()
    file = gateway.directory / "chat.keys"
    key = add_key(file, "alice")
    give(file, DAEMON, 0o600)
    limits = [{"per": "key", "rps": 1 / 60}]
    port = with_mtls(
        gateway, ca.certificate, client_certificates="optional", auth={"keys_file": str(file)}, limits=limits
    )
    await serving(gateway, engine)
    one, other = ca.sign("alice"), ca.sign("bob")
    mine = {"Authorization": f"Bearer {key}"}
    for pair, headers in ((one, {}), (other, {}), (None, mine)):
        assert await over_tls(port, pair, **headers) == LET_IN
        assert await over_tls(port, pair, **headers) == (429, "rate_limit_exceeded")
    assert (await over_tls(port, one, **mine))[0] == 429, "whoever shows a key is its holder"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("first", ["chat", "code"])
@pytest.mark.parametrize("others", ["another authority", "no authority"])
async def test_nobody_slips_from_one_names_authority_to_anothers(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority, version: ssl.TLSVersion, first: str, others: str
) -> None:
    """Host unlike SNI, no SNI, an unknown one, and a session that is resumed under another name."""
    order = (first, "code" if first == "chat" else "chat")
    gateway = make_gateway(services=order)
    theirs = Authority(ca.directory, "theirs")
    chat, code, stranger = "chat.example.com", "code.example.com", "stranger.example.com"
    # The one whose certificates we have has the first server at the address, or the second.
    port = with_mtls(gateway, ca.certificate, order.index("chat"), names=(chat,), port=6)
    if others == "another authority":
        with_mtls(gateway, theirs.certificate, order.index("code"), names=(code,), port=6)
    else:
        public(gateway, order.index("code"), names=(code,), port=6)
        for path in (gateway.directory / "tls").iterdir():
            give(path, DAEMON, path.stat().st_mode & 0o777)
    await gateway.start()
    for service in order:
        await engine(gateway.socket("r1", service))
        await gateway.until_states({"r1": "serving"}, service=service)
    certified, bare = context(ca.sign("alice")), context(None)
    for each in (certified, bare):
        each.minimum_version = each.maximum_version = version

    def ask(
        by: ssl.SSLContext, sni: str | None, host: str, session: ssl.SSLSession | None = None
    ) -> tuple[int, ssl.SSLSession | None, bool]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as raw,
            by.wrap_socket(raw, server_hostname=sni, session=session) as tls,
        ):
            tls.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := tls.recv(65536):
                answer += part
            return int(answer.split()[1]), tls.session, bool(tls.session_reused)

    async def status(by: ssl.SSLContext, sni: str | None, host: str) -> int:
        return (await asyncio.to_thread(ask, by, sni, host))[0]

    free = others == "no authority"
    assert await status(certified, chat, chat) == 200
    assert await status(bare, chat, chat) == 401
    assert await status(certified, code, code) == await status(bare, code, code) == (200 if free else 401)
    for by in (certified, bare):
        for sni in (code, stranger, None):
            assert await status(by, sni, chat) in (401, 421), sni
        for sni in (chat, stranger, None):
            said = await status(by, sni, code)
            assert (said == 200) if free else (said in (401, 421)), sni
    for by in (certified, bare):
        for before in (chat, code):
            _, session, _ = await asyncio.to_thread(ask, by, before, before)
            for after in (chat, code):
                said, _, reused = await asyncio.to_thread(ask, by, after, after, session)
                assert said == (200 if (after == chat and by is certified) or (after == code and free) else 401)
                assert not reused, "nothing is kept of a handshake"


async def test_nobody_slips_over_one_connection_of_many_streams(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority
) -> None:
    """HTTP/2: each stream may name another host, and the connection is of one name alone."""
    gateway = make_gateway(services=("chat", "code"))
    theirs = Authority(ca.directory, "theirs")
    hosts = ("chat.example.com", "code.example.com")
    for number, authority in enumerate((ca, theirs)):
        port = with_mtls(gateway, authority.certificate, number, names=hosts[number : number + 1], port=6)
        gateway.settings["services"][number]["frontend"]["tls"]["http2"] = True
    await gateway.start()
    for service in ("chat", "code"):
        await engine(gateway.socket("r1", service))
        await gateway.until_states({"r1": "serving"}, service=service)
    mine = context(ca.sign("alice"))
    mine.set_alpn_protocols(["h2"])
    async with httpx.AsyncClient(http2=True, http1=False, verify=mine, timeout=30) as http:
        said = []
        for host in (*hosts, "stranger.example.com", hosts[0]):
            answer = await http.get(
                f"https://127.0.0.1:{port}/v1/models", headers={"Host": host}, extensions={"sni_hostname": hosts[0]}
            )
            assert answer.http_version == "HTTP/2"
            said.append((answer.status_code, answer.json().get("error", {}).get("code")))
        assert said == [LET_IN, (421, "misdirected_request"), (421, "unknown_host"), LET_IN]


async def test_a_shared_address_has_authorities_and_clients_of_its_own(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority
) -> None:
    """Those of the services behind it do not count there, nor its own at theirs."""
    gateway = shared(make_gateway, {"tiny": "chat"}, services=("chat",))
    theirs = Authority(ca.directory, "theirs")
    own = with_mtls(gateway, theirs.certificate, port=6)
    pem = gateway.directory / "tls" / "s0.pem"
    port = own + 1
    gateway.settings["addresses"][0]["frontend"] = {
        "listen": [f"127.0.0.1:{port}"],
        "tls": {"certificate": str(pem), "key": str(pem.with_suffix(".key")), "client_ca": str(ca.certificate)},
    }
    gateway.settings["services"][0]["frontend"]["deny"] = ["127.0.0.1"]
    await gateway.start()
    await engine(gateway.socket("r1"), model="tiny")
    await gateway.until_states({"r1": "serving"})
    mine, its = ca.sign("alice"), theirs.sign("bob")
    assert await over_tls(port, mine) == LET_IN
    assert await over_tls(port, its) == REFUSED
    assert await over_tls(port, None) == REFUSED
    assert await over_tls(own, its) == (403, "address_refused")
    gateway.settings["services"][0]["frontend"]["deny"] = []
    gateway.settings["addresses"][0]["frontend"]["allow"] = ["192.0.2.0/24"]
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    assert await over_tls(port, mine) == (403, "address_refused")
    assert await over_tls(own, its) == LET_IN
    assert await over_tls(own, mine) == REFUSED


@pytest.mark.parametrize("auth", [None, "http://127.0.0.1:9/"], ids=["no keys", "another server"])
@pytest.mark.parametrize("where", ["service", "shared address"])
async def test_the_access_log_names_who_came_by_certificate(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority, where: str, auth: str | None
) -> None:
    """By its subject, as where there are keys. A certificate that does not count names nobody."""
    gateway = shared(make_gateway, {"tiny": "chat"}, services=("chat",))
    ways: dict[str, Any] = {"client_certificates": "optional", "auth": {"url": auth}} if auth else {}
    port = with_mtls(gateway, ca.certificate, access_log="all", **ways)
    if where == "shared address":
        gateway.settings["addresses"][0]["frontend"] = gateway.settings["services"][0].pop("frontend")
    await serving(gateway, engine)
    theirs = Authority(ca.directory, "theirs")
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, 'a"l'), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x")]
    )
    assert await over_tls(port, ca.sign("alice", subject)) == LET_IN
    assert (await over_tls(port, ca.sign("bob"), "/workers")) == (404, "unknown_url")
    assert await over_tls(port, theirs.sign("mallory")) == REFUSED
    named = [line["key"] for line in await until_lines(gateway, 3)]
    assert named == ['certificate:O=x,CN=a\\"l', "certificate:CN=bob", ""]


async def test_another_authority_counts_without_a_failed_request(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority
) -> None:
    """New ones count, old ones do not; what is open goes on; a broken file changes nothing and is told."""
    gateway = make_gateway()
    file = gateway.directory / "clients.pem"

    def put(content: bytes) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_bytes(content)
        give(fresh, DAEMON, 0o644)
        fresh.rename(file)

    put(ca.certificate.read_bytes())
    port = with_mtls(gateway, file)
    await serving(gateway, engine)
    old, new = ca.sign("alice"), Authority(ca.directory, "theirs")
    mine = new.sign("bob")
    assert await over_tls(port, old) == LET_IN
    assert await over_tls(port, mine) == REFUSED
    answers: set[tuple[int, str | None]] = set()
    ended = asyncio.Event()

    async def ask_on() -> None:
        connector = aiohttp.TCPConnector(ssl=context(old), limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not ended.is_set():
                async with session.get(
                    f"https://127.0.0.1:{port}/v1/models", headers={"Host": NAME}, server_hostname=NAME
                ) as response:
                    answers.add((response.status, None))

    asking = [asyncio.create_task(ask_on()) for _ in range(4)]
    put(ca.certificate.read_bytes() + new.certificate.read_bytes())
    async with asyncio.timeout(60):
        while await over_tls(port, mine) != LET_IN:
            await asyncio.sleep(0.05)
    ended.set()
    await asyncio.gather(*asking)
    assert answers == {LET_IN}
    assert await over_tls(port, old) == LET_IN
    put(new.certificate.read_bytes())
    async with asyncio.timeout(60):
        while await over_tls(port, old) != REFUSED:
            await asyncio.sleep(0.05)
    assert await over_tls(port, mine) == LET_IN
    reloads = (await gateway.status())["nginx"]["reloads"]
    for content, words in ((b"rubbish", "holds no certificate"), (mine[1].read_bytes(), "holds no certificate")):
        put(content)
        await gateway.until(lambda status, words=words: words in problem_of(status, "client_ca"))  # type: ignore[misc]
    file.unlink()
    await gateway.until(lambda status: "no such file" in problem_of(status, "client_ca"))
    assert await over_tls(port, mine) == LET_IN
    assert (await gateway.status())["nginx"]["reloads"] == reloads == 2
    # The next daemon, and an nginx that is started anew, have what was good.
    await gateway.kill()
    await gateway.start(ready=False)
    await gateway.until(lambda status: "no such file" in problem_of(status, "client_ca"))
    assert await over_tls(port, mine) == LET_IN
    assert await over_tls(port, old) == REFUSED
    assert (await gateway.status())["nginx"]["reloads"] == 0
    code, out, _ = await gateway.cli("check")
    assert code == 1
    assert f"FAIL  chat: {file}: no such file" in out
    put(new.certificate.read_bytes())
    await gateway.until(lambda status: not problem_of(status, "client_ca"))


async def test_without_a_good_file_no_certificate_counts(
    make_gateway: MakeGateway, engine: StartEngine, ca: Authority
) -> None:
    """From the first start on; what is there later counts, without a restart."""
    gateway = make_gateway()
    file = gateway.directory / "clients.pem"
    port = with_mtls(gateway, file)
    await serving(gateway, engine)
    assert "no client gets in until it can be used" in problem_of(await gateway.status(), "client_ca")
    pair = ca.sign("alice")
    assert await over_tls(port, pair) == REFUSED
    assert await over_tls(port, None) == REFUSED
    file.write_bytes(ca.certificate.read_bytes())
    give(file, DAEMON, 0o600)
    async with asyncio.timeout(60):
        while await over_tls(port, pair) != LET_IN:
            await asyncio.sleep(0.05)
    assert (await gateway.cli("stop", "--all"))[0] == 0
    assert list((gateway.directory / "run" / "frontends").iterdir()) == []
