"""Who asks a router after its connections were closed: the answer is an error, and nothing is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from gateway_sidecar.errors import GatewaySidecarError
from gateway_sidecar.routers.base import LaunchCommand
from gateway_sidecar.routers.dynamo.client import DynamoClient
from gateway_sidecar.routers.http import MetricsPages, RestApi
from tests.unit.fake_time import in_fake_time

URL = "http://127.0.0.1:23001"


async def _of_rest() -> Callable[[], Awaitable[object]]:
    api = RestApi(URL, "key", 5)
    await api.close()
    return lambda: api.ask("GET", "/workers")


async def _of_dynamo() -> Callable[[], Awaitable[object]]:
    client = DynamoClient(23001, Path("/nowhere"), 5, LaunchCommand(["python3"]), "key")
    await client.close()
    return client.list_workers


async def _of_metrics() -> Callable[[], Awaitable[object]]:
    pages = MetricsPages()
    await pages.close()
    return lambda: pages.read(f"{URL}/metrics", 5)


@pytest.mark.parametrize("closed", [_of_rest, _of_dynamo, _of_metrics])
def test_who_asks_after_the_end_opens_nothing(
    closed: Callable[[], Awaitable[Callable[[], Awaitable[object]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would close it: an operation that is under way when its router is given up, a page that is asked for."""
    opened = []
    monkeypatch.setattr(aiohttp, "ClientSession", lambda **_: opened.append(1))

    async def ask() -> None:
        question = await closed()
        with pytest.raises(GatewaySidecarError, match=r"closed$"):
            await asyncio.wait_for(question(), 60)

    in_fake_time(ask)()
    assert not opened
