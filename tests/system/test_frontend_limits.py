"""How often, and how often at once: 429 in OpenAI's form, and never for somebody else's requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, RateLimitError

from examples.simulated import SimulatedEngine
from gateway_sidecar.frontend.edit_keys import add_key
from tests.system.clients import stream_chat
from tests.system.conftest import MakeGateway, StartEngine
from tests.system.gateway import Gateway, service_of

SELDOM = 1 / 60
"""The least `rps` that nginx knows: what was counted is not forgotten while a busy machine runs the test."""


def limited(gateway: Gateway, *limits: dict[str, Any], **frontend: Any) -> None:
    gateway.settings["services"][0]["frontend"] = {"limits": list(limits), **frontend}


async def serving(gateway: Gateway, engine: StartEngine, **options: Any) -> SimulatedEngine:
    await gateway.start()
    here = await engine(gateway.socket("r1"), **options)
    await gateway.until_states({"r1": "serving"})
    return here


async def get(gateway: Gateway, path: str = "/health", **headers: str) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url()}{path}", headers=headers) as response:
        if response.status == 429:
            error = (await response.json())["error"]
            assert error["code"] == "rate_limit_exceeded"
            assert error["type"] == "requests"
            assert set(error) == {"message", "type", "param", "code"}
        return response.status, dict(response.headers)


async def many(gateway: Gateway, count: int, path: str = "/health", **headers: str) -> Counter[int]:
    """The statuses of so many requests, one after the other."""
    return Counter([(await get(gateway, path, **headers))[0] for _ in range(count)])


async def test_rate_with_burst_by_ip(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """One and the burst pass, the rest is told when to come again; the `openai` client understands it."""
    gateway = make_gateway()
    limited(gateway, {"per": "ip", "rps": SELDOM, "burst": 3})
    await serving(gateway, engine)
    assert await many(gateway, 10) == {200: 4, 429: 6}
    _, headers = await get(gateway)
    assert headers["Retry-After"] == "60"
    async with AsyncOpenAI(base_url=f"{gateway.url()}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(RateLimitError):
            await client.models.list()


@pytest.mark.parametrize("per", ["ip", "header:X-Tenant"])
async def test_a_network_of_the_sixth_version_is_one_client(
    make_gateway: MakeGateway, engine: StartEngine, per: str
) -> None:
    """Whoever has a /64 has more addresses than there are requests."""
    gateway = make_gateway()
    limited(gateway, {"per": per, "rps": SELDOM}, trusted_proxies=["127.0.0.1"])
    await serving(gateway, engine)
    for address, wanted in {
        "2001:db8:1:2::1": 200,
        "2001:db8:1:2::2": 429,
        "2001:db8:1:2:ffff:ffff:ffff:ffff": 429,
        "2001:db8:1:3::1": 200,
        "2001:db8:1::1": 200,
        "2001:db8:1::ffff": 429,
        "2001:db8::1": 200,
        "2001:db8::2:3": 429,
        "::1": 200,
        "10.0.0.1": 200,
        "10.0.0.2": 200,
        "10.0.0.1 ": 429,
    }.items():
        assert (await get(gateway, **{"X-Forwarded-For": address}))[0] == wanted, address


async def test_each_key_has_its_own_limit(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """By name; and a request that no key lets in counts for nobody."""
    gateway = make_gateway()
    file = gateway.directory / "chat.keys"
    limited(gateway, {"per": "key", "rps": SELDOM, "burst": 1}, auth={"keys_file": str(file)})
    alice, bob = add_key(file, "alice"), add_key(file, "bob")
    await serving(gateway, engine)
    assert await many(gateway, 5, Authorization="Bearer wrong") == {401: 5}
    assert await many(gateway, 4, Authorization=f"Bearer {alice}") == {200: 2, 429: 2}
    assert await many(gateway, 4, Authorization=f"Bearer {bob}") == {200: 2, 429: 2}


async def test_limit_by_header_and_path(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """Each value counts for itself, no value counts by IP; other paths do not count; all limits hold together."""
    gateway = make_gateway()
    limited(
        gateway,
        {"per": "header:X-Tenant", "path": "/v1/models", "rps": SELDOM},
        {"per": "ip", "path": "/health", "rps": SELDOM, "burst": 4},
    )
    await serving(gateway, engine)
    assert await many(gateway, 3, "/v1/models", **{"X-Tenant": "a"}) == {200: 1, 429: 2}
    assert await many(gateway, 3, "/v1/models?x=1", **{"X-Tenant": "b"}) == {200: 1, 429: 2}
    assert await many(gateway, 3, "/v1/models") == {200: 1, 429: 2}
    assert await many(gateway, 8) == {200: 5, 429: 3}
    assert await many(gateway, 5, "/liveness") == {200: 5}


async def test_address_of_the_client_behind_a_trusted_proxy(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """`X-Forwarded-For` counts only from those who are trusted, and only the last address they did not make up."""
    gateway = make_gateway()
    limited(gateway, {"per": "ip", "rps": SELDOM}, trusted_proxies=["127.0.0.1"])
    await serving(gateway, engine)
    for client in ("192.0.2.1", "192.0.2.2"):
        assert await many(gateway, 2, **{"X-Forwarded-For": client}) == {200: 1, 429: 1}
    assert await many(gateway, 1, **{"X-Forwarded-For": "198.51.100.9, 192.0.2.1"}) == {429: 1}
    limited(gateway, {"per": "ip", "rps": SELDOM})
    gateway.configure()
    assert (await gateway.cli("reload"))[0] == 0
    # Each claims to be another client, and soon they are one: nginx's old worker may still take the first of them.
    for number in range(1, 250):
        if (await get(gateway, **{"X-Forwarded-For": f"203.0.113.{number}"}))[0] == 429:
            return
    raise AssertionError("a client that nobody trusts chose its own address")


async def test_requests_at_once(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A stream counts until its end, and not a moment longer."""
    gateway = make_gateway()
    limited(gateway, {"per": "ip", "path": "/v1/chat", "concurrent": 2})
    here = await serving(gateway, engine, token_interval_s=0.5)
    began = [asyncio.Event() for _ in range(2)]
    streams = [asyncio.create_task(stream_chat(gateway, 60, event)) for event in began]
    for event in began:
        await event.wait()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    async with aiohttp.ClientSession() as session:

        async def post() -> int:
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response:
                if response.status == 429:
                    assert response.headers["Retry-After"] == "1"
                    assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
                return response.status

        assert [await post() for _ in range(3)] == [429] * 3
        assert await many(gateway, 2) == {200: 2}
        here.behave(token_interval_s=0)
        await asyncio.gather(*streams)
        assert await post() == 200


async def test_who_waits_counts(make_gateway: MakeGateway, engine: StartEngine) -> None:
    """A request in the hold is under way, is counted once, and goes on when its time has come."""
    gateway = make_gateway()
    gateway.settings["services"][0]["hold"] = {"asleep_s": 600}
    limited(gateway, {"per": "ip", "concurrent": 2, "rps": SELDOM, "burst": 3})
    await gateway.start()
    await gateway.until(lambda s: service_of(s)["missing"] == "replica")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    async with aiohttp.ClientSession() as session:

        async def post() -> int:
            async with session.post(f"{gateway.url()}/v1/chat/completions", json=body) as response:
                await response.read()
                return response.status

        waiting = [asyncio.create_task(post()) for _ in range(2)]
        await gateway.until(lambda s: service_of(s)["waiting"] == 2)
        assert await post() == 429, "two are under way"
        await engine(gateway.socket("r1"))
        assert await asyncio.gather(*waiting) == [200, 200]
        # Of one and three that the rate lets through, three were asked for.
        assert [await post(), await post()] == [200, 429]
