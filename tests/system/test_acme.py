"""Certificates by ACME: the real daemon, the real nginx and a real ACME server, pebble."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from yarl import URL

from tests.pebble import Pebble, needs_pebble
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, Status
from tests.system.test_operation import metrics_of

pytestmark = [needs_pebble, pytest.mark.timeout(240)]

NAME, OTHER = "api.example.com", "b.example.com"
PATIENCE_S = 60.0
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""


class Site:
    """A gateway whose service `chat` has a public address and one for redirects, and an ACME server that asks there."""

    def __init__(self, gateway: Gateway, **options: Any) -> None:
        self.gateway = gateway
        self.port, self.http_port = gateway.ports["chat"] + 6, gateway.ports["chat"] + 7
        self.pebble = Pebble(gateway.directory / "pebble", self.http_port, **options)
        gateway.settings["acme"] = self.pebble.settings
        gateway.settings["services"][0]["frontend"] = self.frontend(NAME)

    def frontend(self, *names: str, port: int | None = None) -> dict[str, Any]:
        """As a service has it."""
        return {
            "listen": [f"127.0.0.1:{port or self.port}"],
            "redirect": [f"127.0.0.1:{self.http_port}"],
            "server_names": list(names),
            "tls": {"acme": True},
        }

    async def served(self, name: str = NAME, *, root: str | None = None, port: int | None = None) -> x509.Certificate:
        """The certificate that a client sees, who trusts this root; whoever signed it without one. Raises OSError."""
        return await asyncio.to_thread(handshake, port or self.port, name, root)

    async def until_served(
        self, condition: Callable[[x509.Certificate], bool] = lambda _: True, **options: Any
    ) -> x509.Certificate:
        """The first one for which the condition holds."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                if condition(found := await self.served(**options)):
                    return found
            except OSError:  # None is served yet, or another.
                pass
            assert time.monotonic() < end, self.gateway.log()[-3000:] + self.pebble.log[-3000:]
            await asyncio.sleep(0.05)


def handshake(port: int, name: str, root: str | None) -> x509.Certificate:
    """As a client that checks what it is shown, but for its dates: on a busy machine 30 s may be over. Blocks."""
    context = ssl._create_unverified_context() if root is None else ssl.create_default_context(cadata=root)
    context.verify_flags |= NO_CHECK_TIME
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)


def names_of(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


def problem_of(status: Status, service: str = "chat") -> str:
    return next((text for text in status["problems"] if text.startswith(f"{service}: frontend acme: ")), "")


async def orders_of(gateway: Gateway, service: str = "chat", *, told: str | None = None) -> dict[str, float]:
    """Outcome -> how many, once the event `told` is logged: a certificate is served a moment before it is counted."""
    if told is not None:
        await gateway.until_logged(told)
    rows = await metrics_of(gateway)
    wanted = "gateway_sidecar_acme_orders_total"
    return {
        dict(labels)["outcome"]: count
        for (name, labels), count in rows.items()
        if name == wanted and dict(labels)["service"] == service
    }


@pytest.fixture
def site(make_gateway: MakeGateway) -> Iterator[Callable[..., Site]]:
    """Makes one; its ACME server ends with the test."""
    made: list[Site] = []

    def make(*, services: tuple[str, ...] = ("chat",), **options: Any) -> Site:
        made.append(Site(make_gateway(services=services), **options))
        return made[-1]

    yield make
    for one in made:
        one.pebble.close()


async def test_a_certificate_is_issued_and_served_and_outlives_all(site: Callable[..., Site]) -> None:
    """A client that trusts the authority takes it. Neither the next daemon orders another, nor one after a reboot."""
    hmac_key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    it = site(nonces_refused=30, eab={"kid-1": hmac_key})
    it.pebble.start()
    gateway = it.gateway
    file = gateway.directory / "hmac"
    file.write_text(hmac_key)
    file.chmod(0o600)
    gateway.settings["acme"]["eab"] = {"key_id": "kid-1", "hmac_key_file": str(file)}
    await gateway.start()
    root = it.pebble.root()
    first = await it.until_served(root=root)
    assert names_of(first) == {NAME}
    await gateway.until(lambda status: not status["problems"])
    assert await orders_of(gateway, told="acme.issued") == {"issued": 1}
    assert [row["names"] for row in gateway.events("acme.issued")] == [[NAME]]
    assert hmac_key not in gateway.log()
    kept = list((gateway.directory / "state" / "acme").iterdir())
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert (gateway.directory / "state" / "acme").stat().st_mode & 0o777 == 0o700
    assert not (gateway.directory / "run" / "frontends" / "challenges").exists()
    for path in ("/.well-known/acme-challenge/nothing", "/.well-known/acme-challenge/..%2f..%2fchat.pem"):
        status, _ = await fetch(it, path)
        assert status == (404 if path.endswith("nothing") else 308)
    assert (await fetch(it, "/v1/models"))[0] == 308
    assert (await fetch(it, "/v1/models", method="POST"))[0] == 403

    await gateway.terminate()
    assert await it.served(root=root) == first
    await gateway.start()
    assert await it.until_served(root=root) == first
    await gateway.cli("stop", "--all")
    assert gateway.process is not None
    await gateway.process.wait()
    await gateway.start()
    assert await it.until_served(root=root) == first
    assert it.pebble.issued == 1


async def fetch(it: Site, path: str, *, method: str = "GET") -> tuple[int, str]:
    """Of the address for redirects, as the name."""
    url = URL(f"http://127.0.0.1:{it.http_port}{path}", encoded=True)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers={"Host": NAME}, allow_redirects=False) as response,
    ):
        return response.status, await response.text()


async def test_a_renewal_fails_no_request_and_a_server_that_is_away_keeps_the_old(
    site: Callable[..., Site], engine: StartEngine
) -> None:
    """Of 30 s, a certificate is renewed after 20. Later the server is away, and what was served stays, and is told."""
    it = site(validity_s=30)
    it.pebble.start()
    gateway = it.gateway
    await gateway.start()
    await engine(gateway.socket("r1"))
    await gateway.until_states({"r1": "serving"})
    root = it.pebble.root()
    first = await it.until_served(root=root)
    asked = 0
    while (second := await it.served(root=root)) == first:  # Each is a new connection, and raises if it is refused.
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://127.0.0.1:{it.port}/v1/models", headers={"Host": NAME}, ssl=False) as response,
        ):
            assert response.status == 200
        asked += 1
    assert asked > 10
    assert second.not_valid_before_utc > first.not_valid_before_utc
    assert second.public_key() == first.public_key(), "clients may have pinned it"
    await gateway.until(lambda status: not problem_of(status))

    it.pebble.stop()
    status = await gateway.until(lambda status: "cannot be reached" in problem_of(status), within_s=PATIENCE_S)
    assert "1 order in a row failed" in problem_of(status)
    assert "what was there before stays in force" in problem_of(status)
    assert await it.served() == second
    assert (await orders_of(gateway, told="acme.failed"))["failed"] == 1
    rows = await metrics_of(gateway)
    labels = frozenset({("service", "chat"), ("part", "acme")})
    assert rows["gateway_sidecar_frontend_problem", labels] == 1
    # The next try is a minute away, for the next daemon too; a reload tries at once.
    await gateway.terminate()
    await gateway.start()
    await gateway.until(lambda status: "in a row failed" in problem_of(status))
    it.pebble.start()
    await gateway.cli("reload")
    await it.until_served(root=it.pebble.root())
    await gateway.until(lambda status: not problem_of(status))


@pytest.mark.own_users
async def test_before_the_first_certificate_nobody_gets_in_and_it_is_told(site: Callable[..., Site]) -> None:
    """No self-signed certificate that clients would learn to accept; `check` says what is wrong before the start."""
    it = site()
    gateway = it.gateway
    gateway.configure()
    _, out, _ = await gateway.cli("check")
    assert f"acme: {it.pebble.url}: cannot be reached" in out
    assert "chat: no certificate yet" in out
    await gateway.start()
    status = await gateway.until(lambda status: "cannot be reached" in problem_of(status))
    assert "no client gets in until it is there" in problem_of(status)
    with pytest.raises(ssl.SSLError):
        await it.served()
    it.pebble.start()
    _, out, _ = await gateway.cli("check")
    assert f"acme: {it.pebble.url} answers" in out
    await gateway.cli("reload")
    await it.until_served(root=it.pebble.root())


async def test_other_names_order_another_certificate_and_the_old_one_serves_meanwhile(
    site: Callable[..., Site],
) -> None:
    """A server that is away keeps what is there in force; two services with the same names order once."""
    it = site(services=("chat", "code"))
    it.pebble.start()
    gateway = it.gateway
    gateway.settings["services"][1]["frontend"] = {**it.frontend(NAME, port=it.port + 2), "redirect": []}
    await gateway.start()
    root = it.pebble.root()
    first = await it.until_served(root=root)
    assert await it.until_served(root=root, port=it.port + 2) == first
    assert it.pebble.issued == 1
    await gateway.until_logged("acme.issued")  # A moment after nginx has the files.
    assert [row["services"] for row in gateway.events("acme.issued")] == [["chat", "code"]]

    it.pebble.stop()
    gateway.settings["services"][0]["frontend"] = it.frontend(NAME, OTHER)
    gateway.configure()
    await gateway.cli("reload")
    await gateway.until(lambda status: "cannot be reached" in problem_of(status))
    assert await it.served() == first
    it.pebble.start()
    await gateway.cli("reload")
    both = await it.until_served(lambda found: names_of(found) == {NAME, OTHER}, root=it.pebble.root())
    assert await it.until_served(root=it.pebble.root(), name=OTHER) == both
    assert await it.served(port=it.port + 2) == first
    gateway.settings["services"][0]["frontend"].pop("tls")
    gateway.settings["services"][0]["frontend"] = {}
    gateway.settings["services"][1]["frontend"] = {}
    gateway.configure()
    await gateway.cli("reload")
    await gateway.until(lambda status: not status["problems"])
    async with asyncio.timeout(PATIENCE_S):
        while await orders_of(gateway):  # Forgotten by the next look at what is to be ordered.
            await asyncio.sleep(0.05)


async def test_a_shared_address_has_a_certificate_of_its_own(site: Callable[..., Site]) -> None:
    """It has a frontend as a service has it."""
    it = site()
    it.pebble.start()
    gateway = it.gateway
    frontend = gateway.settings["services"][0].pop("frontend")
    listen = f"127.0.0.1:{gateway.ports['chat'] + 8}"
    address = {"name": "api", "listen": listen, "models": {"tiny": "chat"}, "frontend": frontend}
    gateway.settings["addresses"] = [address]
    await gateway.start()
    assert names_of(await it.until_served(root=it.pebble.root())) == {NAME}
    assert await orders_of(gateway, "api", told="acme.issued") == {"issued": 1}
    _, shown, _ = await gateway.cli("check")
    assert "api: the certificate by ACME expires in" in shown
