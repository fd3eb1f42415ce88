"""Public addresses: TLS with certificates that change, names, HTTP to HTTPS, browsers, body size."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import ssl
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from cryptography import x509

from gateway_sidecar.frontend.edit_keys import add_key
from gateway_sidecar.frontend.served_files import place_certificate
from gateway_sidecar.nginx.client_headers import CREDENTIALS
from tests.certificates import certificate
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import PATIENCE_S, Gateway, Status
from tests.system.test_operation import metrics_of

NAME = "api.example.com"


def public(gateway: Gateway, service: int = 0, *, names: tuple[str, ...] = (), port: int = 6, **more: Any) -> int:
    """Gives a service a public address with TLS; its port."""
    address = gateway.ports["chat"] + port
    pem = certificate(gateway.directory / "tls", *(names or (NAME,)), stem=f"s{service}")
    gateway.settings["services"][service]["frontend"] = {
        "listen": [f"127.0.0.1:{address}"],
        "tls": {"certificate": str(pem), "key": str(pem.with_suffix(".key"))},
        "server_names": list(names),
        **more,
    }
    return address


def serial(port: int, name: str = NAME, **options: Any) -> int:
    """The serial number of the certificate that is served to a new connection. Blocks."""
    context = ssl._create_unverified_context()
    for option, value in options.items():
        setattr(context, option, value)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def own_serial(pem: Path) -> int:
    return x509.load_pem_x509_certificate(pem.read_bytes()).serial_number


async def until_serial(port: int, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while await asyncio.to_thread(serial, port) != wanted:
        assert time.monotonic() < deadline, "another certificate is served"
        await asyncio.sleep(0.01)


async def fetch(url: str, *, method: str = "GET", **options: Any) -> tuple[int, str, dict[str, str]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, ssl=False, allow_redirects=False, **options) as response,
    ):
        return response.status, await response.text(), dict(response.headers)


async def until_counted(gateway: Gateway, wanted: dict[str, float]) -> None:
    """Waits until nginx's events of so many answered requests were heard, for each service its own."""
    counted = "gateway_sidecar_requests_total"
    async with asyncio.timeout(60):
        while True:
            metrics = await metrics_of(gateway)
            found = {
                service: metrics.get((counted, frozenset({("service", service), ("outcome", "ok")})), 0.0)
                for service in wanted
            }
            if found == wanted:
                return
            await asyncio.sleep(0.1)


def problem_of(status: Status, part: str) -> str:
    return next((text for text in status["problems"] if f"chat: frontend {part}" in text), "")


async def test_a_new_certificate_is_served_without_a_reload(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Connections that are open go on; one that turns bad changes nothing, and is told."""
    gateway = make_gateway()
    port = public(gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    tls = gateway.directory / "tls"
    pem, key = tls / "s0.pem", tls / "s0.key"
    await until_serial(port, own_serial(pem))
    context = ssl._create_unverified_context()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)

    async def kept() -> bytes:
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
        return head.split()[1]

    assert await kept() == b"200"
    certificate(tls, NAME, stem="s0")
    good = own_serial(pem)
    await until_serial(port, good)
    assert await kept() == b"200"
    good_pem, good_key = pem.read_bytes(), key.read_bytes()

    expired = certificate(tls, NAME, days=-1, stem="expired")
    other = certificate(tls, NAME, stem="other")
    for pem_bytes, key_bytes, words in (
        (b"rubbish", good_key, "holds no certificate"),
        (good_pem, b"rubbish", "holds no private key"),
        (other.read_bytes(), good_key, "is not the key of"),
        (expired.read_bytes(), expired.with_suffix(".key").read_bytes(), "expired at"),
    ):
        pem.write_bytes(pem_bytes)
        key.write_bytes(key_bytes)
        await gateway.until(lambda status, words=words: words in problem_of(status, "certificate"))  # type: ignore[misc]
        assert await asyncio.to_thread(serial, port) == good
    pem.unlink()
    await gateway.until(lambda status: "no such file" in problem_of(status, "certificate"))
    assert await asyncio.to_thread(serial, port) == good
    _, metrics, _ = await fetch(f"http://127.0.0.1:{gateway.metrics_port}/metrics")
    assert 'gateway_sidecar_frontend_problem{part="certificate",service="chat"} 1.0' in metrics
    expiry = re.search(r'certificate_expiry_timestamp_seconds\{service="chat"\} ([\d.e+]+)', metrics)
    assert expiry is not None
    assert abs(float(expiry[1]) - time.time() - 90 * 86400) < 3600
    pem.write_bytes(good_pem)
    key.write_bytes(good_key)
    status = await gateway.until(lambda status: not problem_of(status, "certificate"))
    assert await kept() == b"200"
    writer.close()
    assert status["nginx"]["reloads"] == 0
    served = gateway.directory / "run" / "frontends" / "chat.pem"
    assert served.stat().st_mode & 0o777 == 0o600


async def test_no_handshake_meets_two_pairs(make_gateway: MakeGateway) -> None:
    """nginx reads the certificate, and then the key. Pairs with keys of their own take turns meanwhile."""
    gateway = make_gateway()
    port = public(gateway)
    await gateway.start()
    await until_serial(port, own_serial(gateway.directory / "tls" / "s0.pem"))
    await gateway.kill()
    files = [certificate(gateway.directory / "tls", NAME, stem=stem) for stem in ("one", "two")]
    pairs = [it.read_bytes() + it.with_suffix(".key").read_bytes() for it in files]
    place, done, many = gateway.directory / "run" / "frontends" / "chat.pem", threading.Event(), 150
    turns = 0

    place_certificate(place, pairs[1])

    def take_turns() -> None:
        nonlocal turns
        while not done.is_set():
            place_certificate(place, pairs[turns % 2])
            turns += 1

    taking_turns = asyncio.create_task(asyncio.to_thread(take_turns))
    found: list[int] = []
    try:
        while min(len(found), turns) < many:
            assert not taking_turns.done()
            found.append(await asyncio.to_thread(serial, port))
    finally:
        done.set()
        await taking_turns
    assert set(found) == set(map(own_serial, files))


async def test_expiry_is_told_in_time(make_gateway: MakeGateway) -> None:
    """`warn_days` before it, in status, log and `check`."""
    gateway = make_gateway()
    public(gateway)
    certificate(gateway.directory / "tls", NAME, days=3, stem="s0")
    gateway.configure()
    _, out, _ = await gateway.cli("check")
    assert re.search(r"warn .*s0\.pem expires in 3 days; renew it", out)
    await gateway.start()
    assert "expires in 3 days" in problem_of(await gateway.status(), "expiry")
    assert gateway.events("frontend.certificate_expires")


async def test_check_has_a_line_for_each_mistake(make_gateway: MakeGateway) -> None:
    """In the files that the configuration names; and says what is well."""
    gateway = make_gateway()
    file = gateway.directory / "chat.keys"
    add_key(file, "alice")
    public(gateway, names=(NAME, "other.example.com"), auth={"keys_file": str(file)})
    certificate(gateway.directory / "tls", NAME, stem="s0")
    gateway.configure()
    code, out, _ = await gateway.cli("check")
    assert code == 0, out
    assert f"ok    chat: 1 key in {file}" in out
    assert re.search(r"ok    chat: .*s0\.pem expires in 90 days", out)
    assert re.search(r"warn  chat: .*s0\.pem is not for other\.example\.com; get a certificate for that name", out)
    file.write_text("alice\nbob:123\n")
    (gateway.directory / "tls" / "s0.pem").write_text("rubbish")
    code, out, _ = await gateway.cli("check")
    assert code == 1
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert [line.partition("; ")[0] for line in failed] == [
        f"FAIL  chat: {file}:1: is not NAME:SHA256",
        f"FAIL  chat: {file}:2: is not NAME:SHA256",
        f"FAIL  chat: {gateway.directory}/tls/s0.pem: holds no certificate in PEM",
    ]


async def test_the_daemon_may_be_dead(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """New handshakes need nginx alone."""
    gateway = make_gateway()
    port = public(gateway)
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    await gateway.kill()
    assert (await fetch(f"https://127.0.0.1:{port}/v1/models"))[0] == 200


async def test_nothing_secret_is_left_behind(make_gateway: MakeGateway) -> None:
    """`stop --all` takes certificate, key and hashes out of run_dir."""
    gateway = make_gateway()
    file = gateway.directory / "chat.keys"
    add_key(file, "alice")
    public(gateway, auth={"keys_file": str(file)})
    await gateway.start()
    placed = gateway.directory / "run" / "frontends"
    assert sorted(path.name for path in placed.iterdir() if path.suffix != ".certificate") == ["chat.keys", "chat.pem"]
    assert (await gateway.cli("stop", "--all"))[0] == 0
    assert list(placed.iterdir()) == []


async def test_what_a_removed_service_had_is_gone(make_gateway: MakeGateway) -> None:
    """Removed while no daemon ran, too."""
    gateway = make_gateway(services=("chat", "code"))
    public(gateway, 1)
    await gateway.start()
    place = gateway.directory / "run" / "frontends" / "code.pem"
    assert place.exists()
    await gateway.kill()
    gateway.settings["services"].pop()
    await gateway.start()
    async with asyncio.timeout(60):
        while place.exists():
            await asyncio.sleep(0.05)


async def test_old_protocols_are_refused(make_gateway: MakeGateway) -> None:
    """TLS 1.2 and 1.3, nothing older; HTTP on an HTTPS port is told so."""
    gateway = make_gateway()
    port = public(gateway)
    await gateway.start()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        await asyncio.to_thread(serial, port, minimum_version=version, maximum_version=version)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # A ClientHello of TLS 1.1, as OpenSSL will not send one any more: version, random, one cipher, no compression.
    hello = bytes.fromhex("0302") + bytes(32) + bytes.fromhex("00" + "0002c013" + "0100")
    handshake = b"\x01" + len(hello).to_bytes(3) + hello
    writer.write(b"\x16\x03\x01" + len(handshake).to_bytes(2) + handshake)
    alert = await reader.read(7)
    writer.close()
    assert alert[0] == 0x15, "an alert, and no ServerHello"
    status, text, _ = await fetch(f"http://127.0.0.1:{port}/v1/models")
    assert status == 400
    assert json.loads(text)["error"]["code"] == "https_required"


async def test_no_cipher_without_forward_secrecy_and_authentication(make_gateway: MakeGateway) -> None:
    """A client of TLS 1.2 gets AES-GCM or ChaCha20 over an ephemeral key, or nothing."""
    gateway = make_gateway()
    port = public(gateway)
    await gateway.start()
    for ciphers, served in (("ECDHE+AES:!AESGCM", False), ("ECDHE+AESGCM", True), ("ECDHE+CHACHA20", True)):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        if served:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.close()
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def test_http_leads_to_https_where_nothing_is_given_away(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """GET and HEAD are sent on; a body or a key in the clear is refused, so that somebody notices."""
    gateway = make_gateway()
    plain = gateway.ports["chat"] + 7
    port = public(gateway, redirect=[f"127.0.0.1:{plain}"], names=(NAME,))
    await gateway.start()
    named = {"Host": NAME}
    for method in ("GET", "HEAD"):
        status, _, headers = await fetch(f"http://127.0.0.1:{plain}/v1/models?a=b", method=method, headers=named)
        assert (status, headers["Location"]) == (308, f"https://{NAME}:{port}/v1/models?a=b")
    status, text, _ = await fetch(f"http://127.0.0.1:{plain}/v1/completions", method="POST", json={}, headers=named)
    assert (status, json.loads(text)["error"]["code"]) == (403, "https_required")
    for secret in ({header: "k"} for header in CREDENTIALS):
        assert (await fetch(f"http://127.0.0.1:{plain}/v1/models", headers={**named, **secret}))[0] == 403
    assert (await fetch(f"http://127.0.0.1:{plain}/v1/models", headers={"Host": "evil.example"}))[0] == 421


async def test_many_streams_over_one_connection(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """HTTP/2 with `http2`: streams run beside each other, token by token; keys, limits and refusals are the same."""
    gateway = make_gateway()
    file = gateway.directory / "chat.keys"
    key = add_key(file, "alice")
    limits = [{"per": "key", "path": "/v1/completions", "concurrent": 2}]
    port = public(gateway, auth={"keys_file": str(file)}, limits=limits, max_body_mb=1)
    gateway.settings["services"][0]["frontend"]["tls"]["http2"] = True
    await gateway.start()
    here = await engine(gateway.socket("r1"), token_interval_s=0.5)
    await gateway.until_states({"r1": "serving"})
    url = f"https://127.0.0.1:{port}/v1"
    chat: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient(http2=True, http1=False, verify=False, timeout=PATIENCE_S) as http:
        mine = {"Authorization": f"Bearer {key}"}

        begun: list[str] = []

        async def streamed() -> int:
            asked = {**chat, "max_tokens": 100, "stream": True}
            async with http.stream("POST", f"{url}/chat/completions", json=asked, headers=mine) as answer:
                assert answer.http_version == "HTTP/2"
                lines = (line async for line in answer.aiter_lines() if '"content":' in line)
                begun.append(await anext(lines))
                return 1 + len([line async for line in lines])

        streams = asyncio.gather(*(streamed() for _ in range(30)))
        while len(begun) < 30 and not streams.done():
            await asyncio.sleep(0.01)
        assert here.ledger.in_flight == 30, "token by token, and beside each other"
        here.behave(token_interval_s=0.0)
        assert min(await streams) >= 100
        at_once = [http.post(f"{url}/completions", json=chat, headers={"Authorization": "Bearer x"}) for _ in range(3)]
        assert [answer.status_code for answer in await asyncio.gather(*at_once)] == [401] * 3
        body = {"model": "tiny", "prompt": "x", "max_tokens": 20}
        here.behave(hung_core=True)  # Those that are let in last until the others are refused.
        many = [asyncio.create_task(http.post(f"{url}/completions", json=body, headers=mine)) for _ in range(6)]
        refused = [(await each).status_code for each in islice(asyncio.as_completed(many), 4)]
        here.behave(hung_core=False)
        assert (refused, sorted([(await each).status_code for each in many])) == ([429] * 4, [200] * 2 + [429] * 4)
        large = await http.post(f"{url}/completions", json={**body, "prompt": "x" * 800_000}, headers=mine)
        assert large.status_code == 200, "a body that does not fit into memory"
        control = await http.get(f"https://127.0.0.1:{port}/workers", headers=mine)
        assert (control.status_code, control.json()["error"]["code"]) == (404, "unknown_url")
        for _ in range(30):
            health = [http.get(f"https://127.0.0.1:{port}/health", headers=mine) for _ in range(50)]
            assert {(answer.status_code, answer.http_version) for answer in await asyncio.gather(*health)} == {
                (200, "HTTP/2")
            }
    assert (await fetch(f"https://127.0.0.1:{port}/v1/models", headers=mine))[0] == 200, "and over HTTP/1.1"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as told:
            await session.ws_connect(f"wss://127.0.0.1:{port}/v1/realtime?model=none", ssl=False, headers=mine)
        assert told.value.status == 404, "the router's answer to a WebSocket for a model that nobody has"


async def test_services_share_an_address_by_name(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Each name has its certificate and its replicas; a name that nobody has gets 421, and no service."""
    gateway = make_gateway(services=("chat", "code"))
    port = public(gateway, 0, names=("chat.example.com",))
    assert port == public(gateway, 1, names=("code.example.com", "*.code.example.com"))
    await gateway.start()
    for service, model in (("chat", "one"), ("code", "two")):
        await engine(gateway.socket("r1", service), model=model)
        await gateway.until_states({"r1": "serving"}, service=service)
    tls = gateway.directory / "tls"
    assert await asyncio.to_thread(serial, port, "chat.example.com") == own_serial(tls / "s0.pem")
    assert await asyncio.to_thread(serial, port, "code.example.com") == own_serial(tls / "s1.pem")
    for host, model in (("chat.example.com", "one"), ("code.example.com", "two"), ("a.code.example.com", "two")):
        status, text, _ = await fetch(f"https://127.0.0.1:{port}/v1/models", headers={"Host": host})
        assert (status, json.loads(text)["data"][0]["id"]) == (200, model)
    for scheme, wanted in (("https", (421, "unknown_host")), ("http", (400, "https_required"))):
        status, text, _ = await fetch(f"{scheme}://127.0.0.1:{port}/v1/models", headers={"Host": "evil.example"})
        assert (status, json.loads(text)["error"]["code"]) == wanted
    for host, model, times in (("chat.example.com", "one", 2), ("code.example.com", "two", 3)):
        for _ in range(times):
            body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            url = f"https://127.0.0.1:{port}/v1/chat/completions"
            assert (await fetch(url, method="POST", json=body, headers={"Host": host}))[0] == 200
    await until_counted(gateway, {"chat": 2.0, "code": 3.0})


async def test_a_frontend_is_opened_and_closed_by_a_reload(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """What a reload takes away is gone: address, keys and certificate."""
    gateway = make_gateway()
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    port = public(gateway)
    gateway.configure()
    assert (await gateway.cli("reload"))[:2] == (0, "changed: chat: frontend\n")
    assert (await fetch(f"https://127.0.0.1:{port}/v1/models"))[0] == 200
    gateway.settings["services"][0]["frontend"] = {}
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    try:
        await fetch(f"https://127.0.0.1:{port}/v1/models")
    except aiohttp.ClientConnectorError:
        pass
    else:
        raise AssertionError("the address is still there")
    assert not (gateway.directory / "run" / "frontends" / "chat.pem").exists()
    assert (await fetch(f"{gateway.url()}/v1/models"))[0] == 200


async def test_browsers_of_allowed_origins(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The preflight needs no key and says what is allowed; errors carry the headers too; other origins get none."""
    gateway = make_gateway()
    origin = "https://chat.example.com"
    file = gateway.directory / "chat.keys"
    file.write_text("# nobody yet\n")
    file.chmod(0o600)
    gateway.settings["services"][0]["frontend"] = {
        "cors": {"origins": [origin]}, "auth": {"keys_file": str(file)}, "max_body_mb": 1,
    }  # fmt: skip
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    url = f"{gateway.url()}/v1/chat/completions"
    status, _, headers = await fetch(url, method="OPTIONS", headers={"Origin": origin, **asks})
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == origin
    assert headers["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in headers
    _, _, headers = await fetch(url, method="OPTIONS", headers={"Origin": "https://evil.example", **asks})
    assert "Access-Control-Allow-Origin" not in headers
    status, _, headers = await fetch(url, method="POST", json={}, headers={"Origin": origin})
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, origin)
    assert (await fetch(f"{gateway.url()}/workers", method="OPTIONS", headers={"Origin": origin, **asks}))[0] == 404


async def test_answers_to_browsers_have_one_origin(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """The router's own word on origins does not stand beside the frontend's."""
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"cors": {"origins": ["*"]}}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.url()}/v1/models", headers={"Origin": "https://a.example"}) as response,
    ):
        assert response.headers.getall("Access-Control-Allow-Origin") == ["*"]


async def test_a_large_body_is_refused(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """413 in OpenAI's form, with its length said or not; what is smaller passes."""
    gateway = make_gateway()
    gateway.settings["services"][0]["frontend"] = {"max_body_mb": 1}
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    for size, wanted in ((500_000, 200), (1_100_000, 413)):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * size}], "max_tokens": 1}
        data = json.dumps(body).encode()
        url = f"{gateway.url()}/v1/chat/completions"
        kind = {"Content-Type": "application/json"}
        status, text, _ = await fetch(url, method="POST", data=io.BytesIO(data), headers=kind)
        assert status == wanted, text
        if wanted == 413:
            assert json.loads(text)["error"]["code"] == "request_too_large"

            async def parts(data: bytes = data) -> Any:
                for at in range(0, len(data), 100_000):
                    yield data[at : at + 100_000]

            assert (await fetch(url, method="POST", data=parts(), headers=kind))[0] == 413
    said = (gateway.directory / "state" / "log" / "nginx.log").read_text()
    assert "temporary file" not in said, "a large body is nothing to be told of"
