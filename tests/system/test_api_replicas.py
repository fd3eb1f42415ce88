"""Replicas put and deleted over the admin API, on the real daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.system.clients import ask
from tests.system.conftest import StartEngine
from tests.system.gateway import Gateway, replica_of

Answer = tuple[int, dict[str, Any]]


async def call(gateway: Gateway, method: str, target: str, **options: Any) -> Answer:
    async with gateway.session.request(method, f"http://daemon/v1/services/chat/replicas{target}", **options) as it:
        return it.status, await it.json()


async def put(gateway: Gateway, replica: str, query: str = "", **entry: Any) -> Answer:
    return await call(gateway, "PUT", f"/{replica}{query}", json=entry)


def elsewhere(gateway: Gateway, replica: str) -> Path:
    """A socket that no pattern of the gateway shows."""
    return gateway.directory / f"{replica}.sock"


def record_of(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((gateway.directory / "state" / "replicas.json").read_text())
    return found


async def test_put_serves_and_delete_drains(gateway: Gateway, engine: StartEngine) -> None:
    """First 201, the same again 200 without a change; on disk before it is answered; then it goes, drained."""
    place = elsewhere(gateway, "a1")
    await engine(place)
    status, answer = await put(gateway, "a1", "?wait=serving", socket=str(place), labels={"rack": "b7"})
    assert (status, answer["created"], answer["changed"]) == (201, True, True)
    assert (answer["replica"]["state"], answer["replica"]["source"]) == ("serving", "api")
    assert record_of(gateway)["replicas"] == {"chat": {"a1": {"socket": str(place), "labels": {"rack": "b7"}}}}
    assert "a1" in await ask(gateway, "tiny", stream=False)
    again = await put(gateway, "a1", "?wait=serving", labels={"rack": "b7"}, socket=str(place))
    assert (again[0], again[1]["created"], again[1]["changed"]) == (200, False, False)
    assert again[1]["replica"]["worker_id"] == answer["replica"]["worker_id"]
    status, one = await call(gateway, "GET", "/a1")
    assert (status, one["worker_id"], one["source"]) == (200, answer["replica"]["worker_id"], "api")
    shown = replica_of(await gateway.status(), "a1")
    assert shown.keys() == one.keys()
    status, gone = await call(gateway, "DELETE", "/a1?drain_s=10")
    assert (status, gone["removed"], gone["drained"], gone["in_flight"]) == (200, True, True, 0)
    assert record_of(gateway)["replicas"] == {"chat": {}}
    await gateway.until_states({})
    assert (await call(gateway, "GET", ""))[1] == {"replicas": []}
    status, unknown = await call(gateway, "DELETE", "/a1")
    assert (status, "has no replica 'a1'" in unknown["error"]) == (404, True)
