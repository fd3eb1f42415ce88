"""The admin API over TCP: with a certificate of the right CA everything, else nothing; never in plain HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, replica_of


class Remote:
    """A gateway whose admin API listens, and files that prove who asks."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self.gateway = gateway
        self.directory = directory
        self.authority = Authority(directory, "ca")
        self.server = self.authority.sign("server")
        self.client = self.authority.sign("client")
        self.port = gateway.metrics_port - 1
        gateway.settings["admin"] = {
            "listen": f"127.0.0.1:{self.port}",
            "tls": {
                "certificate": str(self.server[0]),
                "key": str(self.server[1]),
                "client_ca": str(self.authority.certificate),
            },
        }

    def context(self, client: tuple[Path, Path] | None, *, most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        if client is not None:
            context.load_cert_chain(*client)
        if most is not None:
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = most
        return context

    async def ask(self, context: ssl.SSLContext | None, target: str = "/v1/status") -> dict[str, Any]:
        """Raises OSError or HTTPException if it is not answered."""

        def blocking() -> dict[str, Any]:
            made: http.client.HTTPConnection
            if context is None:
                made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            else:
                made = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
            try:
                made.request("GET", target)
                response = made.getresponse()
                content = response.read()
                if response.status != 200:
                    raise http.client.BadStatusLine(f"{response.status}")
                answer: dict[str, Any] = json.loads(content)
                return answer
            finally:
                made.close()

        return await asyncio.to_thread(blocking)

    def options(self, client: tuple[Path, Path]) -> tuple[str, ...]:
        url, ca = f"https://127.0.0.1:{self.port}", str(self.authority.certificate)
        return ("--admin", url, "--cert", str(client[0]), "--key", str(client[1]), "--ca", ca)


REFUSED = (OSError, http.client.HTTPException)


async def test_only_a_certificate_of_the_right_ca_opens_it(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """No certificate, a stranger's, an old TLS or none: nothing. The command line goes in by it."""
    gateway = make_gateway()
    remote = Remote(gateway, tmp_path)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "other").sign("client")
    await gateway.start()
    assert (await remote.ask(remote.context(remote.client)))["ready"]
    assert (await remote.ask(remote.context(remote.client, most=ssl.TLSVersion.TLSv1_2)))["ready"]
    for context in (None, remote.context(None), remote.context(stranger)):
        with pytest.raises(REFUSED):
            await remote.ask(context)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old = remote.context(remote.client, most=ssl.TLSVersion.TLSv1_1)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(REFUSED):
        await remote.ask(old)

    place = gateway.directory / "a1.sock"
    await engine(place)
    mine = remote.options(remote.client)
    code, out, err = await gateway.cli(
        "replica", "add", "chat", "a1", "--socket", str(place), "--wait", *mine, config=False
    )
    assert (code, "a1 is new: serving at 127.0.0.1:" in out) == (0, True), err
    code, out, err = await gateway.cli("status", *mine, config=False)
    assert (code, "a1" in out) == (0, True), err
    code, out, err = await gateway.cli("status", *remote.options(stranger), config=False)
    assert (code, out) == (1, "")
    code, _, err = await gateway.cli("status", "--admin", f"https://127.0.0.1:{remote.port}")
    assert (code, "needs --cert, --key and --ca" in err) == (1, True)
    code, _, err = await gateway.cli("status", *(it.replace("https", "http") for it in mine), config=False)
    assert (code, "use https://HOST:PORT" in err) == (1, True)


async def test_no_cipher_without_authentication_or_forward_secrecy(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """A client of TLS 1.2 gets AES-GCM or ChaCha20 over an ephemeral key, or nothing; as at frontends."""
    gateway = make_gateway()
    remote = Remote(gateway, tmp_path)
    await gateway.start()
    for ciphers, served in (
        ("ECDHE+AES:!AESGCM", False),
        ("DHE+AESGCM", False),
        ("ECDHE+AESGCM", True),
        ("ECDHE+CHACHA20", True),
    ):
        context = remote.context(remote.client, most=ssl.TLSVersion.TLSv1_2)
        context.set_ciphers(ciphers)
        if served:
            assert (await remote.ask(context))["ready"]
        else:
            with pytest.raises(REFUSED):
                await remote.ask(context)


async def test_new_certificates_are_taken_in_by_a_reload(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """The old CA's clients are out, the new one's in; files that cannot be used are refused, and the old ones stay."""
    gateway = make_gateway()
    remote = Remote(gateway, tmp_path)
    await gateway.start()
    before = remote.context(remote.client)
    assert (await remote.ask(before))["ready"]
    remote.server[0].write_text("no certificate")
    code, _, err = await gateway.cli("reload")
    assert (code, "admin.tls.certificate" in err) == (78, True), err
    assert (await remote.ask(before))["ready"]

    remote.authority = Authority(tmp_path, "ca")
    remote.authority.sign("server")
    remote.client = remote.authority.sign("client")
    code, out, err = await gateway.cli("reload")
    assert (code, out) == (0, "changed: admin.tls\n"), err
    assert (await remote.ask(remote.context(remote.client)))["ready"]
    with pytest.raises(REFUSED):
        await remote.ask(before)
    assert (await gateway.cli("reload"))[1] == "nothing changed\n"


async def test_files_that_cannot_be_used_stop_nobody(
    make_gateway: MakeGateway, engine: StartEngine, tmp_path: Path
) -> None:
    """The service runs, status and check say what is wrong, and a reload repairs it."""
    gateway = make_gateway()
    remote = Remote(gateway, tmp_path)
    kept = remote.server[1].read_bytes()
    remote.server[1].write_text("no key")
    await gateway.start()
    await engine(gateway.socket("r1"))
    status = await gateway.until_state("r1", "serving")
    assert any("admin.tls.certificate" in problem for problem in status["problems"])
    with pytest.raises(REFUSED):
        await remote.ask(remote.context(remote.client))
    code, out, _ = await gateway.cli("check")
    assert (code, "FAIL  admin.tls.certificate" in out) == (1, True), out
    remote.server[1].write_bytes(kept)
    code, out, _ = await gateway.cli("check")
    assert (
        f"ok    admin: 127.0.0.1:{remote.port}, for clients with a certificate of {remote.authority.certificate}"
    ) in out
    assert (await gateway.cli("reload"))[0] == 0
    await gateway.until(lambda status: status["problems"] == [])
    assert replica_of(await remote.ask(remote.context(remote.client)), "r1")["state"] == "serving"
