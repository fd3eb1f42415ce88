"""TLS certificates of several real gateways that share a real etcd."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.etcd import Etcd
from tests.system.conftest import Start
from tests.system.gateway import Gateway, only_ports_differ
from tests.system.test_frontend_tls import own_serial, problem_of, serial

NAME = "api.example.com"
_LATE_S = 60.0
_SECRET = "PRIVATE KEY"


def frontend(gateway: Gateway) -> dict[str, Any]:
    return {"listen": [f"127.0.0.1:{tls_port(gateway)}"], "server_names": [NAME], "tls": {"store": "api"}}


def tls_port(gateway: Gateway) -> int:
    return gateway.ports["chat"] + 6


async def until_served(gateway: Gateway, pem: Path) -> None:
    async with asyncio.timeout(_LATE_S):
        while True:
            try:
                if await asyncio.to_thread(serial, tls_port(gateway)) == own_serial(pem):
                    return
            except (OSError, ssl.SSLError):
                pass  # None is served yet.
            await asyncio.sleep(0.005)


async def put(gateway: Gateway, pem: Path, key: Path | None = None) -> tuple[int, str, str]:
    files = ["--cert", str(pem), "--key", str(key or pem.with_suffix(".key"))]
    return await gateway.cli("certificate", "put", "api", *files)


async def stored(gateway: Gateway) -> dict[str, Any]:
    """As the API says it."""
    async with gateway.session.get("http://daemon/v1/store/certificates") as answer:
        text = await answer.text()
        assert _SECRET not in text
        (row,) = json.loads(text)["certificates"]
        return dict(row)


async def test_a_certificate_of_the_store_is_served_by_every_gateway(
    start_in_fleet: Start, etcd: Etcd, tmp_path: Path
) -> None:
    """Put at any of them, over the one before. What cannot be served is refused; the store may be away."""
    a, b = [await start_in_fleet(name, etcd, frontend=frontend) for name in ("a", "b")]
    with pytest.raises((OSError, ssl.SSLError)):
        await asyncio.to_thread(serial, tls_port(a))
    assert "the store has no certificate 'api'" in problem_of(await a.status(), "certificate")
    code, out, _ = await a.cli("check")
    assert "chat: the store has no certificate 'api'; put it there with" in out, out
    assert "private keys of certificates lie there, and etcd has neither TLS nor a user" in out

    good = certificate(tmp_path, NAME, stem="good")
    code, out, err = await put(a, good)
    assert (code, f"api: for {NAME}, until" in out) == (0, True), err
    for gateway in (a, b):
        await until_served(gateway, good)
        await gateway.until(only_ports_differ)
        file = gateway.directory / "state" / "store-certificates" / "api.pem"
        assert file.stat().st_mode & 0o777 == 0o600
    row = await stored(b)
    assert (row["names"], row["services"], row["refused"]) == ([NAME], ["chat"], None)
    _, out, _ = await b.cli("certificate", "list")
    assert out.splitlines()[1].split()[:2] == ["api", NAME]
    code, out, _ = await b.cli("check")
    assert "ok    chat: certificate 'api' of the store expires in 90 days" in out

    other = certificate(tmp_path, "other.example.com", stem="other")
    expired = certificate(tmp_path, NAME, days=-1, stem="expired")
    for pem, key, why in (
        (good, other.with_suffix(".key"), f"{other.with_suffix('.key')}: is not the key of {good}"),
        (expired, None, f"{expired}: expired at"),
        (other, None, f"the certificate: is not for {NAME}, which chat answers to"),
    ):
        code, _, err = await put(b, pem, key)
        assert (code, why in err) == (1, True), err
    code, _, err = await a.cli("certificate", "remove", "api")
    assert (code, "chat: has frontend.tls.store: api; give it another certificate first" in err) == (1, True), err
    url, pem_text = "http://daemon/v1/store/certificates/api", good.read_text() + good.with_suffix(".key").read_text()
    for body, no in (
        ({"pem": "rubbish", "seen": row["revision"]}, 422),
        ({"pem": pem_text, "seen": None}, 409),
        ({"pem": pem_text}, 422),
    ):
        async with a.session.put(url, json=body) as answer:
            text = await answer.text()
            assert (answer.status, _SECRET in text) == (no, False), text

    took_ms, seen = [], row["revision"]
    for number in range(10):
        good = certificate(tmp_path, NAME, stem=f"good-{number}")
        text = good.read_text() + good.with_suffix(".key").read_text()
        began = time.monotonic()
        there = asyncio.create_task(until_served(b, good))
        async with a.session.put(url, json={"pem": text, "seen": seen}) as answer:
            assert answer.status == 200, await answer.text()
            seen = (await answer.json())["revision"]
        await there
        took_ms.append((time.monotonic() - began) * 1000)
    told = f"{sorted(took_ms)[5]:.0f} ms, at most {max(took_ms):.0f}"
    print(f"from the request at one gateway to the other's handshake: {told}")
    await until_served(a, good)
    assert (await a.status())["nginx"]["reloads"] == 0

    prefix = a.settings["store"]["etcd"]["prefix"]
    etcd.ctl("put", f"{prefix}tls/certificates/api", "rubbish")
    for gateway in (a, b):
        status = await gateway.until(lambda status: any("store: certificates" in it for it in status["problems"]))
        assert _SECRET not in json.dumps(status)
        await until_served(gateway, good)
    assert "holds no certificate in PEM" in str((await stored(a))["refused"])
    assert b.events("store.certificate_refused")
    etcd.kill()
    for gateway in (a, b):
        await gateway.until(lambda status: status["store"]["state"] == "away", within_s=_LATE_S)
        await until_served(gateway, good)
    code, _, err = await put(a, good)
    assert (code, "nothing was changed" in err) == (1, True), err
    assert (await b.cli("stop", "--all"))[0] == 0
    assert b.process is not None
    await b.process.wait()
    assert not list((b.directory / "run" / "frontends").iterdir())
    await b.start()
    await until_served(b, good)
    assert not any(_SECRET in gateway.log() for gateway in (a, b))
