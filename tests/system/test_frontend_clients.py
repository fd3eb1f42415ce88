"""Where clients are, and which certificate they bring: who is refused before any key is looked at."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

from gateway_sidecar.config import FrontendSettings, LimitSettings
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import service_of
from tests.system.test_frontend_keys import post, serving
from tests.system.test_trust_frontend import Router, door
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
    async with door(tmp_path, settings, Router()) as (url, _):
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
    async with door(tmp_path, proxies, router) as (url, _):
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
        async with door(directory, settings, Router()) as (url, _):
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
    async with door(tmp_path, settings, router) as (url, client):
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
